"""A symmetric operator that is known by its products."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import InvalidArgumentError
from landscape.linalg.krylov import Matvec


class SymmetricOperator:
    """A symmetric matrix A of n rows that is known by its products v ↦ Av.

    `to_scipy` and `from_scipy` lead to SciPy's and back.

    Attributes:
        n: number of rows and columns.
        dtype: floating-point type of the vectors that ``matvec`` takes.
        device: of these vectors.

    >>> d = torch.tensor([1.0, 2.0, 3.0])
    >>> a = SymmetricOperator(lambda v: d * v, 3, dtype=torch.float32, device="cpu")
    >>> a.reparametrised(torch.tensor([1.0, 2.0, 1.0])).matvec(torch.ones(3)).tolist()
    [1.0, 8.0, 3.0]
    """

    def __init__(
        self, matvec: Matvec, n: int, *, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self._function = matvec
        self.n = n
        self.dtype = dtype
        self.device = torch.device(device)

    def matvec(self, vector: Tensor) -> Tensor:
        """Multiply with a vector of shape (n,)."""
        return self._function(vector)

    def reparametrised(self, scale: Tensor) -> SymmetricOperator:
        """Return TAT with T = diag(t).

        With A the Hessian in w, that is the Hessian in u where w = Tu. For t = |w|, or t the norm
        of the filter that an entry belongs to, its spectrum does not change when layers of a ReLU
        network are rescaled against each other.

        Args:
            scale: the diagonal t, shape (n,).

        Returns:
            The operator.

        Raises:
            InvalidArgumentError: if the diagonal is of another length.
        """
        if scale.shape != (self.n,):
            msg = f"a scale of shape {tuple(scale.shape)}; expected ({self.n},), one per parameter"
            raise InvalidArgumentError(msg)
        t = scale.to(self.device, self.dtype)
        return SymmetricOperator(
            lambda v: t * self.matvec(t * v), self.n, dtype=self.dtype, device=self.device
        )

    def dense(self) -> Tensor:
        """Return the matrix itself, shape (n, n), for n products."""
        eye = torch.eye(self.n, dtype=self.dtype, device=self.device)
        return torch.stack([self.matvec(column) for column in eye], dim=1)

    def to_scipy(self) -> Any:
        """Return a `scipy.sparse.linalg.LinearOperator` on NumPy vectors, such as `eigsh` takes."""
        from scipy.sparse.linalg import LinearOperator

        def product(x: Any) -> Any:
            vector = torch.as_tensor(np.asarray(x).reshape(-1)).to(self.device, self.dtype)
            return self.matvec(vector).cpu().numpy()

        kind = torch.empty(0, dtype=self.dtype).numpy().dtype
        return LinearOperator((self.n, self.n), matvec=product, rmatvec=product, dtype=kind)

    @classmethod
    def from_scipy(
        cls, operator: Any, *, dtype: torch.dtype = torch.float64, device: str = "cpu"
    ) -> SymmetricOperator:
        """Take a matrix or linear operator of NumPy or SciPy.

        Args:
            operator: anything that `scipy.sparse.linalg.aslinearoperator` takes, symmetric.
            dtype: floating-point type of the vectors.
            device: of the vectors; products are computed by SciPy on the CPU.

        Returns:
            The operator.

        Raises:
            InvalidArgumentError: if it is not square.

        >>> matrix = np.diag([1.0, 2.0])
        >>> SymmetricOperator.from_scipy(matrix).matvec(torch.ones(2, dtype=torch.float64)).tolist()
        [1.0, 2.0]
        """
        from scipy.sparse.linalg import aslinearoperator

        linear = aslinearoperator(operator)
        rows, columns = linear.shape
        if rows != columns:
            msg = f"an operator of shape ({rows}, {columns}); expected a square, symmetric one"
            raise InvalidArgumentError(msg)

        def product(v: Tensor) -> Tensor:
            return torch.as_tensor(linear.matvec(v.cpu().numpy())).to(v.device, v.dtype)

        return cls(product, rows, dtype=dtype, device=device)
