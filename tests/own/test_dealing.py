"""Who goes where in a set of one's own, on lists alone: what is kept, what is dealt, what is refused."""

from __future__ import annotations

from collections import Counter

import pytest
from datasets import DatasetDict

from hf_kdmri.data.own.columns import OwnDataError
from hf_kdmri.data.own.loading import OwnData
from hf_kdmri.data.own.splits import (
    check_classes,
    group_warnings,
    leak_warning,
    ordering_keys,
    own_or_drawn,
    used_names,
    with_roles,
)

CLASSES = ["a", "b"] * 50
KEYS = ordering_keys([f"image {number}" for number in range(100)], seed=0)


def test_splits_get_their_usual_names_and_others_are_told() -> None:
    notes: list[str] = []
    assert with_roles({"dev": 1, "train": 2, "extra": 3}, notes) == {"validation": 1, "train": 2}
    assert notes == ["split extra is none of train, validation and test and is not used"]
    assert with_roles({"test": 1}, notes) == {"train": 1}, "the only split is the one to be dealt"


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"val": 1, "dev": 2, "train": 3}, "splits dev and validation both mean validation"),
        ({"test": 1, "validation": 2}, "has the splits test, validation, but no train; .*--group_column"),
    ],
)
def test_splits_that_contradict_are_refused(splits, message) -> None:
    with pytest.raises(OwnDataError, match=message):
        with_roles(splits, [])


def test_keys_depend_on_content_and_seed_alone() -> None:
    assert ordering_keys(["x", "y", "x"], 0)[0] == ordering_keys(["x", "y", "x"], 0)[2]
    assert ordering_keys(["y"], 0)[0] == ordering_keys(["x", "y"], 0)[1]
    assert set(ordering_keys(["x", "y"], 0)).isdisjoint(ordering_keys(["x", "y"], 1))


@pytest.mark.parametrize("fold", [0, 3])
def test_a_set_of_one_split_is_dealt_whole(fold) -> None:
    assigned, drawn = own_or_drawn(["train"] * 100, CLASSES, KEYS, fold)
    assert drawn == ("train", "validation", "test")
    counts = Counter(zip(assigned, CLASSES, strict=True))
    assert counts["test", "a"] == counts["test", "b"] == 10
    assert all(counts["validation", name] > 0 for name in "ab")


@pytest.mark.parametrize(("there", "missing", "share"), [("test", "validation", 1 / 8), ("validation", "test", 1 / 5)])
def test_the_missing_split_is_drawn_from_training_and_the_other_kept(there, missing, share) -> None:
    origin = [there] * 20 + ["train"] * 80
    seen = []
    for fold in range(5):
        assigned, drawn = own_or_drawn(origin, CLASSES, KEYS, fold)
        assert drawn == [missing] and assigned[:20] == origin[:20]
        rows = {row for row, split in enumerate(assigned) if split == missing}
        assert len(rows) == pytest.approx(80 * share, abs=1)
        seen.append(rows)
    assert all(one.isdisjoint(other) for one in seen for other in seen if one is not other), "folds do not overlap"


def test_equal_images_stay_together() -> None:
    keys = [*KEYS[:50], *KEYS[:50]]
    assigned, _ = own_or_drawn(["train"] * 100, ["a", "b"] * 50, keys, 1)
    assert assigned[:50] == assigned[50:]
    assert own_or_drawn(["train"] * 80 + ["validation"] * 10 + ["test"] * 10, CLASSES, KEYS, 0)[1] == []


def test_too_few_images_are_refused_by_number() -> None:
    with pytest.raises(OwnDataError, match="2 images are too few for train, validation and test; give at least 5"):
        own_or_drawn(["train"] * 2, ["a", "b"], KEYS[:2], 0)
    with pytest.raises(OwnDataError, match="1 training images are too few to draw validation"):
        own_or_drawn(["train", "test"], ["a", "b"], KEYS[:2], 4)


def test_what_may_leak_is_said_with_the_way_out() -> None:
    assert "(other columns here: subject, age)" in leak_warning(["image", "subject", "age"], {"image"})
    assert "docs/own_data.md tells how to add one" in leak_warning(["image"], {"image"})
    assert group_warnings(["p", "p", "q"], "subject") == []
    (told,) = group_warnings(["p", "q"], "subject")
    assert told.startswith("every image has a subject of its own")


def test_classes_that_nothing_is_learned_of() -> None:
    notes: list[str] = []
    assert used_names(["a", "b", "c", "d"], CLASSES, notes) == ["a", "b"]
    assert notes == ["no image has the class 'c', 'd'; left out"]
    with pytest.raises(OwnDataError, match="all images have the class 'a'; two classes"):
        used_names(["a", "b"], ["a", "a"], notes)
    many = [f"class {number}" for number in range(8)]
    with pytest.raises(OwnDataError, match=r"no image of 'class 1', .*'class 5' and 2 more \(1 in validation and test"):
        check_classes(many, ["class 0", "class 1"], ["train", "test"], "images", [])
    told: list[str] = []
    check_classes(["a", "b"], ["a", "b", "a"], ["train", "train", "test"], "images", told)
    assert told[0] == "fewer than 5 training images: 'a', 'b'"
    assert told[1].startswith("no validation image of 'a', 'b'") and told[2].startswith("no test image of 'b'")


@pytest.mark.parametrize(
    ("group_column", "drawn", "said"),
    [
        ("subject", ("train", "validation", "test"), "by subject"),
        (None, (), "as published"),
        (None, ("train", "validation", "test"), "random images"),
        (None, ("validation",), "as published, validation drawn at random"),
        (None, ("validation", "test"), "as published, validation and test drawn at random"),
    ],
)
def test_how_it_was_split_is_said_in_a_few_words(group_column, drawn, said) -> None:
    assert OwnData(DatasetDict(), "set", None, group_column, drawn, None, True, 0, True).split == said
