"""Relations over processes: two with half a batch each are one with the whole batch, in loss and in gradient."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from hf_kdmri.distillation import LossOptions
from hf_kdmri.distillation.gathering import gather_together, gather_with_gradient
from hf_kdmri.distillation.kernels import cka_loss, gromov_wasserstein_loss
from hf_kdmri.distillation.logits import dist_loss, dkd_loss
from hf_kdmri.distillation.samples import rkd_angle_loss, rkd_distance_loss, similarity_preserving_loss
from tests.tiny import tiny_model, tiny_views
from tests.two_processes import results_of_two

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
    results = [loss.detach()]
    for parameter in model.parameters():
        assert parameter.grad is not None
        results.append(parameter.grad.clone())
    return results


def gathered_together(
    student: nn.Module, rows: list[int], inputs: Tensor, teacher: Tensor, labels: Tensor
) -> list[Tensor]:
    """Two tensors of unlike shape and dtype at once, and the gradient of a loss of both."""
    student.zero_grad()
    outputs = student(inputs[rows])
    twice = outputs.double().reshape(-1, 2, 2)
    first, second, other = gather_together([outputs, twice, teacher[rows].to(torch.bfloat16)])
    assert (second.dtype, other.dtype) == (torch.float64, torch.bfloat16)
    loss = dist_loss(first, other.float()) + second.square().mean()
    loss.backward()
    results = [loss.detach().float()]
    for parameter in student.parameters():  # as DistributedDataParallel does it
        assert parameter.grad is not None
        distributed.all_reduce(parameter.grad)
        results.append(parameter.grad / 2)
    return results


def collectives_of_a_step(rank: int, equal: bool) -> dict[str, int]:
    """How often each collective ran in one step with all relations on, by torch's profiler."""
    options = LossOptions(logit_loss="dist", sample_weight=1.0, geometry_grid=2)
    model = tiny_model()
    model.use_loss_options(options)
    model.equal_batches = equal
    wrapped = DistributedDataParallel(model.train())
    batch = tiny_views(16).__getitems__(range(8 * rank, 8 * rank + 8))
    for _ in range(2):  # the first step also agrees on buckets
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            wrapped(batch["pixel_values"], labels=batch["labels"])["loss"].backward()
    counts = {event.key: event.count for event in profile.key_averages() if event.key.startswith("c10d::")}
    return {key.removeprefix("c10d::"): count for key, count in counts.items()}


def one_of_two(rank: int, folder: Path) -> dict[tuple[str, str] | str, object]:
    student, *batch = whole_batch()
    model = DistributedDataParallel(student)
    results: dict[tuple[str, str] | str, object] = {}
    for division, rows in DIVISIONS.items():
        mine = [tensor[rows[rank]] for tensor in batch]
        for name in LOSSES:
            results[division, name] = loss_and_gradients(model, name, *mine)
        results[division, "rows"] = [gather_with_gradient(mine[2])]
        results[division, "together"] = gathered_together(student, rows[rank], *batch)
    results["collectives"] = {equal: collectives_of_a_step(rank, equal) for equal in (False, True)}
    return results


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return results_of_two(one_of_two, tmp_path_factory.mktemp("two"))


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


@pytest.mark.two_process
@pytest.mark.parametrize("division", DIVISIONS)
def test_tensors_that_travel_together_are_those_that_travel_alone(two_processes, division):
    student, inputs, teacher, _ = whole_batch()
    outputs = student(inputs)
    loss = dist_loss(outputs, teacher.to(torch.bfloat16).float()) + outputs.square().mean()
    loss.backward()
    expected = [loss.detach(), *(parameter.grad for parameter in student.parameters())]
    for results in two_processes:
        torch.testing.assert_close(results[division, "together"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.two_process
def test_a_step_gathers_once(two_processes):
    for results in two_processes:
        known, unknown = results["collectives"][True], results["collectives"][False]
        gathers = {name: count for name, count in known.items() if "gather" in name or "alltoall" in name}
        assert list(gathers.values()) == [1], known
        # without the promise of equal batches their sizes are exchanged as well
        assert sum(count for name, count in unknown.items() if "gather" in name or "alltoall" in name) == 2, unknown
        assert any("allreduce" in name for name in known), known


def test_processes_of_a_trainer_have_batches_of_one_size():
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    for count in (7, 8, 9, 31, 33):
        for processes in (2, 3):
            sizes = {
                tuple(len(batch) for batch in BatchSamplerShard(BatchSampler(range(count), 4, False), processes, rank))
                for rank in range(processes)
            }
            assert len(sizes) == 1 and set(*sizes) == {4}


def test_tensors_that_cannot_travel_together_are_refused():
    for pair in ([torch.zeros(2, 3), torch.zeros(3, 3)], [torch.zeros(2, 3), torch.zeros(2).long()]):
        with pytest.raises(ValueError, match="gather others by themselves"):
            gather_together(pair)
    one = torch.zeros(2, 3)
    assert gather_together([one])[0] is one and gather_together([]) == []


def test_one_process_gets_its_own_tensor():
    tensor = torch.randn(3, 4, requires_grad=True)
    assert gather_with_gradient(tensor) is tensor


def test_a_scalar_is_refused():
    with pytest.raises(ValueError, match="a loss is reduced, not gathered"):
        gather_with_gradient(torch.tensor(1.0))
