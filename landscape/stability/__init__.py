"""What a training step bears: sharpness along an update, and of batches."""

from __future__ import annotations

from landscape.stability._batches import batch_sharpness
from landscape.stability._update import update_sharpness

__all__ = ["batch_sharpness", "update_sharpness"]
