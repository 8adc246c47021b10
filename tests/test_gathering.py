"""Relations over processes: two with half a batch each are one with the whole batch, in loss and in gradient."""

from __future__ import annotations

import importlib.util
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from hf_kdmri.distillation.gathering import gather_with_gradient
from hf_kdmri.distillation.kernels import cka_loss, gromov_wasserstein_loss
from hf_kdmri.distillation.logits import dist_loss, dkd_loss
from hf_kdmri.distillation.samples import rkd_angle_loss, rkd_distance_loss, similarity_preserving_loss

BATCH = 32
LOSSES = {
    "dist": lambda zs, zt, labels: dist_loss(zs, zt),
    # Not relational: here because it fails if labels do not stay with their rows.
    "dkd": dkd_loss,
    "rkd distance": lambda zs, zt, labels: rkd_distance_loss(zs, zt),
    "rkd angle": lambda zs, zt, labels: rkd_angle_loss(zs, zt),
    "similarity preserving": lambda zs, zt, labels: similarity_preserving_loss(zs, zt),
    "cka": lambda zs, zt, labels: cka_loss(zs, zt),
}
if importlib.util.find_spec("ot"):
    LOSSES["gromov wasserstein"] = lambda zs, zt, labels: gromov_wasserstein_loss(zs, zt)
DIVISIONS = {
    # Rows of each of the two processes: interleaved as a distributed sampler does it, and unequal.
    "equal": [list(range(0, BATCH, 2)), list(range(1, BATCH, 2))],
    "unequal": [list(range(20)), list(range(20, BATCH))],
}


def whole_batch() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    student = nn.Linear(6, 4)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    inputs, teacher = (torch.randn(BATCH, size, generator=generator) for size in (6, 4))
    return student, inputs, teacher, torch.randint(4, (BATCH,), generator=generator)


def loss_and_gradients(model: nn.Module, name: str, inputs: Tensor, teacher: Tensor, labels: Tensor) -> list[Tensor]:
    model.zero_grad()
    gathered = [gather_with_gradient(tensor) for tensor in (model(inputs), teacher, labels)]
    loss = LOSSES[name](*gathered)
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    student, *batch = whole_batch()
    model = DistributedDataParallel(student)
    results = {}
    for division, rows in DIVISIONS.items():
        mine = [tensor[rows[rank]] for tensor in batch]
        for name in LOSSES:
            results[division, name] = loss_and_gradients(model, name, *mine)
        results[division, "rows"] = [gather_with_gradient(mine[2])]
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(one_of_two, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.two_process
@pytest.mark.parametrize("division", DIVISIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_are_one_with_the_whole_batch(two_processes, name, division):
    expected = loss_and_gradients(whole_batch()[0], name, *whole_batch()[1:])
    assert all(gradient.abs().max() > 1e-4 for gradient in expected[1:2])
    for results in two_processes:
        torch.testing.assert_close(results[division, name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.two_process
@pytest.mark.parametrize("division", DIVISIONS)
def test_rows_come_in_the_order_of_ranks(two_processes, division):
    labels = whole_batch()[3]
    expected = labels[[row for rows in DIVISIONS[division] for row in rows]]
    for results in two_processes:
        assert torch.equal(results[division, "rows"][0], expected)


def test_one_process_gets_its_own_tensor():
    tensor = torch.randn(3, 4, requires_grad=True)
    assert gather_with_gradient(tensor) is tensor


def test_a_scalar_is_refused():
    with pytest.raises(ValueError, match="a loss is reduced, not gathered"):
        gather_with_gradient(torch.tensor(1.0))
