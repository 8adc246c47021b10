"""Learnable projectors from one stage map of the student to the space of one stage map of the teacher.

Only the student's side has weights: whatever trained on the teacher's side would collapse to a constant. The modules
return aligned pairs, student first, the teacher's part without gradient; a loss compares the two. They are dropped
after training.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import orthogonal

from hf_kdmri.distillation.precision import at_least_float32, teacher_side
from hf_kdmri.distillation.stage_maps import check_channels, check_map, resize_to_raster

AttentionTokens = tuple[Tensor, Tensor, Tensor]


class _StageProjector(nn.Module):
    """What projectors share: from one stage of the student to one of the teacher."""

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        check_channels([student_channels], side="student")
        check_channels([teacher_channels], side="teacher")
        self.student_channels = student_channels
        self.teacher_channels = teacher_channels

    def _check(self, map_s: Tensor, map_t: Tensor) -> None:
        check_map(map_s, self.student_channels, side="student")
        check_map(map_t, self.teacher_channels, side="teacher")
        if len(map_s) != len(map_t):
            raise ValueError(f"batch sizes differ: student {len(map_s)}, teacher {len(map_t)}")


class HintProjector(_StageProjector):
    """FitNet's regressor: a 1×1 convolution from the student's channels to the teacher's.

    The paper's regressor is a convolution whose kernel makes the sizes fit; here the student's map is resized and the
    kernel is 1×1, as in most later code. No normalisation follows. C_s · C_t + C_t parameters.

    Reference: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (arXiv 1412.6550), §2.2.

    Args:
        student_channels: C_s of the student's stage.
        teacher_channels: C_t of the teacher's stage.

    Raises:
        ValueError: fewer than one channel.

    Example:
        >>> hint = HintProjector(8, 12)
        >>> student, teacher = hint(torch.zeros(2, 8, 14, 14), torch.zeros(2, 12, 7, 7))
        >>> student.shape == teacher.shape == (2, 12, 7, 7)
        True
    """

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__(student_channels, teacher_channels)
        self.projection = nn.Conv2d(student_channels, teacher_channels, kernel_size=1)

    def forward(self, map_s: Tensor, map_t: Tensor) -> tuple[Tensor, Tensor]:
        """Project the student's map and bring it to the teacher's raster.

        Args:
            map_s: (B, C_s, H_s, W_s).
            map_t: (B, C_t, H_t, W_t).

        Returns:
            Two maps (B, C_t, H_t, W_t): the student's, projected, and the teacher's, at least float32 and without
            gradient.

        Raises:
            ValueError: channels or batch sizes do not fit.
        """
        self._check(map_s, map_t)
        return self.projection(resize_to_raster(map_s, _raster(map_t))), teacher_side(map_t)


class GroupwiseLinearProjector(_StageProjector):
    """GL: a linear layer from the student's channels to the teacher's for each neighbourhood of positions.

    The raster is cut into `groups_per_side`² rectangles; the positions of one rectangle share a layer. As in the paper,
    16 layers stand in for one per position, and dropout comes before them. Ours are the rate of dropout and
    the cuts, which are even so that any size of input works, where the paper has neighbourhoods of 4×4 on a 14×14
    raster. groups_per_side² · (C_s · C_t + C_t) parameters.

    The paper's loss for this projector is the squared difference of the pair, equation 6. Its multi-view adversarial
    training, equations 7 to 9, is left out.

    Reference: Liu et al., "Cross-Architecture Knowledge Distillation", ACCV 2022 (arXiv 2207.05273), equation 5.

    Args:
        student_channels: C_s of the student's stage.
        teacher_channels: C_t of the teacher's stage.
        groups_per_side: rectangles along the height and along the width.
        dropout: share of the student's channels set to 0 while training.

    Raises:
        ValueError: fewer than one channel or group, or a dropout outside 0 to 1.
    """

    def __init__(
        self, student_channels: int, teacher_channels: int, *, groups_per_side: int = 4, dropout: float = 0.1
    ) -> None:
        super().__init__(student_channels, teacher_channels)
        if groups_per_side < 1:
            raise ValueError(f"groups_per_side is {groups_per_side}; it must be at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; it must be at least 0 and below 1")
        self.groups_per_side = groups_per_side
        self.dropout = nn.Dropout(dropout)
        self.projections = nn.ModuleList(
            nn.Linear(student_channels, teacher_channels) for _ in range(groups_per_side**2)
        )

    def forward(self, map_s: Tensor, map_t: Tensor) -> tuple[Tensor, Tensor]:
        """Bring the student's map to the teacher's raster and project each position with its group's layer.

        Args:
            map_s: (B, C_s, H_s, W_s).
            map_t: (B, C_t, H_t, W_t), at least `groups_per_side` high and wide.

        Returns:
            Two maps (B, C_t, H_t, W_t): the student's, projected, and the teacher's, at least float32 and without
            gradient.

        Raises:
            ValueError: channels or batch sizes do not fit, or a raster with fewer positions than groups.
        """
        self._check(map_s, map_t)
        height, width = _raster(map_t)
        groups = self.groups_per_side
        if min(height, width) < groups:
            raise ValueError(
                f"a raster of {height}×{width} cannot be cut into {groups}×{groups} groups; take a finer stage, or set "
                f"groups_per_side to at most {min(height, width)}"
            )
        positions = self.dropout(resize_to_raster(map_s, (height, width)).permute(0, 2, 3, 1))
        rows = []
        for row, band in enumerate(positions.tensor_split(groups, dim=1)):
            cells = band.tensor_split(groups, dim=2)
            layers = self.projections[row * groups : (row + 1) * groups]
            rows.append(torch.cat([layer(cell) for layer, cell in zip(layers, cells, strict=True)], dim=2))
        return torch.cat(rows, dim=1).permute(0, 3, 1, 2), teacher_side(map_t)


class MaskedGenerationProjector(_StageProjector):
    """MGD: the teacher's whole map is generated from a part of the student's.

    A 1×1 convolution brings the student's channels to the teacher's (left out where they agree), a random part of the
    result is set to 0 while training, and two 3×3 convolutions with a ReLU between them generate the map. To be
    compared by `hint_loss`, equation 4 with a mean in place of the sum: multiply λ by C_t · H_t · W_t to repeat the
    published weights. C_s · C_t + 18 · C_t² parameters and biases, more than many a student has: for a stage of few
    channels.

    Reference: Yang et al., "Masked Generative Distillation", ECCV 2022 (arXiv 2205.01529), equations 2 to 4.

    Args:
        student_channels: C_s of the student's stage.
        teacher_channels: C_t of the teacher's stage.
        mask_ratio: λ of the paper, the share that is set to 0, from 0 to below 1. The published code has .15 for
            classification, the paper ½ for most of its detectors.
        over: "positions", as in the paper's equations, all channels of a position alike; or "channels", as in the
            published code for classification.

    Raises:
        ValueError: fewer than one channel, a ratio out of range, or another `over`.

    Example:
        >>> generate = MaskedGenerationProjector(8, 12)
        >>> student, teacher = generate(torch.zeros(2, 8, 14, 14), torch.zeros(2, 12, 7, 7))
        >>> student.shape == teacher.shape == (2, 12, 7, 7)
        True
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        *,
        mask_ratio: float = 0.5,
        over: Literal["positions", "channels"] = "positions",
    ) -> None:
        super().__init__(student_channels, teacher_channels)
        if not 0 <= mask_ratio < 1:
            raise ValueError(f"mask_ratio is {mask_ratio}; it must be at least 0 and below 1")
        if over not in ("positions", "channels"):
            raise ValueError(f"over is {over!r}; choose positions or channels")
        self.mask_ratio = mask_ratio
        self.over = over
        self.align: nn.Module = nn.Identity()
        if student_channels != teacher_channels:
            self.align = nn.Conv2d(student_channels, teacher_channels, kernel_size=1)
        self.generate = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(teacher_channels, teacher_channels, kernel_size=3, padding=1),
        )

    def forward(self, map_s: Tensor, map_t: Tensor) -> tuple[Tensor, Tensor]:
        """Bring the student's map to the teacher's raster and channels, hide a part of it, and generate the rest.

        Args:
            map_s: (B, C_s, H_s, W_s).
            map_t: (B, C_t, H_t, W_t).

        Returns:
            Two maps (B, C_t, H_t, W_t): the generated one, and the teacher's, at least float32 and without gradient.

        Raises:
            ValueError: channels or batch sizes do not fit.
        """
        self._check(map_s, map_t)
        aligned = self.align(resize_to_raster(map_s, _raster(map_t)))
        if self.training and self.mask_ratio > 0:
            shape = (len(aligned), 1, *_raster(aligned)) if self.over == "positions" else (*aligned.shape[:2], 1, 1)
            aligned = aligned * (torch.rand(shape, device=aligned.device) >= self.mask_ratio).to(aligned.dtype)
        return self.generate(aligned), teacher_side(map_t)


class OrthogonalProjector(_StageProjector):
    """V_kD: pooled features of the student, turned without stretching, against standardised ones of the teacher.

    A projection with orthonormal columns (rows, where the teacher has fewer channels) keeps all distances between the
    student's features, so what is learned must be learned by the student and not by the projector. The teacher's
    features are standardised over their channels (layer normalisation without weights), which the paper found right
    for telling classes apart. To be compared by `orthogonal_projection_loss`. C_s · C_t parameters.

    Features are pooled over all positions, as in the published code. Its projector is a matrix exponential; here it
    is torch's `orthogonal` parametrisation, which may choose Householder reflections.

    Reference: Miles, Elezi & Deng, "V_kD: Improving Knowledge Distillation using Orthogonal Projections", CVPR 2024
    (arXiv 2403.06213), §3.

    Args:
        student_channels: C_s of the student's stage.
        teacher_channels: C_t of the teacher's stage, at least 2, or there is nothing to standardise.

    Raises:
        ValueError: too few channels.

    Example:
        >>> project = OrthogonalProjector(8, 12)
        >>> student, teacher = project(torch.randn(2, 8, 14, 14), torch.randn(2, 12, 7, 7))
        >>> student.shape == teacher.shape == (2, 12)
        True
    """

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__(student_channels, teacher_channels)
        if teacher_channels < 2:
            raise ValueError("the teacher's stage has 1 channel, and one number cannot be standardised; take another")
        self.projection = orthogonal(nn.Linear(student_channels, teacher_channels, bias=False))

    def forward(self, map_s: Tensor, map_t: Tensor) -> tuple[Tensor, Tensor]:
        """Pool both maps, project the student's features and standardise the teacher's.

        Args:
            map_s: (B, C_s, H_s, W_s).
            map_t: (B, C_t, H_t, W_t).

        Returns:
            Features (B, C_t) of the student, projected, and of the teacher, without gradient and with mean 0 and
            variance 1 over the channels; both at least float32.

        Raises:
            ValueError: channels or batch sizes do not fit.
        """
        self._check(map_s, map_t)
        with torch.autocast(map_s.device.type, enabled=False):
            projected = self.projection(at_least_float32(map_s).mean((2, 3)))
            pooled = teacher_side(map_t).mean((2, 3))
            return projected, F.layer_norm(pooled, pooled.shape[1:])


def orthogonal_projection_loss(features_s: Tensor, features_t: Tensor) -> Tensor:
    """V_kD's difference: Huber's function of threshold 1 between projected and standardised features, mean over all.

    One image at a time, so gradient accumulation changes nothing.

    Reference: Miles, Elezi & Deng, CVPR 2024 (arXiv 2403.06213); the function is that of the published code.

    Args:
        features_s: the student's, from `OrthogonalProjector`, (B, D).
        features_t: the teacher's, likewise.

    Returns:
        A scalar in standard deviations of the teacher's features, 0 for equal ones.

    Raises:
        ValueError: shapes differ, are not (B, D), or hold no image.

    Example:
        >>> orthogonal_projection_loss(torch.tensor([[0.5, 3.0]]), torch.zeros(1, 2)).item()  # (0.125 + 2.5) / 2
        1.3125
    """
    if features_s.ndim != 2 or features_s.shape != features_t.shape or len(features_s) == 0:
        raise ValueError(
            f"expected features of one shape (B, D) with an image, got student {tuple(features_s.shape)}, teacher "
            f"{tuple(features_t.shape)}; OrthogonalProjector makes them from maps"
        )
    with torch.autocast(features_s.device.type, enabled=False):
        return F.smooth_l1_loss(at_least_float32(features_s), teacher_side(features_t))


class PartialCrossAttentionProjector(_StageProjector):
    """PCA: queries, keys and values from the student's map, to be matched with the teacher's.

    Three 3×3 convolutions give the student's Q, K and V, equation 1; `partial_cross_attention_loss` holds equations 2
    to 4. 27 · C_s · C_t parameters, more than many a student has: for one stage of few channels.

    Simplified: one head; and the teacher's Q, K and V are not those of its last attention block, which a convolutional
    teacher does not have, but `attention_tokens` of its map. Where a transformer's own are at hand, give them to the
    loss instead. Positions, not a class token, are compared. Multi-view adversarial training is left out. The
    convolutions have no bias: a constant added to all keys cancels in the softmax.

    Reference: Liu et al., "Cross-Architecture Knowledge Distillation", ACCV 2022 (arXiv 2207.05273), equation 1.

    Args:
        student_channels: C_s of the student's stage.
        teacher_channels: C_t of the teacher's stage, the width d of the attention.

    Raises:
        ValueError: fewer than one channel.
    """

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__(student_channels, teacher_channels)
        self.query, self.key, self.value = (
            nn.Conv2d(student_channels, teacher_channels, kernel_size=3, padding=1, bias=False) for _ in range(3)
        )

    def forward(self, map_s: Tensor, map_t: Tensor) -> tuple[AttentionTokens, AttentionTokens]:
        """Queries, keys and values of both sides, at the positions of the teacher's raster.

        Args:
            map_s: (B, C_s, H_s, W_s).
            map_t: (B, C_t, H_t, W_t) with P = H_t · W_t of at least 2.

        Returns:
            (Q, K, V) of the student and (Q, K, V) of the teacher, the latter without gradient; each (B, P, C_t).

        Raises:
            ValueError: channels or batch sizes do not fit, or a raster of one position.
        """
        self._check(map_s, map_t)
        resized = resize_to_raster(map_s, _raster(map_t))
        query, key, value = (layer(resized).flatten(2).mT for layer in (self.query, self.key, self.value))
        return (query, key, value), attention_tokens(map_t)


def attention_tokens(map_t: Tensor, *, temperature: float = 0.25) -> AttentionTokens:
    """Queries, keys and values of a map of any network, without weights: cosine self-attention of its positions.

    Each position's channels, less their mean over the image, are scaled to unit length u. Then Q = K = u · (√d / τ)^½
    and V = u · d^¼, so that Q Kᵀ / √d is the cosine over τ and V Vᵀ / √d the cosine. At τ = ¼ a position weighs itself
    e⁴, about 55, times an unrelated one, so that neither it nor the many others drown out the rest.

    Args:
        map_t: teacher map (B, d, H, W), P = H · W of at least 2.
        temperature: τ > 0.

    Returns:
        Q, K and V, each (B, P, d), at least float32, without gradient.

    Raises:
        ValueError: one position only, another number of axes, or a temperature that is not positive.
    """
    if map_t.ndim != 4 or map_t.shape[2] * map_t.shape[3] < 2:
        raise ValueError(
            f"attention needs a map (B, C, H, W) with at least two positions, got {tuple(map_t.shape)}; take a finer "
            f"stage or a larger input"
        )
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature is {temperature}; it must be a finite number above 0")
    tokens = teacher_side(map_t).flatten(2).mT
    tokens = F.normalize(tokens - tokens.mean(1, keepdim=True), dim=2) * tokens.shape[2] ** 0.25
    return tokens * temperature**-0.5, tokens * temperature**-0.5, tokens


def partial_cross_attention_loss(
    qkv_s: AttentionTokens, qkv_t: AttentionTokens, *, swap_probability: float = 0.5
) -> Tensor:
    """Difference of attention outputs, the student's with part of its Q, K and V swapped for the teacher's.

    L = mean (Attn_t − PCAttn_s)² + mean (V_t V_tᵀ / √d − V_s V_sᵀ / √d)², with Attn = softmax(Q Kᵀ / √d) V over the
    positions, and PCAttn the same after each single element of Q_s, K_s and V_s was replaced by the teacher's with
    probability `swap_probability`, drawn anew at each call: the student's must be usable beside the teacher's. The
    paper writes squared norms; means keep the value's size as B, P and d change. Computed in float32. The products of
    values take B · P² numbers: 42 MB for 24×24 positions and 32 images.

    Reference: Liu et al., "Cross-Architecture Knowledge Distillation", ACCV 2022 (arXiv 2207.05273), equations 2 to 4.

    Args:
        qkv_s: the student's queries, keys and values, each (B, P, d).
        qkv_t: the teacher's, likewise.
        swap_probability: share of elements taken from the teacher, 0 to 1; 0 is plain self-attention.

    Returns:
        A scalar without unit, 0 for equal Q, K and V.

    Raises:
        ValueError: shapes differ, or a probability outside 0 to 1.
    """
    shapes = [tuple(tokens.shape) for tokens in (*qkv_s, *qkv_t)]
    if len(shapes) != 6 or len(set(shapes)) != 1 or len(shapes[0]) != 3:
        raise ValueError(f"expected Q, K and V of one shape (B, P, d) on both sides, got {shapes}")
    if not 0 <= swap_probability <= 1:
        raise ValueError(f"swap_probability is {swap_probability}; it must be from 0 to 1")
    with torch.autocast(qkv_s[0].device.type, enabled=False):
        student = [at_least_float32(tokens) for tokens in qkv_s]
        teacher = [teacher_side(tokens) for tokens in qkv_t]
        crossed = [
            torch.where(torch.rand_like(own) < swap_probability, other, own)
            for own, other in zip(student, teacher, strict=True)
        ]
        attention = F.mse_loss(_attention(*crossed), _attention(*teacher))
        return attention + F.mse_loss(_scaled_product(student[2]), _scaled_product(teacher[2]))


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value)


def _scaled_product(value: Tensor) -> Tensor:
    return value @ value.mT / value.shape[2] ** 0.5


def _raster(maps: Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]
