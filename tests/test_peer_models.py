"""transformers' own common tests of a model (`ModelTesterMixin`), run on teacher and student.

They are not part of the installed package and are not kept here. `make test-peer` fetches the source distribution of
the installed version, which holds them, and runs this file; or point KDMRI_TRANSFORMERS_TESTS at the `tests` folder of
a checkout of the same version.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import sys
import types
import unittest
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_kdmri import StudentForImageClassification, TeacherForImageClassification
from hf_kdmri.models import TimmClassifier
from tests.conftest import LABELS

pytestmark = pytest.mark.peer

FOLDER = os.environ.get("KDMRI_TRANSFORMERS_TESTS")
PACKAGE = "transformers_tests"
# The source distribution holds the top of the folder only. What the mixin takes from below it, and why we need it not:
# both stand for tests that this run leaves out.
LEFT_OUT = {
    "exporters.test_export": "ExportTesterMixin",  # torch.export and ONNX; ours is tested in test_export.py
    "generation.test_utils": "GenerationTesterMixin",  # text generation
}


def peer_mixin() -> Any:
    """`ModelTesterMixin` from the folder, imported under a package name that does not meet our own `tests`."""
    if FOLDER is None:
        pytest.skip("no tests of transformers; `make test-peer` fetches them", allow_module_level=True)
    if importlib.util.find_spec("parameterized") is None:
        pytest.skip("transformers' tests need `pip install parameterized`", allow_module_level=True)
    folder = Path(FOLDER)
    if not (folder / "test_modeling_common.py").is_file():
        raise FileNotFoundError(f"KDMRI_TRANSFORMERS_TESTS is {folder}, which has no test_modeling_common.py")
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(folder)]
    sys.modules[PACKAGE] = package
    for name, mixin in LEFT_OUT.items():
        if not (folder / f"{name.replace('.', '/')}.py").is_file():
            parent, _, module_name = name.partition(".")
            sys.modules.setdefault(f"{PACKAGE}.{parent}", types.ModuleType(parent))
            placeholder = types.ModuleType(module_name)
            setattr(placeholder, mixin, type(mixin, (), {}))
            sys.modules[f"{PACKAGE}.{name}"] = placeholder
    return importlib.import_module(f"{PACKAGE}.test_modeling_common").ModelTesterMixin


ModelTesterMixin: Any = peer_mixin()


class TinyInputs:
    """What the mixin calls a model tester: a small configuration and inputs for it."""

    batch_size = 3
    is_training = True

    def __init__(self, architecture: str, image_size: int) -> None:
        model = StudentForImageClassification.from_timm(architecture, labels=LABELS, image_size=image_size)
        self.config = model.config
        self.image_size = image_size

    def get_config(self) -> Any:
        return copy.deepcopy(self.config)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        return self.get_config(), {"pixel_values": torch.rand(self.batch_size, 3, self.image_size, self.image_size)}


class PeerTests:
    """The mixin's settings for a network that timm defines, and what of the mixin cannot apply to one."""

    all_model_classes: tuple[type[TimmClassifier], ...] = (StudentForImageClassification, TeacherForImageClassification)
    test_resize_embeddings = False
    has_attentions = False
    architecture: str
    image_size: int
    maps: tuple[tuple[int, ...], ...]  # (C, H, W) of every hidden state

    def setUp(self) -> None:
        self.model_tester = TinyInputs(self.architecture, self.image_size)

    def _prepare_for_class(self, inputs: dict[str, Any], model_class: Any, return_labels: bool = False) -> dict:
        # The mixin gives labels to the classes of transformers' own mappings only, by name.
        labels = {"labels": torch.zeros(TinyInputs.batch_size, dtype=torch.long)} if return_labels else {}
        return {**copy.deepcopy(inputs), **labels}

    def test_hidden_states_output(self) -> None:
        """In place of the mixin's, which expects (B, length, width) and not maps."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config).eval()
            hidden = model(**inputs, output_hidden_states=True).hidden_states
            assert tuple(maps.shape[1:] for maps in hidden) == self.maps
            last_two = model(**inputs, output_hidden_states=[-2, -1]).hidden_states
            assert tuple(maps.shape[1:] for maps in last_two) == self.maps[-2:]

    @unittest.skip("the input is pixels; transformers' wrapper of timm has no embedding module to get or set")
    def test_model_get_set_embeddings(self) -> None: ...

    @unittest.skip("from_timm keeps timm's own initialisation, which transformers' wrapper cannot repeat")
    def test_can_init_all_missing_weights(self) -> None: ...

    @unittest.skip("it loads a file without weights, which from_pretrained refuses here (test_models.py)")
    def test_model_weights_reload_no_missing_tied_weights(self) -> None: ...

    @unittest.skip("it looks at the gradient of an embedding module; see test_model_get_set_embeddings")
    def test_enable_input_require_grads_with_gradient_checkpointing(self) -> None: ...


class TestPlainTransformer(PeerTests, ModelTesterMixin, unittest.TestCase):
    """A ViT: one stride, position embeddings, fused attention."""

    architecture, image_size = "test_vit", 32
    maps = ((64, 2, 2),) * 6

    @unittest.skip("timm hands out the tokens' copy as a map; no gradient flows from the logits through the copy")
    def test_retain_grad_hidden_states_attentions(self) -> None: ...


class TestConvolutional(PeerTests, ModelTesterMixin, unittest.TestCase):
    """A ResNet: buffers of batch normalisation."""

    architecture, image_size = "test_resnet", 64
    maps = ((32, 32, 32), (32, 16, 16), (48, 8, 8), (192, 4, 4), (96, 2, 2))
