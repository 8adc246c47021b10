"""A model that several processes trained is the same on all of them, and the one that is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hf_kdmri import StudentForImageClassification
from hf_kdmri.training.options import parse_options
from hf_kdmri.training.run_folder import RunFolder
from hf_kdmri.training.stages import train_stage
from tests.conftest import LABELS
from tests.tiny import tiny_views
from tests.two_processes import results_of_two


def trained(rank: int, folder: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = StudentForImageClassification.from_timm("test_resnet", labels=LABELS, image_size=32)
    options = ["--output_dir", str(folder / "run"), "--num_train_epochs", "1", "--per_device_train_batch_size", "8"]
    run = RunFolder(folder / "run")
    train_stage("baseline", model, None, tiny_views(), tiny_views(seed=1), parse_options([*options, "--use_cpu"]), run)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.two_process
def test_two_processes_end_with_the_model_that_is_saved(tmp_path: Path):
    states = results_of_two(trained, tmp_path)
    saved = StudentForImageClassification.from_pretrained(tmp_path / "run" / "baseline").state_dict()
    assert any("running_mean" in name for name in saved)
    for state in states:
        for name, tensor in state.items():  # each process saw other images, so its own running statistics are others
            assert torch.equal(tensor, saved[name]), name
