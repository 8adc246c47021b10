"""Losses on the geometry of a batch: distances, angles and similarities between the embeddings of its images.

They compare relations, so student and teacher may have any widths. Every one of them depends on the batch: on several
processes gather both embeddings with `gather_with_gradient` first; under gradient accumulation, relations do not cross
micro-batches, so 4 × 8 is not 32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hf_kdmri.distillation.precision import at_least_float32, teacher_side

ANGLE_BYTES = 32 * 10**6  # that the angles of one side may take at once


def rkd_distance_loss(embeddings_s: Tensor, embeddings_t: Tensor) -> Tensor:
    """RKD's distance-wise loss: Huber(d_s,ij / μ_s − d_t,ij / μ_t), mean over all B² pairs.

    d are Euclidean distances and μ their mean over i ≠ j, which takes the scale of either space out. Huber's threshold
    is 1. The diagonal counts as 0 in the mean, as in the published code. Distances are taken from centred embeddings
    and by differences, since the expansion |x|² + |y|² − 2 x·y loses its digits on off-centre features; equal points
    have gradient 0. Depends on the batch: under gradient accumulation, relations do not cross micro-batches.

    Reference: Park et al., "Relational Knowledge Distillation", CVPR 2019 (arXiv 1904.05068), §3.2.1; weight 25.

    Args:
        embeddings_s: student (B, D_s), B ≥ 2.
        embeddings_t: teacher (B, D_t).

    Returns:
        A scalar without unit, 0 for embeddings that agree up to rotation, translation and scale.

    Raises:
        ValueError: shapes that do not fit, or fewer than two images.

    Example:
        >>> triangle, line = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]), torch.tensor([[0.0], [1.0], [2.0]])
        >>> rkd_distance_loss(triangle, 2 * triangle + 1).item(), round(rkd_distance_loss(triangle, line).item(), 4)
        (0.0, 0.0556)
    """
    check_embeddings(embeddings_s, embeddings_t, minimum=2)
    with torch.autocast(embeddings_s.device.type, enabled=False):
        distances_s = relative_distances(at_least_float32(embeddings_s))
        return F.smooth_l1_loss(distances_s, relative_distances(teacher_side(embeddings_t)))


def rkd_angle_loss(embeddings_s: Tensor, embeddings_t: Tensor, *, anchors_at_once: int | None = None) -> Tensor:
    """RKD's angle-wise loss: Huber(cos_s,ijk − cos_t,ijk), mean over all B³ triplets.

    cos_ijk is the cosine at corner j of the triangle i, j, k; it does not see the scale. Huber's threshold is 1.
    Triplets that share j count as 0, as in the published code. Depends on the batch: under gradient accumulation,
    relations do not cross micro-batches.

    The inner products of the sides come from the Gram matrix, ⟨x_i − x_j, x_k − x_j⟩ = G_ik − G_ij − G_jk + G_jj, in
    float64 (where the device has it), because that difference cancels for points that are close. So no side is ever
    made, and time grows with B² · D + B³ instead of B³ · D.

    There are B³ angles, 262,144 for B = 64. They are made for `anchors_at_once` corners j at a time and made again in
    the backward pass, so what is held is about 3 · anchors_at_once · B² · 8 bytes per side. By default as many corners
    are taken as keep that below 32 MB: all at once for B = 64 (6 MB), 5 of them for B = 512. A single corner takes more
    from B = 1155 on, 100 MB for B = 2048. The time grows with B³ all the same: 512 images are 134 million angles.

    Reference: Park et al., "Relational Knowledge Distillation", CVPR 2019 (arXiv 1904.05068), §3.2.2; weight 50.

    Args:
        embeddings_s: student (B, D_s), B ≥ 3.
        embeddings_t: teacher (B, D_t).
        anchors_at_once: corners per step, ≥ 1; changes memory, not the value. Default: see above.

    Returns:
        A scalar without unit, 0 for embeddings that agree up to rotation, translation and scale.

    Raises:
        ValueError: shapes that do not fit, fewer than three images, or `anchors_at_once` below 1.

    Example:
        >>> triangle, line = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]), torch.tensor([[0.0], [1.0], [2.0]])
        >>> round(rkd_angle_loss(triangle, line).item(), 4)
        0.12
    """
    check_embeddings(embeddings_s, embeddings_t, minimum=3)
    batch = len(embeddings_s)
    if anchors_at_once is None:
        anchors_at_once = max(1, min(batch, ANGLE_BYTES // (3 * batch**2 * 8)))
    if anchors_at_once < 1:
        raise ValueError(f"anchors_at_once is {anchors_at_once}; it must be at least 1")
    with torch.autocast(embeddings_s.device.type, enabled=False):
        gram_s = _centred_gram(at_least_float32(embeddings_s))
        gram_t = _centred_gram(teacher_side(embeddings_t))
        total = gram_s.new_zeros(())
        for start in range(0, batch, anchors_at_once):
            anchors = slice(start, start + anchors_at_once)
            total = total + checkpoint(_angle_difference, gram_s, gram_t, anchors, use_reentrant=False)
        return (total / batch**3).to(at_least_float32(embeddings_s).dtype)


def similarity_preserving_loss(embeddings_s: Tensor, embeddings_t: Tensor) -> Tensor:
    """Similarity preserving: ‖G_s − G_t‖² / B², G the Gram matrix of the batch with rows of length 1.

    Rows are normalised so that neither side's scale counts, and B² makes it a mean over pairs. The value still falls
    with B, because the entries of a unit row shrink with 1 / √B (about .0073 at 32 and .0026 at 512): tune the weight
    for each batch size. Embeddings are not centred, as in the paper, so translation counts. Depends on the batch:
    under gradient accumulation, relations do not cross micro-batches.

    Reference: Tung & Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019 (arXiv 1907.09682), §3.1;
    weight 3000. torchdistill's rows have absolute sum 1, where the paper divides by their length.

    Args:
        embeddings_s: student (B, D_s), pooled or flattened maps, B ≥ 2.
        embeddings_t: teacher (B, D_t).

    Returns:
        A scalar without unit, 0 for embeddings that agree up to rotation and scale.

    Raises:
        ValueError: shapes that do not fit, or fewer than two images.

    Example:
        >>> unlike, alike = torch.eye(2), torch.ones(2, 1)
        >>> round(similarity_preserving_loss(unlike, alike).item(), 4)  # 1 − √½
        0.2929
    """
    check_embeddings(embeddings_s, embeddings_t, minimum=2)
    with torch.autocast(embeddings_s.device.type, enabled=False):
        return F.mse_loss(_row_unit_gram(at_least_float32(embeddings_s)), _row_unit_gram(teacher_side(embeddings_t)))


def check_embeddings(embeddings_s: Tensor, embeddings_t: Tensor, *, minimum: int) -> None:
    """Refuse anything but (B, D_s) and (B, D_t) with at least `minimum` images.

    Raises:
        ValueError: what came and what was expected.
    """
    if embeddings_s.ndim != 2 or embeddings_t.ndim != 2 or len(embeddings_s) != len(embeddings_t):
        raise ValueError(
            "expected embeddings (B, D) of one batch size, got student "
            f"{tuple(embeddings_s.shape)}, teacher {tuple(embeddings_t.shape)}; pool or flatten maps first"
        )
    if len(embeddings_s) < minimum:
        raise ValueError(
            f"this relation needs at least {minimum} images in the batch, got {len(embeddings_s)}; "
            "use a larger batch, or drop_last if the last one is short"
        )


def relative_distances(embeddings: Tensor) -> Tensor:
    """Euclidean distances between all points, divided by their mean over different points.

    Args:
        embeddings: (B, D), B ≥ 2, float32 or float64.

    Returns:
        (B, B), symmetric, diagonal 0, off-diagonal mean 1; all 0 if the points coincide.
    """
    points = _centred_to_unit_spread(embeddings)
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (len(points) * (len(points) - 1))
    return distances / mean.clamp_min(1e-12)


def _centred_to_unit_spread(embeddings: Tensor) -> Tensor:
    # Angles and relative distances do not see position and scale, so both are fixed here: no digits are lost to an
    # offset, and every epsilon below means the same for features of any size.
    return _to_unit_size(embeddings - embeddings.mean(0))


def _to_unit_size(points: Tensor) -> Tensor:
    return points / (points.square().sum(1).mean() + 1e-12).sqrt()


def _centred_gram(embeddings: Tensor) -> Tensor:
    points = _centred_to_unit_spread(embeddings)
    if points.device.type != "mps":  # it has no float64
        points = points.double()
    return points @ points.T


def _angle_difference(gram_s: Tensor, gram_t: Tensor, anchors: slice) -> Tensor:
    return F.smooth_l1_loss(_corner_cosines(gram_s, anchors), _corner_cosines(gram_t, anchors), reduction="sum")


def _corner_cosines(gram: Tensor, anchors: slice) -> Tensor:
    squares = gram.diagonal()
    to_anchor = gram[anchors]  # (A, B)
    products = gram[None] - to_anchor[:, :, None] - to_anchor[:, None, :] + squares[anchors, None, None]
    lengths = (squares[anchors, None] + squares[None] - 2 * to_anchor).clamp_min(0)
    # Inside the root, the epsilon bounds the gradient at equal points.
    inverse = (lengths + 1e-8).rsqrt()
    return products * inverse[:, :, None] * inverse[:, None, :]


def _row_unit_gram(embeddings: Tensor) -> Tensor:
    points = _to_unit_size(embeddings)
    gram = points @ points.T
    return gram / (gram.square().sum(1, keepdim=True) + 1e-8).sqrt()
