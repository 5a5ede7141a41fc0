"""What groups of examples contribute to a product, for the error over the data."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from landscape.problem._parameters import ParameterSpace

N_GROUPS = 16
LEAST_GROUPS = 8
_LEAST_BYTES, _MOST_BYTES = 2**20, 256 * 2**20
_LONG = 2**19  # entries from which on the groups are summed in the type of the products
_BLOCK = 2**16  # columns that are multiplied at a time


class Parts:
    """H_g v of groups g of consecutive examples, undivided, for the last product.

    Attributes:
        rows: one group in each row, shape (groups, n).
        weights: Σ weight of each group; for a loss that is a plain sum, its examples.
    """

    def __init__(self, space: ParameterSpace, like: Tensor, *, n_groups: int, n_examples: int):
        wide = torch.float64 if space.n < _LONG and like.device.type != "mps" else like.dtype
        self.rows = torch.zeros((n_groups, space.n), dtype=wide, device=like.device)
        self.weights = np.zeros(n_groups)
        self._space, self._n_examples = space, n_examples
        self._seen = 0

    @property
    def n_bytes(self) -> int:
        """Memory of the sums."""
        return self.rows.nbytes

    def begin(self) -> None:
        """Start the sums of another product."""
        self.rows.zero_()
        self.weights[:] = 0.0
        self._seen = 0

    def add(self, tensors: list[Tensor | None], weight: float, n_examples: int) -> None:
        """Add what one piece of the data contributes."""
        middle = self._seen + n_examples / 2
        group = min(int(middle * len(self.rows) / self._n_examples), len(self.rows) - 1)
        for view, tensor in zip(self._space.views(self.rows[group]), tensors, strict=True):
            if tensor is not None:
                view.add_(tensor.to_dense() if tensor.is_sparse else tensor)
        self.weights[group] += weight
        self._seen += n_examples

    def total(self, divisor: float, dtype: torch.dtype) -> Tensor:
        """Return the product, shape (n,)."""
        total = self.rows.sum(dim=0, dtype=self.rows.dtype)
        return total.div_(divisor).to(dtype)

    def project(self, basis: Tensor, scale: Tensor | None) -> npt.NDArray[np.float64]:
        """Return (Tq)ᵀH_g v for the rows q of a basis, shape (groups, m)."""
        total = torch.zeros((len(self.rows), len(basis)), dtype=torch.float64)
        for low in range(0, self._space.n, _BLOCK):
            part = slice(low, low + _BLOCK)
            rows = self.rows[:, part] if scale is None else self.rows[:, part] * scale[part]
            total += (rows.to(basis.dtype) @ basis[:, part].T).double().cpu()
        return total.numpy()


def fitting_groups(n: int, itemsize: int, limit: int) -> int:
    """Return how many groups fit into some bytes, for products of n entries; 1 MiB always fits."""
    limit = min(_MOST_BYTES, max(limit, _LEAST_BYTES))
    return limit // (n * (8 if n < _LONG else itemsize))
