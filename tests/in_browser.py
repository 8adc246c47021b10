"""The marks of tests that open the page in a real browser."""

from __future__ import annotations

import importlib.util

import pytest
from page_browser import CHROMIUM, NO_CHROMIUM

_NEEDED = ("onnx", "onnxscript", "onnxruntime", "pydicom", "playwright")
IN_BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM),
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in _NEEDED),
        reason=f"not all of {', '.join(_NEEDED)} are installed: pip install 'hf_kdmri[test,onnx]'",
    ),
]
