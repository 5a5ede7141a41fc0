"""Sharpness while a model trains: for one's own loop, and for the trainers people have.

`Monitor` is called in one's own loop; ``TrainerMonitor`` is a callback of the Trainer of
transformers, ``LightningMonitor`` one of Lightning. Each is imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscape.callbacks._lightning import LightningMonitor as LightningMonitor
    from landscape.callbacks._monitor import Monitor as Monitor
    from landscape.callbacks._transformers import TrainerMonitor as TrainerMonitor

_HOME = {
    "Monitor": "_monitor",
    "TrainerMonitor": "_transformers",
    "LightningMonitor": "_lightning",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        msg = f"module 'landscape.callbacks' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"landscape.callbacks.{_HOME[name]}"), name)
