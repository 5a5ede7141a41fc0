"""Whose code a module is: the user's, a library's, or of those whose versions are recorded."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

_RECORDED = ("torch", "numpy")  # their versions are in every record, as is that of Python
_PYTHON = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})


def origin_of(name: str | None, file: str | None = None) -> str:
    """Say whose code a module is.

    Args:
        name: of the module.
        file: where it is; None: where the module of that name is.

    Returns:
        ``own`` (the user's, and the problems that come with this package), ``recorded`` (of this
        package, torch, NumPy and Python, whose versions are recorded) or ``installed``.
    """
    top = (name or "").partition(".")[0]
    if name == "__main__":
        return "own"
    if top == "landscape":  # whose version is recorded too; its problems are there to be changed
        return "own" if (name or "").startswith("landscape.tasks") else "recorded"
    if is_pythons(name, file) or top in _RECORDED:
        return "recorded"
    parts = Path(file or _file_of(name) or "").parts
    return "installed" if {"site-packages", "dist-packages"} & {*parts} else "own"


def is_pythons(name: str | None, file: str | None = None) -> bool:
    """Tell whether a module is of Python itself.

    Args:
        name: of the module.
        file: where it is; None: where the module of that name is.

    Returns:
        Whether it is.
    """
    if name in sys.builtin_module_names:
        return True
    path = file or _file_of(name)
    if path is None:  # typed at the prompt or executed from text, or without a file of its own
        known = name in sys.modules and name != "__main__"
        return known and (name or "").partition(".")[0] in sys.stdlib_module_names
    inside = any(path.startswith(f"{folder}{os.sep}") for folder in _PYTHON)
    return inside and not {"site-packages", "dist-packages"} & {*Path(path).parts}


def _file_of(name: str | None) -> str | None:
    return getattr(sys.modules.get(name or ""), "__file__", None)
