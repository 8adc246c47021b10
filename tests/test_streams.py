"""Streams: every image once a pass, the same views everywhere, and training that goes on where it stopped."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from hf_kdmri import DistillationTrainer, DistillationTrainingArguments
from hf_kdmri.data.augmentation import VIEW_STYLES, RandomViews
from hf_kdmri.data.pictures import PictureError
from hf_kdmri.data.streams import StreamedViews, picture_index
from hf_kdmri.data.views import collate_views
from hf_kdmri.training.data_options import DataOptions, OptionError
from hf_kdmri.training.streaming import check_streaming
from tests.conftest import LABELS
from tests.tiny import tiny_model, tiny_views

FEATURES = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=LABELS)})


def png(number: int, size: int = 32) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 100, (size, size)) + 50 * (number % 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def rows(numbers: list[list[int]]):
    for shard in numbers:
        for number in shard:
            yield {"image": {"bytes": png(number), "path": f"{number}.png"}, "label": number % 3}


def stream_of(count: int, shards: int) -> datasets.IterableDataset:
    numbers = [list(range(shard, count, shards)) for shard in range(shards)]
    return datasets.IterableDataset.from_generator(rows, features=FEATURES, gen_kwargs={"numbers": numbers})


def first(views: StreamedViews, batches: int, workers: int = 0) -> list[dict[str, torch.Tensor]]:
    loader = iter(DataLoader(views, batch_size=None, collate_fn=collate_views, num_workers=workers))
    return [next(loader) for _ in range(batches)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("shards", "processes"), [(8, 2), (4, 2), (3, 2), (5, 3)])
def test_processes_and_workers_see_every_image_once_a_pass(shards: int, processes: int, workers: int) -> None:
    count = 60
    seen: dict[int, Counter[int]] = {0: Counter(), 1: Counter()}
    for process in range(processes):
        views = StreamedViews(stream_of(count, shards), 32, 1, buffer=7, process_index=process, num_processes=processes)
        views.check_workers(workers)
        for batch in first(views, 3 * count, workers):
            epoch = int(batch["epoch"].item())
            if epoch in seen:
                seen[epoch].update(batch["index"].tolist())
    expected = Counter(picture_index(png(number)) for number in range(count))
    assert seen[0] == expected
    assert seen[1] == expected


def test_batches_are_whole_and_hold_what_the_files_hold() -> None:
    batch = first(StreamedViews(stream_of(10, 2), 16, 4, buffer=1), 1)[0]
    assert batch["pixel_values"].shape == (4, 1, 16, 16) and batch["pixel_values"].dtype == torch.uint8
    assert first(StreamedViews(stream_of(10, 2), 16, 4, grey=False), 1)[0]["pixel_values"].shape == (4, 3, 16, 16)
    many = first(StreamedViews(stream_of(10, 2), 32, 4, buffer=1), 5)
    assert [batch["epoch"].tolist() for batch in many][2] == [0, 0, 1, 1]  # two passes in one batch
    number = {picture_index(png(n)): n for n in range(10)}
    for batch in many:
        for view, label, index in zip(batch["pixel_values"], batch["labels"], batch["index"].tolist(), strict=True):
            assert label == number[index] % 3
            assert np.array_equal(view[0], np.asarray(Image.open(io.BytesIO(png(number[index])))))


def test_the_order_is_drawn_anew_in_each_pass_and_repeats_with_the_seed() -> None:
    def order(seed: int) -> list[int]:
        batches = first(StreamedViews(stream_of(20, 4), 32, 1, seed=seed, buffer=5), 40)
        return [int(batch["index"].item()) for batch in batches]

    one = order(3)
    assert one == order(3) and one != order(4)
    assert one[:20] != one[20:] and sorted(one[:20]) == sorted(one[20:])


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_batches_are_not_decoded_and_the_rest_is_unchanged(workers: int) -> None:
    whole = first(StreamedViews(stream_of(24, 4), 32, 3, buffer=5), 12, workers)
    rest = first(StreamedViews(stream_of(24, 4), 32, 3, buffer=5, skip_batches=5), 12, workers)
    assert rest[:5] == [{}] * 5
    for one, other in zip(whole[5:], rest[5:], strict=True):
        assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def test_a_batch_of_two_passes_has_the_views_of_each() -> None:
    views = tiny_views(4).__getitems__(range(4))
    for style in VIEW_STYLES.values():
        epochs = torch.tensor([0, 1, 1, 0])
        mixed = style(views["pixel_values"], views["index"], seed=5, epoch=epochs)
        for row, epoch in enumerate(epochs.tolist()):
            alone = style(views["pixel_values"][row : row + 1], views["index"][row : row + 1], seed=5, epoch=epoch)
            assert (mixed[row].int() - alone[0].int()).abs().max() <= 1


def test_what_a_stream_cannot_read_is_named() -> None:
    def broken():
        yield {"image": {"bytes": b"no picture", "path": "bad.png"}, "label": 0}

    def unlabelled():
        yield {"image": {"bytes": png(0), "path": "bare.png"}, "label": None}

    def nothing():
        yield from ()

    def batches(generator) -> None:
        first(StreamedViews(datasets.IterableDataset.from_generator(generator, features=FEATURES), 32, 1), 1)

    with pytest.raises(PictureError, match=r"bad\.png"):
        batches(broken)
    with pytest.raises(ValueError, match=r"bare\.png of the stream has no label"):
        batches(unlabelled)
    with pytest.raises(ValueError, match="found no image"):
        batches(nothing)


def test_more_workers_than_shards_are_refused() -> None:
    views = StreamedViews(stream_of(8, 4), 32, 1, num_processes=2)
    views.check_workers(2)
    with pytest.raises(ValueError, match="enough for 2 workers each"):
        views.check_workers(3)


def streaming_trainer(folder: Path, **options) -> DistillationTrainer:
    defaults = dict(
        max_steps=8, per_device_train_batch_size=4, logging_strategy="steps", logging_steps=2, save_strategy="steps",
        save_steps=4, learning_rate=1e-3, geometry_grid=2, disable_tqdm=True, seed=3,
    )  # fmt: skip
    return DistillationTrainer(
        model=tiny_model(),
        args=DistillationTrainingArguments(output_dir=str(folder), **{**defaults, **options}),
        augmentation=RandomViews(),
        train_dataset=StreamedViews(stream_of(20, 4), 32, 4, buffer=5, seed=3),
        data_collator=collate_views,
    )


class StopAtFour(TrainerCallback):
    """Stops as a signal would, after the step that was saved."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 4


def test_a_stopped_stream_ends_in_the_same_weights(tmp_path: Path) -> None:
    whole = streaming_trainer(tmp_path / "whole")
    whole.train()
    first_half = streaming_trainer(tmp_path / "halves")
    first_half.add_callback(StopAtFour())
    first_half.train()
    second_half = streaming_trainer(tmp_path / "halves")
    second_half.train(resume_from_checkpoint=True)
    assert second_half.state.global_step == 8
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second_half.model.state_dict()[name]), name
    logs = [[row for row in each.state.log_history if "loss" in row] for each in (whole, second_half)]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]


@pytest.mark.parametrize(
    ("data", "training", "message"),
    [
        ({"folds": ["all"]}, {}, "folds are dealt from all images at once"),
        ({"fold": 1}, {}, "folds are dealt from all images at once"),
        ({"group_column": "patient"}, {}, "by group needs all of them"),
        ({"max_train_samples": 5}, {}, "max_steps bounds the training"),
        ({"stream_buffer": 0}, {}, "stream_buffer is 0"),
        ({"dataset_name": None}, {}, "no data set is named"),
        ({}, {"max_steps": -1}, "needs --max_steps"),
        ({}, {"teacher_cache": "cache", "views_per_image": 2}, "leave out teacher_cache or streaming"),
        ({}, {"lesion_weighting": True, "geometry_weight": 1.0}, "masks"),
        ({}, {"mask_weight": 1.0}, "mask_weight needs masks"),
        ({}, {"save_strategy": "epoch"}, "--save_strategy steps"),
    ],
)
def test_what_a_stream_cannot_do_is_refused_with_the_reason(tmp_path: Path, data, training, message) -> None:
    steps = dict(max_steps=5, logging_strategy="steps", save_strategy="steps", eval_strategy="steps", eval_steps=5)
    with pytest.raises(OptionError, match=message):
        options = DataOptions(**{"dataset_name": "some/set", "streaming": True, **data})
        check_streaming(options, DistillationTrainingArguments(output_dir=str(tmp_path), **{**steps, **training}))
