"""Quantise an exported ONNX file to 8 bits on real images, and measure what that costs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hf_kdmri.export.checks import ExportError, require
from hf_kdmri.export.source import INPUT
from hf_kdmri.onnx_inference import OnnxImageClassifier
from hf_kdmri.whole_files import whole_file
from hf_kdmri.wording import counted

if TYPE_CHECKING:
    import onnx

Item = TypeVar("Item")
MAX_DROP = 0.3  # points of accuracy
MIN_LABELLED = 300  # fewer images say nothing about a drop of that size
_BATCH = 8
_LEAST_SPREAD = 0.05  # of the logits over the images, a share of float32's
_EXTRA = ("onnx", "onnxruntime")


@dataclass(frozen=True)
class QuantizationReport:
    """What an int8 file was made with and what it lost; stored in its metadata as JSON under `quantization`.

    Args:
        calibration_images: on which the ranges of the activations were found.
        float_nodes: names of the nodes left in float32: the first convolution and the classifier.
        operators: kinds of operators that were quantised; all that onnxruntime can where None.
        reduce_range: whether weights have 7 bits.
        measured_images: on which the two files were compared.
        agreement: share of those on which both name the same class.
        labelled: whether their classes are known; if not, they are the calibration images and there is no accuracy.
        accuracy_float32: of the source file, 0 to 1.
        accuracy_int8: of the int8 file, 0 to 1.
        source: what the calibration images are, in a few words.
    """

    calibration_images: int
    float_nodes: list[str] = field(repr=False)
    operators: list[str] | None
    reduce_range: bool
    measured_images: int
    agreement: float
    labelled: bool
    accuracy_float32: float | None
    accuracy_int8: float | None
    source: str = ""

    @property
    def drop(self) -> float | None:
        """Points of accuracy lost: negative where int8 was right more often."""
        if self.accuracy_float32 is None or self.accuracy_int8 is None:
            return None
        return 100 * (self.accuracy_float32 - self.accuracy_int8)

    @property
    def is_enough(self) -> bool:
        """Whether there were enough labelled images to hold the drop to a limit."""
        return self.labelled and self.measured_images >= MIN_LABELLED

    def describe(self) -> str:
        """One sentence for people."""
        text = f"the same class as float32 on {self.agreement:.1%} of {counted(self.measured_images, 'image')}"
        if self.drop is None:
            return f"{text}; no labelled images, so no accuracy"
        return (
            f"{text}; accuracy {self.accuracy_float32:.2%} in float32 and {self.accuracy_int8:.2%} in int8: "
            f"a drop of {self.drop:.2f} points"
        )


def quantize_onnx(
    onnx_file: str | Path,
    out_file: str | Path,
    images: Iterable[Image.Image],
    *,
    labelled: Iterable[tuple[Image.Image, int]] = (),
    max_drop: float | None = MAX_DROP,
    reduce_range: bool = False,
    source: str = "",
) -> QuantizationReport:
    """Quantise statically: weights to int8 per channel, activations to uint8 by their smallest and largest values.

    The file is in QDQ form (QuantizeLinear and DequantizeLinear around each operator), which onnxruntime, also in the
    browser, and OpenVINO run as int8. The first convolution and the classifier stay in float32: the largest errors came
    from them, and no time was lost. Where there is attention (Softmax), only convolutions and products with constant
    weights are quantised: sums and attention itself lost accuracy there and gained no speed (docs/export.md).

    Args:
        onnx_file: written by `export_onnx`.
        out_file: where the int8 file goes; folders are made, an existing file is replaced on success.
        images: training images, RGB, 100 or more; read once, a batch at a time.
        labelled: images not trained on, each with the index of its class. Without them, only the agreement of the
            predicted classes is measured, on `images`.
        max_drop: points of accuracy that may be lost. It is held to from `MIN_LABELLED` images on, and one image is
            always forgiven, since less cannot be told. None for any loss.
        reduce_range: weights of 7 bits, which cannot overflow on x86 CPUs without VNNI instructions.
        source: what `images` are, in a few words; kept in the file.

    Returns:
        What was measured; the file carries it, and the metadata of `onnx_file` but for a temperature.

    Raises:
        ImportError: the extra `onnx` is not installed.
        ValueError: no images, or the file is not one of ours or is int8 already.
        ExportError: the accuracy fell by more than `max_drop`, the int8 file says the same of every image, or nothing
            could be quantised; nothing is written.
    """
    require(_EXTRA, "onnx", "int8 export")
    import onnx

    before = OnnxImageClassifier(onnx_file)
    if before.is_int8:
        raise ValueError(f"{onnx_file} is int8 already; give the float32 file")
    batches = [before.prepare(batch) for batch in _batched(images)]
    if not batches:
        raise ValueError("int8 needs calibration images, and there are none; give training images")
    out_file = Path(out_file)
    with tempfile.TemporaryDirectory() as scratch:
        unchecked = Path(scratch) / "int8.onnx"
        settings = _quantize(Path(onnx_file), unchecked, batches, reduce_range)
        model = onnx.load(unchecked)
        # Quantisation drops the metadata. A temperature belongs to the weights that it was fitted with.
        facts = {key: value for key, value in before.facts.items() if key != "temperature"}
        onnx.helper.set_model_props(model, facts)
        onnx.save_model(model, unchecked)
        after = OnnxImageClassifier(unchecked)
        answers = [_answers(before, after, batch) for batch in batches]
        _refuse_one_answer(answers)
        report = QuantizationReport(
            calibration_images=sum(map(len, batches)),
            reduce_range=reduce_range,
            source=source,
            **settings,
            **_measure(before, after, answers, labelled),
        )
    if max_drop is not None and report.drop is not None and report.is_enough:
        lost = round(report.drop / 100 * report.measured_images)
        if lost > max(1, max_drop / 100 * report.measured_images):
            raise ExportError(
                f"int8 is wrong on {counted(lost, 'image')} more than float32: {report.describe()}; allowed are "
                f"{max_drop}. Nothing was written. Calibrate on more or other training images, or allow a larger drop"
            )
    onnx.helper.set_model_props(model, facts | {"quantization": json.dumps(asdict(report))})
    out_file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out_file) as stream:
        stream.write(model.SerializeToString())
    return report


def _quantize(source: Path, target: Path, batches: Sequence[Tensor], reduce_range: bool) -> dict[str, Any]:
    """Write the int8 model and return what was chosen."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_name("prepared.onnx")
    # Symbolic shapes take seconds for attention and change nothing that static quantisation looks at.
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    nodes = onnx.load(prepared).graph.node
    float_nodes, operators = _choose(nodes)
    quantize_static(
        prepared,
        target,
        _Reader(batches),
        quant_format=QuantFormat.QDQ,  # type: ignore[arg-type]
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=QuantType.QUInt8,  # type: ignore[arg-type]
        weight_type=QuantType.QInt8,  # type: ignore[arg-type]
        op_types_to_quantize=operators,
        nodes_to_exclude=float_nodes,
        extra_options={"MatMulConstBOnly": True},
    )
    if not any(node.op_type == "QuantizeLinear" for node in onnx.load(target).graph.node):
        raise ExportError(f"nothing in {source} could be quantised. Nothing was written. Use the float32 file")
    return {"float_nodes": float_nodes, "operators": operators}


def _choose(nodes: Sequence[onnx.NodeProto]) -> tuple[list[str], list[str] | None]:
    """Nodes to leave in float32, and the kinds of operators to quantise (None: all there are)."""
    convolutions = [node.name for node in nodes if node.op_type == "Conv"]
    products = [node.name for node in nodes if node.op_type in ("Gemm", "MatMul")]
    attention = any(node.op_type == "Softmax" for node in nodes)
    return convolutions[:1] + products[-1:], ["Conv", "Gemm", "MatMul"] if attention else None


def _answers(before: OnnxImageClassifier, after: OnnxImageClassifier, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of both, (B, C).

    Raises:
        ExportError: those in int8 are not finite.
    """
    first, second = before.logits(pixel_values), after.logits(pixel_values)
    if not bool(second.isfinite().all()):
        raise ExportError("the int8 file's logits are not finite. Nothing was written. Use the float32 file")
    return first, second


def _refuse_one_answer(answers: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Refuse a file that says the same of every image.

    Raises:
        ExportError: it does.
    """
    import onnxruntime

    expected, said = (torch.cat(logits) for logits in zip(*answers, strict=True))
    spread, kept = (float(logits.std(dim=0, correction=0).mean()) for logits in (expected, said))
    if kept < _LEAST_SPREAD * spread:
        raise ExportError(
            f"the int8 file says the same of all {len(expected)} images (logits vary by {kept:.2g}, in float32 by "
            f"{spread:.2g}): onnxruntime {onnxruntime.__version__} computes this network wrongly in 8 bits, as "
            "releases before 1.32 do with some transformers. Nothing was written. Update onnxruntime, or use the "
            "float32 file"
        )


def _measure(
    before: OnnxImageClassifier,
    after: OnnxImageClassifier,
    unlabelled: Sequence[tuple[Tensor, Tensor]],
    labelled: Iterable[tuple[Image.Image, int]],
) -> dict[str, Any]:
    """Compare the predicted classes of two classifiers with each other and, where they are known, with the truth."""
    rows = [
        _classes(_answers(before, after, before.prepare([image for image, _ in pairs])), [label for _, label in pairs])
        for pairs in _batched(labelled)
    ]
    is_known = bool(rows)
    if not is_known:
        rows = [_classes(answers, [-1] * len(answers[0])) for answers in unlabelled]
    first, second, truth = np.concatenate(rows, axis=1)
    return {
        "measured_images": len(first),
        "agreement": float((first == second).mean()),
        "labelled": is_known,
        "accuracy_float32": float((first == truth).mean()) if is_known else None,
        "accuracy_int8": float((second == truth).mean()) if is_known else None,
    }


def _classes(answers: tuple[Tensor, Tensor], truth: Sequence[int]) -> NDArray[np.integer]:
    """(3, B): what one says, what the other says, what is true."""
    return np.stack([*(logits.argmax(1).numpy() for logits in answers), np.asarray(truth)])


def _batched(items: Iterable[Item]) -> Iterator[list[Item]]:
    remaining = iter(items)
    while batch := list(islice(remaining, _BATCH)):
        yield batch


class _Reader:
    """The calibration images as onnxruntime asks for them: a batch of inputs at a time, then None."""

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch.numpy()}
