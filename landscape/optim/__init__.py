"""Sharpness-aware minimization: the optimizer that produces the wide minima."""

from __future__ import annotations

from landscape.optim.ascent import Ascent
from landscape.optim.sam import SAM
from landscape.optim.statistics import frozen_statistics

__all__ = ["SAM", "Ascent", "frozen_statistics"]
