"""Weights that no vector holds."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class Displaced:
    """Weights that are computed in the model's own parameters, in place of a vector of them."""

    def __init__(self, write: Callable[[list[Tensor]], None]) -> None:
        """Take what writes them into the tensors of the space, in order."""
        self.write = write


Weights = Tensor | Displaced | None  # None: the origin
