"""Cases for `compare_with_originals.py`: our loss, the published one, the inputs, and why they differ where they do.

Each function takes a folder with published code, imports what it needs of it, which runs it, and returns cases.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_kdmri.distillation.feature_maps import attention_transfer_loss, hcl_loss, hint_loss
from hf_kdmri.distillation.fusion import ReviewFusion
from hf_kdmri.distillation.logits import dist_loss, dkd_loss, kd_loss, ofa_loss
from hf_kdmri.distillation.samples import rkd_angle_loss, rkd_distance_loss, similarity_preserving_loss

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # student, teacher, labels


@dataclass
class Case:
    """One loss on one kind of input, ours and the published; `note` is the reason of a difference."""

    loss: str
    inputs: str
    ours: Loss
    theirs: Loss
    note: str = ""


def unlabelled(loss: Callable[..., Tensor], **options: Any) -> Loss:
    """A loss that does without labels."""
    return lambda student, teacher, labels: loss(student, teacher, **options)


DISTANCE, ANGLE, SIMILARITY = map(unlabelled, (rkd_distance_loss, rkd_angle_loss, similarity_preserving_loss))
HINT, HCL, ATTENTION = map(unlabelled, (hint_loss, hcl_loss, attention_transfer_loss))
UNDERFLOW = "their log(softmax) is −inf once a probability underflows, in float32"
DIGITS = "their |x|² + |y|² − 2 x·y loses its digits far from 0, in float32"


def load(package_folder: Path, module: str, alias: str) -> Any:
    """Import one module of a package without running the package's `__init__`, which may want much more."""
    if not package_folder.is_dir():
        sys.exit(f"no folder {package_folder}; give the top folder of a clone")
    if alias not in sys.modules:
        package = types.ModuleType(alias)
        package.__path__ = [str(package_folder)]
        sys.modules[alias] = package
    return importlib.import_module(f"{alias}.{module}")


def rkd_cases(folder: Path) -> list[Case]:
    """Park et al., CVPR 2019, with their versions of others."""
    theirs = load(folder / "metric", "loss", "metric")  # its modules import each other under this name
    distance, angle = unlabelled(theirs.RkdDistance()), unlabelled(theirs.RKdAngle())
    hint = theirs.FitNet(6, 6).double()
    torch.nn.init.dirac_(hint.transform.weight)  # a regressor that changes nothing
    return [
        Case("RKD distance", "embeddings", DISTANCE, distance),
        Case("RKD distance", "embeddings + 1000", DISTANCE, distance, DIGITS),
        Case("RKD angle", "embeddings", ANGLE, angle),
        Case("RKD angle", "embeddings + 1000", ANGLE, angle),
        Case("attention", "maps", ATTENTION, unlabelled(theirs.AttentionTransfer())),
        Case("hint", "maps", HINT, unlabelled(hint)),
    ]


def reviewkd_cases(folder: Path) -> list[Case]:
    """Chen et al., CVPR 2021."""
    theirs = load(folder / "ImageNet" / "models", "reviewkd", "published_reviewkd")
    hcl = unlabelled(lambda student, teacher: theirs.hcl([student], [teacher]))
    oblong = "they choose the grids by the height alone, so 4×4 of a map of 8×4; we by the shorter side"
    return [
        Case("HCL", "maps", HCL, hcl),
        Case("HCL", "maps, oblong", HCL, hcl, oblong),
        Case("ABF and HCL", "maps", *both_fusions(theirs)),
    ]


def both_fusions(module: Any) -> tuple[Loss, Loss]:
    """Our fusion and theirs with the same weights, on three scales of the student's map, then HCL to the teacher's."""
    ours = ReviewFusion([6, 6, 6], [6, 6, 6], mid_channels=8).double()
    theirs = module.ReviewKD(lambda stages, is_feat: (stages, None), [6, 6, 6], [6, 6, 6], 8).double()
    theirs.shapes = [4, 8, 16]
    renamed = {"conv1.": "lateral.", "conv2.": "output.", "att_conv.0.": "gate."}
    for block, original in zip(ours.blocks, reversed(list(theirs.abfs)), strict=True):
        state = original.state_dict()
        for name, our_name in renamed.items():
            state = {key.replace(name, our_name): value for key, value in state.items()}
        block.load_state_dict(state)

    def scales(maps: Tensor) -> list[Tensor]:
        return [maps, F.avg_pool2d(maps, 2), F.avg_pool2d(maps, 4)]

    def total(outputs: list[Tensor], teacher: Tensor) -> Tensor:
        return torch.stack([hcl_loss(*pair) for pair in zip(outputs, scales(teacher), strict=True)]).sum()

    return (
        lambda student, teacher, labels: total(ours(scales(student)), teacher),
        lambda student, teacher, labels: total(theirs(scales(student))[0], teacher),
    )


def mdistiller_cases(folder: Path) -> list[Case]:
    """Zhao et al., CVPR 2022 (DKD), with their versions of others."""
    dkd, rkd, attention, similarity, review = (
        load(folder / "mdistiller" / "distillers", name, "published_mdistiller")
        for name in ("DKD", "RKD", "AT", "SP", "ReviewKD")
    )

    def dkd_case(inputs: str, temperature: float, note: str = "") -> Case:
        numbers: dict[str, Any] = {"alpha": 1.0, "beta": 4.0, "temperature": temperature}
        return Case(
            f"DKD, T {temperature:g}", inputs, partial(dkd_loss, **numbers), partial(dkd.dkd_loss, **numbers), note
        )

    rkd_ours = unlabelled(lambda student, teacher: 25 * rkd_distance_loss(student, teacher))
    rkd_theirs = unlabelled(rkd.rkd_loss, distance_weight=25, angle_weight=0)
    attention_theirs = unlabelled(attention.single_stage_at_loss, p=2)
    return [
        dkd_case("logits", 4.0),
        dkd_case("logits × 50", 1.0, UNDERFLOW),
        Case("RKD distance × 25", "embeddings", rkd_ours, rkd_theirs),
        Case("attention", "maps", ATTENTION, attention_theirs),
        Case("attention", "maps, unlike", ATTENTION, attention_theirs),
        Case("HCL", "maps", HCL, unlabelled(lambda student, teacher: review.hcl_loss([student], [teacher]))),
        Case("similarity", "embeddings", SIMILARITY, unlabelled(similarity.similarity_loss)),
    ]


def dist_cases(folder: Path) -> list[Case]:
    """Huang et al., NeurIPS 2022."""
    theirs = load(folder / "segmentation" / "losses", "dist_kd", "published_dist").DIST(beta=2.0, gamma=1.5)
    return [Case("DIST", "logits", unlabelled(dist_loss, beta=2.0, gamma=1.5), unlabelled(theirs))]


def ofa_cases(folder: Path) -> list[Case]:
    """Hao et al., NeurIPS 2023, with their version of DIST, which has a temperature."""
    theirs = load(folder / "distillers", "ofa", "published_ofa")
    dist = load(folder / "distillers", "dist", "published_ofa").dist_loss
    squared = "they multiply by T² = 16, a correlation needs none: ours is a sixteenth"

    def ofa(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return theirs.ofa_loss(student, teacher, F.one_hot(labels, student.shape[1]), eps=1.5)

    ours = partial(ofa_loss, gamma=1.5)
    return [
        Case("OFA", "logits", ours, ofa),
        Case("OFA", "logits × 50", ours, ofa, UNDERFLOW),
        Case("DIST, T 1", "logits", unlabelled(dist_loss), unlabelled(dist)),
        Case("DIST, T 4", "logits", unlabelled(dist_loss, temperature=4.0), unlabelled(dist, temperature=4.0), squared),
    ]


def torchdistill_cases(folder: Path) -> list[Case]:
    """Matsubara's package of many losses."""
    if not (folder / "torchdistill").is_dir():
        sys.exit(f"no folder {folder / 'torchdistill'}; give the folder that holds the installed package")
    sys.path.insert(0, str(folder))
    module = importlib.import_module("torchdistill.losses.mid_level")
    logits: dict[str, Any] = {"student_module_path": "layer", "student_module_io": "output"}
    logits |= {"teacher_module_path": "layer", "teacher_module_io": "output"}
    layers: dict[str, Any] = {"student_output_path": "layer", "teacher_output_path": "layer", "reduction": "mean"}
    pair = {side: {"path": "layer", "io": "output"} for side in ("student", "teacher")}

    def theirs(name: str, *, factor: float = 1.0, **options: Any) -> Loss:
        loss = getattr(module, name)(**options)
        return lambda student, teacher, labels: (
            factor * loss({"layer": {"output": student}}, {"layer": {"output": teacher}})
        )

    def hcl(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        loss = module.HierarchicalContextLoss(**logits)
        return loss({"layer": {"output": (student, None)}}, {"layer": {"output": teacher}})

    at_1, at_4 = (theirs("KDLoss", temperature=temperature, beta=1.0, **logits) for temperature in (1.0, 4.0))
    standard = theirs("LogitStdKDLoss", temperature=2.0, beta=1.0, factor=4.0, **logits)
    distance = theirs("RKDLoss", dist_factor=1.0, angle_factor=0.0, **layers)
    angle = theirs("RKDLoss", dist_factor=0.0, angle_factor=1.0, **layers)
    similarity = theirs("SPKDLoss", **{**layers, "reduction": "batchmean"})
    no_square = "they leave T² out where there is no hard loss: ours is 16 times theirs"
    absolute = "their rows have absolute sum 1 (p = 1 by position in normalize), the paper's and ours length 1"
    return [
        Case("KD, T 1", "logits", unlabelled(kd_loss, temperature=1.0), at_1),
        Case("KD, T 4", "logits", unlabelled(kd_loss), at_4, no_square),
        Case("KD, standardised × T²", "logits", unlabelled(kd_loss, temperature=2.0, standardize=True), standard),
        Case("DIST", "logits", unlabelled(dist_loss), theirs("DISTLoss", **logits)),
        Case("RKD distance", "embeddings", DISTANCE, distance),
        Case("RKD angle", "embeddings", ANGLE, angle),
        Case("similarity", "embeddings", SIMILARITY, similarity, absolute),
        Case("attention", "maps", ATTENTION, theirs("ATLoss", at_pairs={"pair": pair}, mode="code")),
        Case("HCL", "maps", HCL, hcl),
    ]
