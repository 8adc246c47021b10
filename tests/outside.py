"""Run Python where this package cannot be imported, as on the machines that only have a published model."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

_REFUSE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hf_kdmri", "model_cards", "dataset_script"):
            raise ImportError(f"{name} must not be needed")
sys.meta_path.insert(0, Refuse())
"""


def run_outside(code: str, *arguments: object, cwd: Path) -> Any:
    """Run code in a process of its own, and return what it prints last, as JSON.

    Args:
        code: Python; `sys` is imported and `sys.argv[1:]` are the arguments.
        *arguments: Anything that `str` makes a word of.
        cwd: Where it runs; not this repository.
    """
    command = [sys.executable, "-c", _REFUSE + textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
