"""Public names of a package that are imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str], *, also: tuple[str, ...] = ()) -> Callable[[str], Any]:
    """Make the `__getattr__` of a package whose public names live in modules of many seconds.

    Args:
        package: Its `__name__`.
        homes: From each name to its module, relative to the package.
        also: Further public names, which the package holds itself.

    Returns:
        The function; it raises `AttributeError` with the list of public names for any other.

    Example:
        >>> lazy_names("hf_kdmri", {"counted": "wording"})("counted")(2, "name")
        '2 names'
    """

    def __getattr__(name: str) -> Any:
        if name not in homes:
            names = ", ".join([*also, *homes])
            raise AttributeError(f"module {package!r} has no attribute {name!r}; its public names are {names}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return __getattr__
