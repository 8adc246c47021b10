"""Losses on the geometry of a batch: values by hand, what they do not see, what they cost."""

from __future__ import annotations

import math
import sys
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from hf_kdmri.distillation import kernels
from hf_kdmri.distillation.kernels import alignment, cka_loss, gromov_wasserstein_loss
from hf_kdmri.distillation.samples import (
    relative_distances,
    rkd_angle_loss,
    rkd_distance_loss,
    similarity_preserving_loss,
)

EQUILATERAL = torch.tensor([[0.0, 0], [1, 0], [0.5, math.sqrt(0.75)]])
LOSSES = {
    "rkd distance": rkd_distance_loss,
    "rkd angle": rkd_angle_loss,
    "similarity preserving": similarity_preserving_loss,
    "cka": cka_loss,
    "gromov wasserstein": partial(gromov_wasserstein_loss, epsilon=0.5),  # settles in milliseconds
}


@pytest.fixture(params=LOSSES)
def name(request) -> str:
    if request.param == "gromov wasserstein":
        pytest.importorskip("ot")
    return request.param


@pytest.fixture
def loss(name):
    return LOSSES[name]


def embeddings(batch: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 5, dtype=torch.float64), torch.randn(batch, 7, dtype=torch.float64)


def rotation(channels: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))[0]


CHANGES = {
    "scale": lambda points: 37 * points,
    "rotation": lambda points: points @ rotation(points.shape[1]),
    "translation": lambda points: points + 3,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_invariances(name, loss, change, side):
    student, teacher = embeddings()
    before = loss(student, teacher)
    changed = CHANGES[change]
    after = loss(changed(student), teacher) if side == "student" else loss(student, changed(teacher))
    if name == "similarity preserving" and change == "translation":  # the one that is not centred
        assert abs(after - before) > 1e-3
    else:
        torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-10)


def test_order_of_the_batch_does_not_matter(loss):
    student, teacher = embeddings()
    order = torch.randperm(8)
    torch.testing.assert_close(loss(student[order], teacher[order]), loss(student, teacher))


def test_pairing_matters(name, loss):
    student, teacher = embeddings()
    changed = loss(student.roll(1, 0), teacher)
    if name == "gromov wasserstein":  # the coupling is free, which its docstring states
        torch.testing.assert_close(changed, loss(student, teacher))
    else:
        assert abs(changed - loss(student, teacher)) > 1e-4


def test_zero_for_embeddings_that_agree(name, loss):
    student, _ = embeddings()
    value = loss(student, torch.cat([2 * student, torch.zeros(8, 3)], dim=1)).item()
    if name == "gromov wasserstein":  # ε keeps it above zero
        assert value > 0.01
    else:
        assert value == pytest.approx(0, abs=1e-12)


def test_bad_input_is_refused(loss):
    with pytest.raises(ValueError, match=r"embeddings \(B, D\) of one batch size"):
        loss(torch.zeros(4, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="pool or flatten"):
        loss(torch.zeros(4, 3, 2, 2), torch.zeros(4, 3, 2, 2))
    with pytest.raises(ValueError, match=r"needs at least \d images in the batch, got 1"):
        loss(torch.zeros(1, 3), torch.zeros(1, 3))


class TestRelationalDistance:
    def test_value_by_hand(self):
        # Distances 1, 1, 2 over their mean 4/3 are .75, .75, 1.5; an equilateral triangle has 1, 1, 1.
        student = torch.tensor([[0.0], [1.0], [2.0]])
        expected = 2 * 0.5 * (0.25**2 + 0.25**2 + 0.5**2) / 9
        assert rkd_distance_loss(student, EQUILATERAL).item() == pytest.approx(expected, abs=1e-6)

    def test_far_from_the_origin_no_digit_is_lost(self):
        student, teacher = (points.float() for points in embeddings())
        exact = rkd_distance_loss((student + 1000).double(), teacher.double())
        assert rkd_distance_loss(student + 1000, teacher).item() == pytest.approx(exact.item(), rel=1e-4)

    def test_distances_have_mean_one_and_none_for_points_that_coincide(self):
        distances = relative_distances(embeddings()[0])
        assert distances.sum().item() == pytest.approx(8 * 7) and distances.diagonal().abs().max() == 0
        assert relative_distances(torch.ones(4, 3)).abs().max() == 0


class TestRelationalAngle:
    def test_value_by_hand(self):
        # A right triangle has cosines 0, √½, √½ at its corners, an equilateral one ½; each occurs twice (i, k swapped).
        student = torch.tensor([[0.0, 0], [1, 0], [0, 1]])
        expected = 2 * 0.5 * (0.5**2 + 2 * (math.sqrt(0.5) - 0.5) ** 2) / 27
        assert rkd_angle_loss(student, EQUILATERAL).item() == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize("anchors", [1, 3, 8, 100])
    def test_steps_change_neither_value_nor_gradient(self, anchors):
        student, teacher = embeddings()
        results = []
        for anchors_at_once in (16, anchors):
            leaf = student.clone().requires_grad_()
            value = rkd_angle_loss(leaf, teacher, anchors_at_once=anchors_at_once)
            results.append((value.detach(), *torch.autograd.grad(value, leaf)))
        torch.testing.assert_close(results[0], results[1])

    def test_no_tensor_of_all_triplets_is_kept(self) -> None:
        kept: dict[int, int] = {}
        student, teacher = torch.randn(48, 4, requires_grad=True), torch.randn(48, 4)

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.data_ptr()] = tensor.numel()  # one tensor kept several times takes its memory once
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            rkd_angle_loss(student, teacher, anchors_at_once=4)
        assert sum(kept.values()) < 48**3 / 10

    def test_memory_is_bounded_whatever_the_batch(self) -> None:
        for batch in (48, 256):
            kept: dict[int, int] = {}
            student, teacher = torch.randn(batch, 4, requires_grad=True), torch.randn(batch, 4)

            def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
                kept[tensor.data_ptr()] = tensor.numel() * tensor.itemsize
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                rkd_angle_loss(student, teacher)
            assert max(kept.values()) < 32e6

    def test_no_step_is_refused(self):
        with pytest.raises(ValueError, match="anchors_at_once is 0"):
            rkd_angle_loss(EQUILATERAL, EQUILATERAL, anchors_at_once=0)


class TestSimilarityPreserving:
    def test_value_by_hand(self):
        # Gram matrices I and [[1, 1], [1, 1]] / √2: (2 · (1 - √½)² + 2 · ½) / 4 = 1 - √½.
        student, teacher = torch.eye(2), torch.tensor([[1.0, 0], [1, 0]])
        assert similarity_preserving_loss(student, teacher).item() == pytest.approx(1 - math.sqrt(0.5), abs=1e-6)

    def test_value_falls_with_the_batch(self):
        small, large = (
            similarity_preserving_loss(torch.randn(batch, 16), torch.randn(batch, 16)).item() for batch in (32, 512)
        )
        assert large < small / 2


class TestKernelAlignment:
    def test_value_by_hand(self):
        # Points (1, 1, -1, -1) and (1, -1, 1, -1): U-centred entries are 4/3 for the pairs of one sign and -2/3
        # otherwise, so the cosine is (-8/9 - 8/9 + 4/9) / (16/9 + 4/9 + 4/9) = -1/2.
        student, teacher = torch.tensor([1.0, 1, -1, -1])[:, None], torch.tensor([1.0, -1, 1, -1])[:, None]
        assert cka_loss(student, teacher).item() == pytest.approx(1.5, abs=1e-5)

    def test_is_the_unbiased_estimate(self):
        """Song et al., eq. 5, written with traces, for each of the three HSIC."""

        def hsic(k: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
            n = len(k)
            k, m = k - k.diag().diag(), m - m.diag().diag()
            both = (k @ m).trace() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k @ m).sum()
            return both / (n * (n - 3))

        student, teacher = embeddings(batch=10)
        k, m = student @ student.T, teacher @ teacher.T
        expected = 1 - hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()
        torch.testing.assert_close(cka_loss(student, teacher), expected)

    def test_independent_features_are_near_one(self):
        """Where the biased estimate would already claim agreement: many more channels than images."""
        student, teacher = torch.randn(64, 1024), torch.randn(64, 1024)
        centred = [(x - x.mean(0)) @ (x - x.mean(0)).T for x in (student, teacher)]
        biased = F.cosine_similarity(centred[0].flatten(), centred[1].flatten(), dim=0).item()
        assert biased > 0.9 and cka_loss(student, teacher).item() == pytest.approx(1, abs=0.1)

    def test_kernels_in_batches(self):
        kernels_a, kernels_b = torch.rand(2, 3, 6, 6)
        kernels_a, kernels_b = kernels_a + kernels_a.mT, kernels_b + kernels_b.mT
        each = torch.stack([alignment(a, b) for a, b in zip(kernels_a, kernels_b, strict=True)])
        torch.testing.assert_close(alignment(kernels_a, kernels_b), each)


class TestGromovWasserstein:
    @pytest.fixture(autouse=True)
    def _needs_pot(self):
        pytest.importorskip("ot")

    def test_two_points_by_hand(self):
        # Both distance matrices are [[0, 1], [1, 0]]. Nothing tells the points apart, so the coupling stays uniform;
        # of the 16 equal terms half have distances 0 and 1.
        student, teacher = torch.tensor([[0.0], [5.0]]), torch.tensor([[3.0], [1.0]])
        assert gromov_wasserstein_loss(student, teacher).item() == pytest.approx(0.5, abs=1e-6)

    def test_a_renumbered_space_costs_only_the_entropy(self):
        # A scalene triangle, numbered otherwise: the coupling is a permutation / 3, its KL from uniform ln 3.
        points = torch.tensor([[0.0, 0], [3, 0], [0, 4]])
        value = gromov_wasserstein_loss(points, points.roll(1, 0), epsilon=0.005).item()
        assert value == pytest.approx(0.005 * math.log(3), rel=0.01)

    def test_distortion_is_the_quadruple_sum(self):
        distances_s, distances_t = (relative_distances(points) for points in embeddings(batch=4))
        coupling = torch.rand(4, 4, dtype=torch.float64)
        terms = (distances_s[:, None, :, None] - distances_t[None, :, None, :]).square()
        expected = torch.einsum("ijkl,ij,kl->", terms, coupling, coupling)
        torch.testing.assert_close(kernels._distortion(distances_s, distances_t, coupling), expected)

    def test_an_outlier_does_not_underflow(self):
        student, teacher = torch.randn(8, 3), torch.randn(8, 3)
        student[0] += 1e4
        student.requires_grad_()
        value = gromov_wasserstein_loss(student, teacher, epsilon=0.02)
        value.backward()
        assert value.isfinite() and student.grad.isfinite().all()

    def test_limits_are_refused(self):
        with pytest.raises(ValueError, match="at most 49 points, got 50"):
            gromov_wasserstein_loss(torch.zeros(50, 2), torch.zeros(50, 2))
        with pytest.raises(ValueError, match="epsilon is 0"):
            gromov_wasserstein_loss(torch.zeros(5, 2), torch.zeros(5, 2), epsilon=0)


def test_without_pot_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ImportError, match=r"pip install 'hf_kdmri\[ot\]'"):
        gromov_wasserstein_loss(torch.randn(4, 2), torch.randn(4, 2))
