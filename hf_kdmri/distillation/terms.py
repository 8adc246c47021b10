"""The terms that a teacher adds to the cross-entropy, from the outputs of both models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_kdmri.distillation.feature_maps import attention_transfer_loss, hcl_loss, hint_loss
from hf_kdmri.distillation.gathering import gather_together
from hf_kdmri.distillation.geometry import fused_embedding, fused_spatial_kernel, kernel_difference
from hf_kdmri.distillation.heads import middle_pair
from hf_kdmri.distillation.kernels import cka_loss, gromov_wasserstein_loss
from hf_kdmri.distillation.lesions import lesion_weights
from hf_kdmri.distillation.logits import dist_loss, dkd_loss, kd_loss, ofa_loss
from hf_kdmri.distillation.options import LossOptions
from hf_kdmri.distillation.projectors import orthogonal_projection_loss, partial_cross_attention_loss
from hf_kdmri.distillation.samples import rkd_angle_loss, rkd_distance_loss, similarity_preserving_loss

FEWEST_IMAGES = 4  # debiased CKA divides by B − 3


@dataclass(frozen=True)
class Features:
    """What one model says of a batch.

    Attributes:
        logits: (B, K), in the student's order of classes.
        stages: maps (B, C_i, H_i, W_i), finest first; empty where no term needs them.
    """

    logits: Tensor
    stages: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class TeacherTargets:
    """What the terms need of the teacher, small enough to be kept on disk but for the stage maps.

    Attributes:
        logits: (B, K), in the student's order of classes.
        kernel: fused spatial kernels (B, P, P); None where the term `geometry` is off.
        embedding: fused embeddings (B, D); None where the term `sample` is off.
        stages: maps (B, C_i, H_i, W_i), finest first; empty where no term needs the maps themselves.
    """

    logits: Tensor
    kernel: Tensor | None = None
    embedding: Tensor | None = None
    stages: tuple[Tensor, ...] = ()

    def shuffled(self) -> TeacherTargets:
        """What the teacher says of the next image of the batch, the first one's neighbour being the last."""
        logits, kernel, embedding = (
            None if value is None else value.roll(1, 0) for value in (self.logits, self.kernel, self.embedding)
        )
        assert logits is not None
        return TeacherTargets(logits, kernel, embedding, tuple(maps.roll(1, 0) for maps in self.stages))


@torch.no_grad()
def teacher_targets(options: LossOptions, teacher: Features) -> TeacherTargets:
    """Reduce the teacher's output to what the terms whose λ is above 0 compare.

    Args:
        options: which terms, and their numbers.
        teacher: logits and, where a term needs them, stage maps.
    """
    stages = tuple(maps.detach() for maps in teacher.stages)
    kernel = embedding = None
    if options.geometry_weight > 0:
        kernel = fused_spatial_kernel(stages, weights=options.stage_weights, grid=options.geometry_grid)
    if options.sample_weight > 0:
        embedding = fused_embedding(stages, weights=options.stage_weights)
    return TeacherTargets(teacher.logits.detach(), kernel, embedding, stages if options.needs_teacher_maps else ())


def distillation_terms(
    options: LossOptions,
    heads: Mapping[str, nn.Module] | nn.ModuleDict,
    student: Features,
    teacher: Features | TeacherTargets,
    labels: Tensor,
    masks: Tensor | None = None,
    *,
    equal_batches: bool = False,
) -> dict[str, Tensor]:
    """Compute every term whose λ is above 0.

    Terms between images (sample, and dist on the logits) see the batches of all processes at once; what they need is
    gathered in one collective. They do not cross the micro-batches of gradient accumulation; and a batch of fewer than
    4 images has no such term: it counts 0.

    Args:
        options: which terms, and their numbers.
        heads: the modules of `DistillationHeads`.
        student: with gradient.
        teacher: without; its whole output, or what `teacher_targets` made of it.
        labels: (B,) class indices.
        masks: (B, 1, H, W) tumour masks, uint8 with 255 inside, needed for `lesion_weighting`.
        equal_batches: B is known to be the same on all processes, so that the sizes need no collective of their own.

    Returns:
        Unweighted terms by name, each a scalar.

    Raises:
        ValueError: lesion weighting without masks.
    """
    if isinstance(teacher, Features):
        teacher = teacher_targets(options, teacher)
    if options.shuffle_teacher:
        teacher = teacher.shuffled()
    of_all = _rows_of_all(options, student, teacher, equal_batches)
    terms = {}
    if options.logit_weight > 0:
        terms["logit"] = _logit_term(options, student.logits, teacher.logits, labels, of_all)
    if options.geometry_weight > 0:
        terms["geometry"] = kernel_difference(
            fused_spatial_kernel(student.stages, weights=options.stage_weights, grid=options.geometry_grid),
            _asked_for(teacher.kernel, "geometry"),
            mask=_position_weights(masks) if options.lesion_weighting else None,
            difference=options.geometry_difference,  # type: ignore[arg-type]  # checked in the options
        )
    if options.sample_weight > 0:
        terms["sample"] = _between_images(_SAMPLE_LOSSES[options.sample_loss], *of_all["sample"])
    if options.exit_weight > 0:
        logits = heads["exit"](student.stages).float()
        terms["exit"] = F.cross_entropy(logits, labels) + ofa_loss(
            logits, teacher.logits, labels, gamma=options.ofa_gamma
        )
    if options.feature_weight > 0:
        terms["feature"] = _feature_term(options, heads, student, teacher, labels)
    return terms


def _rows_of_all(
    options: LossOptions, student: Features, teacher: TeacherTargets, equal_batches: bool
) -> dict[str, list[Tensor]]:
    """What the terms between images compare, student's and teacher's, of all processes."""
    mine: dict[str, list[Tensor]] = {}
    if options.logit_weight > 0 and options.logit_loss == "dist":
        mine["logit"] = [student.logits, teacher.logits]
    if options.sample_weight > 0:
        embedding = fused_embedding(student.stages, weights=options.stage_weights)
        mine["sample"] = [embedding, _asked_for(teacher.embedding, "sample")]
    rows = iter(gather_together([tensor for pair in mine.values() for tensor in pair], equal_batches=equal_batches))
    return {term: [next(rows), next(rows)] for term in mine}


def _asked_for(target: Tensor | None, term: str) -> Tensor:
    if target is None:
        raise ValueError(f"the term {term!r} is on, but the teacher's targets were made without it; make them again")
    return target


def _position_weights(masks: Tensor | None) -> Tensor:
    if masks is None:
        raise ValueError("lesion_weighting needs a tumour mask for every image; give masks, or switch it off")
    return lesion_weights(masks > 127)


def _logit_term(
    options: LossOptions, zs: Tensor, zt: Tensor, labels: Tensor, of_all: Mapping[str, list[Tensor]]
) -> Tensor:
    shared: dict[str, Any] = {"temperature": options.temperature, "standardize": options.standardize_logits}
    if options.logit_loss == "dkd":
        return dkd_loss(zs, zt, labels, alpha=options.dkd_alpha, beta=options.dkd_beta, **shared)
    if options.logit_loss == "dist":

        def between(all_s: Tensor, all_t: Tensor) -> Tensor:
            return dist_loss(all_s, all_t, beta=options.dist_beta, gamma=options.dist_gamma, **shared)

        return _between_images(between, *of_all["logit"])
    return kd_loss(zs, zt, **shared)


def _rkd(embeddings_s: Tensor, embeddings_t: Tensor) -> Tensor:
    # The paper's λ are 25 for distances and 50 for angles.
    return rkd_distance_loss(embeddings_s, embeddings_t) + 2 * rkd_angle_loss(embeddings_s, embeddings_t)


_SAMPLE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rkd": _rkd,
    "similarity_preserving": similarity_preserving_loss,
    "cka": cka_loss,
    "gromov_wasserstein": gromov_wasserstein_loss,
}


def _between_images(loss: Callable[[Tensor, Tensor], Tensor], of_student: Tensor, of_teacher: Tensor) -> Tensor:
    if len(of_student) < FEWEST_IMAGES:
        return (of_student * 0).sum()
    return loss(of_student, of_teacher)


def _feature_term(
    options: LossOptions,
    heads: Mapping[str, nn.Module] | nn.ModuleDict,
    student: Features,
    teacher: TeacherTargets,
    labels: Tensor,
) -> Tensor:
    loss = options.feature_loss
    if loss == "attention_transfer":
        return attention_transfer_loss(*middle_pair(student.stages, teacher.stages))
    head = heads["feature"]
    if loss == "review":
        rasters = [(maps.shape[-2], maps.shape[-1]) for maps in teacher.stages]
        fused = head(student.stages, sizes=rasters)
        return torch.stack([hcl_loss(s, t) for s, t in zip(fused, teacher.stages, strict=True)]).sum()
    if loss == "ofa":
        exits = head(student.stages)
        return torch.stack(
            [ofa_loss(logits, teacher.logits, labels, gamma=options.ofa_gamma) for logits in exits]
        ).mean()
    aligned = head(*middle_pair(student.stages, teacher.stages))
    if loss == "partial_cross_attention":
        return partial_cross_attention_loss(*aligned)
    return orthogonal_projection_loss(*aligned) if loss == "orthogonal_projection" else hint_loss(*aligned)
