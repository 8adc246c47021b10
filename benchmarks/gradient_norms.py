#!/usr/bin/env python
"""How hard each term of the loss pulls at the student, beside the cross-entropy: what the λ are chosen by.

    python benchmarks/gradient_norms.py --teacher runs/figshare/teacher --data_dir DIR_WITH_THE_ZIPS

For batches of training views, at the student's first weights (or those of --student), the norm of the gradient of every
unweighted term with respect to the student's weights is divided by that of the cross-entropy. A λ of 1 / ratio makes a
term pull as hard as the labels do.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console
from rich.table import Table

from hf_kdmri import DistillationModel, StudentForImageClassification, TeacherForImageClassification
from hf_kdmri.data.augmentation import RandomViews
from hf_kdmri.data.loading import load_slices
from hf_kdmri.data.views import prepare_views
from hf_kdmri.distillation import LossOptions


def main() -> None:
    """Measure, print a table, write JSON."""
    arguments = parse_arguments()
    PartialState(cpu=True)
    teacher = TeacherForImageClassification.from_pretrained(arguments.teacher)
    if arguments.student:
        student = StudentForImageClassification.from_pretrained(arguments.student)
    else:
        torch.manual_seed(0)
        student = StudentForImageClassification.from_timm(
            arguments.student_architecture, labels=teacher.labels, image_size=arguments.image_size
        )
    splits = load_slices(data_dir=arguments.data_dir, cache_dir=arguments.cache_dir, split="patient_groups", fold=0)
    views = prepare_views(splits["train"], arguments.image_size)
    options = LossOptions(
        geometry_weight=1.0,
        sample_weight=1.0,
        exit_weight=1.0,
        feature_weight=1.0,
        feature_loss=arguments.feature_loss,
    )
    model = DistillationModel(student, teacher, loss_options=options).train()
    rows = np.random.default_rng(0).permutation(len(views))
    ratios: dict[str, list[float]] = {}
    for batch in range(arguments.batches):
        item = views.__getitems__(rows[batch * arguments.batch_size : (batch + 1) * arguments.batch_size].tolist())
        pixels = RandomViews()(item["pixel_values"], item["index"], seed=0, epoch=0)
        terms = model(pixels, labels=item["labels"]).terms
        norms = {name: gradient_norm(term, student) for name, term in terms.items()}
        for name, norm in norms.items():
            ratios.setdefault(name, []).append(norm / norms["ce"])
    table = Table(title=f"gradient / that of the cross-entropy, {arguments.batches} batches of {arguments.batch_size}")
    for heading in ("term", "median", "min–max"):
        table.add_column(heading, justify="left" if heading == "term" else "right")
    for name, values in ratios.items():
        table.add_row(name, f"{np.median(values):.4f}", f"{min(values):.4f}–{max(values):.4f}")
    Console(width=100).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(ratios, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="folder or Hub name of a fine-tuned teacher")
    parser.add_argument("--student", help="folder of a student (default: untrained --student_architecture)")
    parser.add_argument("--student_architecture", default="mobilenetv4_conv_small", help="default: %(default)s")
    parser.add_argument("--image_size", type=int, default=128, help="of student and views (default: %(default)s)")
    parser.add_argument("--feature_loss", default="attention_transfer", help="default: %(default)s")
    parser.add_argument("--data_dir", help="folder with the published zips (default: download)")
    parser.add_argument("--cache_dir", help="where prepared slices are kept")
    parser.add_argument("--batches", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--batch_size", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return parser.parse_args()


def gradient_norm(term: torch.Tensor, student: torch.nn.Module) -> float:
    """Length of the gradient of one term over all of the student's weights."""
    gradients = torch.autograd.grad(term, list(student.parameters()), retain_graph=True, allow_unused=True)
    return torch.stack([gradient.norm() for gradient in gradients if gradient is not None]).norm().item()


if __name__ == "__main__":
    main()
