"""Losses on whole metric spaces: centred kernel alignment and Gromov-Wasserstein.

Both depend on the batch: on several processes gather both embeddings with `gather_with_gradient` first; under gradient
accumulation, relations do not cross micro-batches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_kdmri.distillation.precision import at_least_float32, teacher_side
from hf_kdmri.distillation.samples import check_embeddings, relative_distances

MAX_TRANSPORT_POINTS = 49  # a 7 × 7 grid; the solver's time grows with the cube
MAX_ROUNDS = 200  # of the coupling; where it has not settled by then, it is still a coupling and is used as it is


def cka_loss(embeddings_s: Tensor, embeddings_t: Tensor) -> Tensor:
    """1 − CKA of the two linear Gram matrices, with the unbiased estimate of HSIC.

    CKA = HSIC(K_s, K_t) / √(HSIC(K_s, K_s) · HSIC(K_t, K_t)). The unbiased HSIC is the inner product of U-centred
    Gram matrices (diagonal left out), so CKA is their cosine; see `alignment`. The usual biased estimate is near 1 for
    independent features as soon as D is not far below B (.95 at B = 64), which leaves nothing to learn; this one is
    near 0. Depends on the batch: under gradient accumulation, relations do not cross micro-batches.

    References: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019
    (arXiv 1905.00414), eq. 4; Song et al., "Feature Selection via Dependence Maximization", JMLR 2012, eq. 5 (HSIC);
    Székely & Rizzo, "Partial Distance Correlation with Methods for Dissimilarities", 2014, eq. 2.1 (U-centring).

    Args:
        embeddings_s: student (B, D_s), B ≥ 4.
        embeddings_t: teacher (B, D_t).

    Returns:
        A scalar without unit from 0 to 2: 0 for embeddings that agree up to rotation, translation and scale, about 1
        for unrelated ones. 1 without gradient if all points of one side coincide.

    Raises:
        ValueError: shapes that do not fit, or fewer than four images, for which the estimate does not exist.

    Example:
        >>> line = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> round(cka_loss(line, 5 - 2 * line).item(), 4)
        0.0
    """
    check_embeddings(embeddings_s, embeddings_t, minimum=4)
    with torch.autocast(embeddings_s.device.type, enabled=False):
        return 1 - alignment(_gram(at_least_float32(embeddings_s)), _gram(teacher_side(embeddings_t)))


def alignment(kernels_a: Tensor, kernels_b: Tensor) -> Tensor:
    """Unbiased CKA of kernels: the cosine between their U-centred forms.

    U-centring sets the diagonal to 0 and takes from each other entry its row's and column's sums over n − 2, and adds
    the total over (n − 1)(n − 2); all rows then sum to 0.

    Args:
        kernels_a: (..., n, n), symmetric, n ≥ 4.
        kernels_b: likewise.

    Returns:
        (...), from -1 to 1; 0 where a kernel is constant off its diagonal.
    """
    a, b = _u_centred(kernels_a), _u_centred(kernels_b)
    square_a, square_b = a.square().sum((-2, -1)), b.square().sum((-2, -1))
    return (a * b).sum((-2, -1)) / ((square_a + 1e-12) * (square_b + 1e-12)).sqrt()


def gromov_wasserstein_loss(embeddings_s: Tensor, embeddings_t: Tensor, *, epsilon: float = 0.1) -> Tensor:
    """Entropic Gromov-Wasserstein discrepancy between the two batches as metric spaces.

    min over couplings T of Σ_ijkl (d_s,ik − d_t,jl)² T_ij T_kl + ε · KL(T ‖ uniform), where d are distances divided by
    their mean (`relative_distances`) and T has uniform marginals. The coupling is found without gradient (float64, log
    domain, on the CPU); by the envelope theorem the gradient of the minimum is that of the sum with T fixed. The
    coupling is free: it need not pair an image with itself, so this asks for less than `rkd_distance_loss`, which is
    what remains when T is fixed to the identity. The minimum found is a local one, from the uniform coupling. Positive
    also for equal inputs, because of ε.

    It waits for the device and takes 10 to 20 ms on one CPU core for 32 to 49 images, more for a smaller ε: for
    ablations. Depends on the batch: under gradient accumulation, relations do not cross micro-batches.

    References: Peyré, Cuturi & Solomon, "Gromov-Wasserstein Averaging of Kernel and Distance Matrices", ICML 2016,
    eq. 7–9; Flamary et al., "POT: Python Optimal Transport", JMLR 2021.

    Args:
        embeddings_s: student (B, D_s), 2 ≤ B ≤ 49.
        embeddings_t: teacher (B, D_t).
        epsilon: ε > 0 in units of the squared mean distance. Larger is smoother and faster.

    Returns:
        A scalar without unit, ≥ 0.

    Raises:
        ValueError: shapes that do not fit, too few or too many images, or ε not positive.
        ImportError: POT is not installed.
    """
    check_embeddings(embeddings_s, embeddings_t, minimum=2)
    if len(embeddings_s) > MAX_TRANSPORT_POINTS:
        raise ValueError(
            f"gromov_wasserstein_loss takes at most {MAX_TRANSPORT_POINTS} points, got {len(embeddings_s)}; "
            "pass a part of the batch, or use rkd_distance_loss"
        )
    if not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon}; it must be above 0")
    with torch.autocast(embeddings_s.device.type, enabled=False):
        distances_s = relative_distances(at_least_float32(embeddings_s))
        distances_t = relative_distances(teacher_side(embeddings_t))
        with torch.no_grad():
            coupling = _entropic_coupling(distances_s.double().cpu(), distances_t.double().cpu(), epsilon)
            relative_entropy = torch.special.xlogy(coupling, coupling * coupling.numel()).sum().to(distances_s)
            coupling = coupling.to(distances_s)
        return _distortion(distances_s, distances_t, coupling) + epsilon * relative_entropy


def _gram(embeddings: Tensor) -> Tensor:
    # CKA sees neither position nor scale; fixing both keeps digits and gives the epsilons one meaning.
    points = embeddings - embeddings.mean(0)
    points = points / (points.square().sum(1).mean() + 1e-12).sqrt()
    return points @ points.T


def _u_centred(kernels: Tensor) -> Tensor:
    n = kernels.shape[-1]
    others = 1 - torch.eye(n, dtype=kernels.dtype, device=kernels.device)
    kernels = kernels * others
    sums = kernels.sum(-1)
    total = sums.sum(-1)[..., None, None] / ((n - 1) * (n - 2))
    return (kernels - (sums[..., :, None] + sums[..., None, :]) / (n - 2) + total) * others


def _distortion(distances_s: Tensor, distances_t: Tensor, coupling: Tensor) -> Tensor:
    # The quadruple sum, multiplied out.
    weight_s, weight_t = coupling.sum(1), coupling.sum(0)
    square_s = weight_s @ distances_s.square() @ weight_s
    square_t = weight_t @ distances_t.square() @ weight_t
    return square_s + square_t - 2 * (distances_s @ coupling @ distances_t * coupling).sum()


def _entropic_coupling(distances_s: Tensor, distances_t: Tensor, epsilon: float) -> Tensor:
    """Peyré's iteration: Sinkhorn on the linearised cost until the coupling stands still.

    `ot.gromov.entropic_gromov_wasserstein` is the same loop but fixes a Sinkhorn that underflows for small ε. Sinkhorn
    goes on from its last potentials, so few steps of it suffice in each round.
    """
    try:
        import ot
    except ImportError as error:
        raise ImportError("gromov_wasserstein_loss needs POT: pip install 'hf_kdmri[ot]'") from error
    n = len(distances_s)
    uniform = ot.unif(n)
    fixed = ot.gromov.init_matrix(distances_s.numpy(), distances_t.numpy(), uniform, uniform, "square_loss")
    coupling, potentials = uniform[:, None] * uniform[None, :], None
    for _ in range(MAX_ROUNDS):
        previous, cost = coupling, ot.gromov.gwggrad(*fixed, coupling)
        coupling, log = ot.bregman.sinkhorn_log(
            uniform, uniform, cost, epsilon, numItermax=20, warmstart=potentials, log=True, warn=False
        )
        potentials = (log["log_u"], log["log_v"])
        if abs(coupling - previous).max() < 1e-7 / n:
            break
    return torch.from_numpy(coupling)
