from __future__ import annotations

from pathlib import Path

import pytest

from hf_kdmri.hub import CardError, check_card

GOOD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-classification
base_model: jane/teacher
tags: [timm]
metrics: [accuracy]
widget:
- src: samples/glioma.png
  example_title: Glioma
model-index:
- name: x
  results:
  - task: {type: image-classification}
    dataset: {type: figshare, name: Figshare}
    metrics:
    - {type: accuracy, value: 0.9}
---

# x

![curves](figures/curves.png)
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("samples/glioma.png", "figures/curves.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "README.md").write_text(GOOD)
    return tmp_path


def test_a_good_card_gives_its_metadata(folder) -> None:
    data = check_card(folder)
    assert data.base_model == "jane/teacher"
    assert data.eval_results[0].metric_value == 0.9


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("pipeline_tag: image-classification\n", "", "pipeline_tag is None"),
        ("library_name: transformers", "library_name: mine", "library_name is 'mine'"),
        ("apache-2.0", "Apache 2", "license is 'Apache 2'"),
        ("tags: [timm]", "tags: timm", "tags is 'timm'"),
        ("jane/teacher", "jane/my teacher", "base_model"),
        ("value: 0.9", "value: .nan", "accuracy is nan"),
        ("value: 0.9", "value: high", "accuracy is 'high'"),
        ("dataset: {type: figshare, name: Figshare}", "dataset: {type: figshare}", "without dataset.name"),
        ("- src: samples/glioma.png", "- src: samples/other.png", "samples/other.png is not in the folder"),
        ("- src: samples/glioma.png", "- src: ../glioma.png", "outside the repository"),
        ("figures/curves.png", "figures/no.png", "figures/no.png is not in the folder"),
        ("# x", "# x\n\n[More Information Needed]", "not finished"),
        ("# x", "# {{ model_name }}", "not finished"),
        ("---\nlicense", "license", "does not begin with metadata"),
        ("tags: [timm]", "tags: [timm", "are no YAML"),
    ],
)
def test_each_fault_is_named(folder, old, new, fault) -> None:
    assert old in GOOD
    (folder / "README.md").write_text(GOOD.replace(old, new))
    with pytest.raises(CardError, match=fault):
        check_card(folder)


def test_code_in_the_card_may_hold_what_a_template_would(folder) -> None:
    (folder / "README.md").write_text(GOOD + "\n```bibtex\ntitle = {{X}}\n```\n")
    check_card(folder)


def test_a_folder_without_a_card_is_refused(tmp_path) -> None:
    with pytest.raises(CardError, match=r"README.md is missing"):
        check_card(tmp_path)
