"""A symmetric operator known by its products, and what can be made of it without a product."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import InvalidArgumentError
from landscape.linalg.krylov import Matvec, inner


class SymmetricOperator:
    """A symmetric matrix A of n rows that is known by its products v ↦ Av.

    Shifting, scaling, adding, restricting, projecting and rescaling give another operator of the
    same kind, at no product of their own. `to_scipy` and `from_scipy` lead to SciPy's and back.

    Attributes:
        n: number of rows and columns.
        dtype: floating-point type of the vectors.
        device: of the vectors.

    >>> d = torch.tensor([1.0, 2.0, 3.0])
    >>> a = SymmetricOperator(lambda v: d * v, 3, dtype=torch.float32, device="cpu")
    >>> ones = torch.ones(3)
    >>> (a - a.scaled(0.5)).shifted(1.0).matvec(ones).tolist()
    [1.5, 2.0, 2.5]
    >>> a.restricted(slice(1, 3)).matvec(ones[:2]).tolist()
    [2.0, 3.0]
    """

    def __init__(
        self, matvec: Matvec, n: int, *, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        """Name the parts.

        Args:
            matvec: v ↦ Av for a flat vector of ``n`` entries of ``dtype`` on ``device``.
            n: size of A.
            dtype: floating-point type that ``matvec`` takes.
            device: device that ``matvec`` takes.
        """
        self._function = matvec
        self.n = n
        self.dtype = dtype
        self.device = torch.device(device)

    def matvec(self, vector: Tensor) -> Tensor:
        """Multiply with a vector.

        Args:
            vector: shape (n,).

        Returns:
            Av, shape (n,).
        """
        return self._function(vector)

    def __add__(self, other: SymmetricOperator) -> SymmetricOperator:
        self._check_fits(other)
        return self._like(lambda v: self.matvec(v) + other.matvec(v))

    def __sub__(self, other: SymmetricOperator) -> SymmetricOperator:
        self._check_fits(other)
        return self._like(lambda v: self.matvec(v) - other.matvec(v))

    def shifted(self, by: float) -> SymmetricOperator:
        """Return A + σI.

        Args:
            by: the shift σ.

        Returns:
            The operator; its eigenvalues are those of A plus σ.
        """
        return self._like(lambda v: self.matvec(v).add(v, alpha=by))

    def scaled(self, by: float) -> SymmetricOperator:
        """Return cA.

        Args:
            by: the factor c.

        Returns:
            The operator.
        """
        return self._like(lambda v: self.matvec(v).mul(by))

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
        return self._like(lambda v: t * self.matvec(t * v))

    def projected(self, basis: Tensor) -> SymmetricOperator:
        """Return PAP with P = I − QQᵀ, the part of A outside a subspace.

        Args:
            basis: orthonormal rows Qᵀ, shape (k, n), such as eigenvectors.

        Returns:
            The operator; on the subspace it is zero.

        Raises:
            InvalidArgumentError: if the rows are of another length.
        """
        if basis.ndim != 2 or basis.shape[1] != self.n:
            msg = f"a basis of shape {tuple(basis.shape)}; expected (k, {self.n})"
            raise InvalidArgumentError(msg)
        rows = basis.to(self.device, self.dtype)

        def outside(v: Tensor) -> Tensor:
            return v - inner(rows, v).to(v.dtype) @ rows

        return self._like(lambda v: outside(self.matvec(outside(v))))

    def restricted(self, to: slice) -> SymmetricOperator:
        """Return the diagonal block of A on some of the coordinates.

        Args:
            to: which ones, such as the parameters of one layer.

        Returns:
            The operator; each product costs one with A.
        """
        n = len(range(*to.indices(self.n)))

        def block(v: Tensor) -> Tensor:
            whole = v.new_zeros(self.n)
            whole[to] = v
            return self.matvec(whole)[to]

        return SymmetricOperator(block, n, dtype=self.dtype, device=self.device)

    def dense(self) -> Tensor:
        """Return the matrix itself, column by column.

        Returns:
            Shape (n, n). Cost: n products.
        """
        eye = torch.eye(self.n, dtype=self.dtype, device=self.device)
        return torch.stack([self.matvec(column) for column in eye], dim=1)

    def to_scipy(self) -> Any:
        """Return SciPy's view of the operator, for `scipy.sparse.linalg.eigsh` and its kin.

        Returns:
            A `scipy.sparse.linalg.LinearOperator` on NumPy vectors.
        """
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

    def _like(self, matvec: Matvec) -> SymmetricOperator:
        return SymmetricOperator(matvec, self.n, dtype=self.dtype, device=self.device)

    def _check_fits(self, other: SymmetricOperator) -> None:
        if other.n != self.n:
            msg = f"operators of {self.n} and {other.n} rows; expected the same number"
            raise InvalidArgumentError(msg)
