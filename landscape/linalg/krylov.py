"""Operators known by their products, float64 inner products, and what both eigensolvers share.

Vectors are stored in the operator's dtype, float32 at least. Inner products are summed in float64
whatever that dtype is. Long vectors of float32 are multiplied as they are, in blocks that are
added up in float64: it is off by some 1e-9 of the norms, a percent of the vectors' own rounding. A
pair of vectors is off by less than that rounding also where all entries are alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from landscape.checks import positive, whole
from landscape.errors import InvalidArgumentError, NonFiniteError
from landscape.processes import Spread, over_shards
from landscape.randomness import seeded

Matvec = Callable[[Tensor], Tensor]
Matmat = Callable[[Tensor], Tensor]  # with several vectors, one in each row
Callback = Callable[[int, float], None]
Floats = npt.NDArray[np.float64]

# Numbers converted to float64 at a time: 8 MB. About four such pieces are alive at once, and as
# much again is kept by an allocator that does not hand back freed blocks of this size.
_CHUNK = 2**20
# Numbers from which on float32 is multiplied as it is; columns at a time, so that they stay in
# cache; and how large sums of products may be without overflow, or loss of digits in what is added.
_LONG = 2**21
_BLOCK = {"cpu": 2**16, "cuda": 2**22}
_SAFE = 1e-24, 1e30
# Known coefficients that are subtracted one by one.
_FEW = 8
SCRATCH_BYTES = 8 * 8 * _CHUNK
# Vectors multiplied at once, and the memory of them and their products.
_PRODUCTS, _PRODUCT_BYTES = 8, 2**28
# Largest |vᵢᵀHvⱼ − vⱼᵀHvᵢ| / ‖H‖ that may pass for rounding.
_ASYMMETRY = 1e-3


class AsymmetryError(InvalidArgumentError):
    """The products are not those of a symmetric matrix."""


class SymmetricOperator:
    """A symmetric matrix A of n rows that is known by its products v ↦ Av.

    Attributes:
        n: number of rows and columns.
        spread: which entries of a vector are held here; None: all.
        dtype: floating-point type of the vectors that ``matvec`` takes.
        device: of these vectors.

    >>> d = torch.tensor([1.0, 2.0, 3.0])
    >>> a = SymmetricOperator(lambda v: d * v, 3, dtype=torch.float32, device="cpu")
    >>> a.reparametrised(torch.tensor([1.0, 2.0, 1.0])).matvec(torch.ones(3)).tolist()
    [1.0, 8.0, 3.0]
    """

    def __init__(
        self,
        matvec: Matvec,
        n: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        spread: Spread | None = None,
    ) -> None:
        self._function = matvec
        self.n, self.spread = n, spread
        self.dtype = dtype
        self.device = torch.device(device)

    @property
    def length(self) -> int:
        """Entries of a vector that are held here."""
        return self.n if self.spread is None else self.spread.length

    def matvec(self, vector: Tensor) -> Tensor:
        """Multiply with a vector of shape (n,)."""
        return self._function(vector)

    def reparametrised(self, scale: Tensor) -> SymmetricOperator:
        """Return TAT with T = diag(scale): for A the Hessian in w, the Hessian in u with w = Tu."""
        if scale.shape != (self.length,):
            msg = f"a scale of shape {tuple(scale.shape)}; expected ({self.length},)"
            raise InvalidArgumentError(msg)
        t = scale.to(self.device, self.dtype)
        return SymmetricOperator(
            lambda v: t * self.matvec(t * v),
            self.n,
            dtype=self.dtype,
            device=self.device,
            spread=self.spread,
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
        """Take a symmetric matrix or linear operator of NumPy or SciPy, multiplied on the CPU."""
        from scipy.sparse.linalg import aslinearoperator

        linear = aslinearoperator(operator)
        rows, columns = linear.shape
        if rows != columns:
            msg = f"an operator of shape ({rows}, {columns}); expected a square, symmetric one"
            raise InvalidArgumentError(msg)

        def product(v: Tensor) -> Tensor:
            return torch.as_tensor(linear.matvec(v.cpu().numpy())).to(v.device, v.dtype)

        return cls(product, rows, dtype=dtype, device=device)


@dataclass(frozen=True, kw_only=True)
class EigenSolution:
    """Extreme (algebraic) eigenpairs of a symmetric operator H, with their evidence.

    Attributes:
        values: Rayleigh quotients θᵢ = vᵢᵀHvᵢ, descending, float64, shape (k,): the largest
            ones, then ``n_lowest`` from the lower end.
        n_lowest: how many of them are from the lower end.
        residuals: ‖Hvᵢ − θᵢvᵢ‖, verified with products, shape (k,); some eigenvalue of H lies
            within that distance of θᵢ (Parlett, 1998, theorem 4.5.1).
        errors: bounds on the distance of θᵢ to the i-th eigenvalue from its end, shape (k,), but
            for ``failure_probability``; the residuals where a missed one is not excluded.
        upper_bound: no eigenvalue of H is larger, but for ``failure_probability`` and rounding;
            infinite where nothing can be said.
        lower_bound: no eigenvalue is smaller, in the same sense.
        failure_probability: the chance, over random starts, that an eigenvalue was missed, or
            that a bound fails; 1 where none were searched for.
        asymmetry: largest |vᵢᵀHvⱼ − vⱼᵀHvᵢ| seen over orthonormal vectors, relative to the
            largest ‖Hv‖ seen; NaN where no two products could be compared.
        vectors: orthonormal eigenvectors, one per row, shape (k, n), on the operator's device.
        matvecs: products with H that were spent, those for the residuals and checks included.
        converged: whether every residual met the tolerance, and the search for missed
            eigenvalues came to its end.
        part_forms: vᵢᵀH_b vᵢ of each part H_b of H, shape (parts, k); None where H has no known
            parts.
    """

    values: Floats
    n_lowest: int
    residuals: Floats
    errors: Floats
    upper_bound: float
    lower_bound: float
    failure_probability: float
    asymmetry: float
    vectors: Tensor
    matvecs: int
    converged: bool
    part_forms: Floats | None = None


class Operator:
    """A matvec that counts its products, checks each, and supplies random vectors.

    ``norm`` is the largest ‖Hv‖ seen over unit vectors v, a lower bound on ‖H‖₂; ``residual`` the
    last known relative residual, for the callback.
    """

    def __init__(
        self,
        matvec: Matvec,
        n: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        seed: int,
        max_matvecs: int,
        callback: Callback | None = None,
        matmat: Matmat | None = None,
        spread: Spread | None = None,
    ) -> None:
        if n < 1:
            msg = f"n = {n}; expected an operator of size 1 or more"
            raise InvalidArgumentError(msg)
        if not dtype.is_floating_point:
            msg = f"dtype = {dtype}; expected a real floating-point type, such as torch.float32"
            raise InvalidArgumentError(msg)
        self.n, self.dtype, self.device = n, dtype, torch.device(device)
        self.spread, self.length = spread, n if spread is None else spread.length
        self.storage = torch.promote_types(dtype, torch.float32)  # type of the stored vectors
        self.eps, self.storage_eps = (float(torch.finfo(t).eps) for t in (dtype, self.storage))
        self.matvecs, self.norm, self.residual = 0, 0.0, math.inf
        self._matvec, self._max_matvecs, self._callback = matvec, max_matvecs, callback
        self._generator = seeded(seed)
        self._matmat = matmat
        fits = _PRODUCT_BYTES // (2 * self.storage.itemsize * n)
        self.block = 1 if matmat is None else min(_PRODUCTS, max(1, fits))  # vectors at once

    @property
    def left(self) -> int:
        """Products that may still be spent."""
        return self._max_matvecs - self.matvecs

    def __call__(self, v: Tensor) -> Tensor:
        """Return H v for a unit vector v, in memory of its own."""
        return self._checked(self._matvec(v.to(self.dtype)))

    def products(self, vectors: Sequence[Tensor]) -> Iterator[Tensor]:
        """Multiply with vectors, at once where that is possible; each is counted as it is taken."""
        for first in range(0, len(vectors), self.block):
            several = vectors[first : first + self.block]
            if self._matmat is None or len(several) < 2:
                yield from map(self, several)
                continue
            products = self._matmat(torch.stack([v.to(self.dtype) for v in several]))
            if len(products) != len(several):
                msg = (
                    f"matmat returned {len(products)} rows for {len(several)} vectors; expected "
                    "one product in each row"
                )
                raise InvalidArgumentError(msg)
            yield from map(self._checked, products)

    def _checked(self, product: Tensor) -> Tensor:
        self.matvecs += 1
        if product.shape != (self.length,):
            msg = (
                f"product {self.matvecs} with the operator has shape {tuple(product.shape)}, "
                f"expected ({self.length},); the matvec must map a vector of {self.length} entries "
                "to one of the same length"
            )
            raise InvalidArgumentError(msg)
        # The copy matters: a matvec may hand back its argument or a buffer that it uses again.
        w = product.detach().to(self.device, self.storage, copy=True)
        length = norm(w)
        if not math.isfinite(length):
            raise NonFiniteError(self._describe_non_finite(w))
        self.norm = max(self.norm, length)
        if self._callback is not None:
            self._callback(self.matvecs, self.residual)
        return w

    def _describe_non_finite(self, w: Tensor) -> str:
        n_nan = int(torch.isnan(w).sum())
        n_inf = int(torch.isinf(w).sum())
        if not n_nan + n_inf:
            return (
                f"product {self.matvecs} with the operator has finite entries of up to "
                f"{float(w.abs().max()):.2g}, and its length overflows {wide(w.device)}; "
                "expected a product whose sum of squares is finite. Divide the operator, such as "
                "the loss that it comes from, by a constant"
            )
        return (
            f"product {self.matvecs} with the operator is not finite: {n_nan} NaN and {n_inf} "
            f"infinite of {self.n} entries; expected finite numbers throughout. Check that the "
            "loss and its gradient are finite here, or compute in float64"
        )

    def check_symmetric(self, asymmetry: float) -> None:
        """Refuse an operator whose products differ from a symmetric one's by more than rounding.

        With an error e in H vⱼ, |vᵢᵀHvⱼ − vⱼᵀHvᵢ| is off by |vᵢᵀe| ≤ ‖e‖. Products of a network
        in float32 have errors of up to 1e-4 ‖H‖, those in half precision of a few eps, most of it
        in directions other than vᵢ. So ten eps, and at least 1e-3, pass for rounding; a matrix of
        independent entries, for which the ratio is about 2/√n, does not up to a million rows.
        """
        limit = max(_ASYMMETRY, 10.0 * self.eps)
        if asymmetry > limit * self.norm:
            msg = (
                f"the operator is not symmetric: after {self.matvecs} products, u·Hv and v·Hu "
                f"differ by {asymmetry / self.norm:.2g} of ‖H‖; expected at most {limit:.2g}, "
                "for rounding; check that the matvec is that of a symmetric matrix and that it "
                "gives the same product each time"
            )
            raise AsymmetryError(msg)

    def random_unit_vector(self, against: Tensor | None = None) -> Tensor:
        """Draw a vector that is uniform on the unit sphere of the complement of a basis."""
        v = torch.empty(self.length, dtype=self.storage, device=self.device)
        return self._normalised(fill_with_normal(v, self._generator, self.spread), against)

    def random_signs(self, k: int) -> Floats:
        """Draw k numbers that are 1 or −1."""
        drawn = torch.randint(2, (k,), generator=self._generator)
        return 2.0 * drawn.numpy().astype(np.float64) - 1.0

    def unit_vector(self, vector: Tensor, against: Tensor | None = None) -> Tensor:
        """Return a normalised copy of a vector, orthogonal to a basis."""
        # Scaled first: the storage dtype may be narrower than the vector's own.
        scaled = vector.detach() / norm(vector)
        return self._normalised(scaled.to(self.device, self.storage), against)

    def _normalised(self, v: Tensor, against: Tensor | None) -> Tensor:
        v.div_(norm(v))
        if against is not None and len(against):
            # Twice, with the length restored between: little may be left when m is close to n.
            for _ in range(2):
                orthogonalise(v, against)
                v.div_(norm(v))
        return v


def check_request(n: int, *, k: int, tol: float, max_matvecs: int, least: int) -> None:
    """Validate the arguments that both eigensolvers take."""
    whole("k", k, least=1)
    if k > n:
        msg = f"k = {k} eigenpairs of an operator of size n = {n}; expected k <= n; lower k"
        raise InvalidArgumentError(msg)
    positive("tol", tol)
    whole("max_matvecs", max_matvecs, least=least, advice=f"raise it or lower k = {k}")


def check_start(start: Tensor, n: int, *, several: bool = False) -> None:
    """Validate the shape and the norms of one start vector, or of several as rows."""
    rows = start[None] if start.ndim == 1 else start
    if rows.ndim != 2 or not len(rows) or rows.shape[1] != n or (start.ndim > 1 and not several):
        expected = f"({n},), one flat vector" + (f", or (b, {n}), b of them" if several else "")
        msg = f"start has shape {tuple(start.shape)}; expected {expected}"
        raise InvalidArgumentError(msg)
    for length in map(norm, rows):
        if not math.isfinite(length) or length == 0.0:
            msg = (
                f"start has norm {length}; expected a finite vector that is not zero, or start=None"
            )
            raise InvalidArgumentError(msg)


class Stagnation:
    """Detects residuals that are near rounding and fall no further.

    They have if, near rounding, the smallest of the last quarter of the steps is not half the
    smallest of the quarter before. If it is ten times as large, that is no stagnation, but a
    larger eigenvalue coming into view.
    """

    def __init__(self) -> None:
        self._history: list[float] = []

    def reached(self, residual: float, *, rounding: float) -> bool:
        """Record a residual, and return whether the iteration stagnates."""
        self._history.append(residual)
        steps = len(self._history)
        if steps < 50 or steps % 25:
            return False
        quarter = max(25, steps // 4)
        before = min(self._history[-2 * quarter : -quarter])
        last = min(self._history[-quarter:])
        return last <= 1e3 * rounding and 0.5 * before <= last <= 10.0 * before


def fill_with_normal(v: Tensor, generator: torch.Generator, spread: Spread | None = None) -> Tensor:
    """Fill a vector with normal random numbers, drawn on the CPU in float64 and then rounded."""
    if spread is not None:

        def draw(n: int) -> Tensor:
            return torch.randn(n, dtype=torch.float64, generator=generator)

        return spread.draw_(v, draw, width=_CHUNK)
    for part in _chunks(v[None]):
        v[part] = torch.randn(len(v[part]), dtype=torch.float64, generator=generator).to(v)
    return v


def wide(device: torch.device) -> torch.dtype:
    """Return the type that sums are accumulated in: float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def inner(basis: Tensor, w: Tensor) -> Tensor:
    """Return the inner product of each row of a basis with a vector, summed in float64."""
    return over_shards(_inner(basis, w))


def _inner(basis: Tensor, w: Tensor) -> Tensor:
    if len(basis) == 1:
        return _dot(basis[0], w)[None]
    total = torch.zeros(len(basis), dtype=wide(w.device), device=w.device)
    if _is_long(basis, w):
        for part in _blocks(w):
            total += basis[:, part] @ w[part]
        if _is_safe(total):
            return total
        total.zero_()
    for part in _chunks(basis):
        total += basis[:, part].to(total.dtype) @ w[part].to(total.dtype)
    return total


def dot(a: Tensor, b: Tensor) -> float:
    """Return the inner product of two vectors, summed in float64."""
    return float(over_shards(_dot(a, b)))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    dtype, width = wide(a.device), _width(a)
    if len(a) <= width:
        left = a.to(dtype)
        return torch.dot(left, left if a is b else b.to(dtype))
    if _is_long(a[None], b) and _is_safe(total := _sum_of_products(a, b)):
        return total
    total = torch.zeros((), dtype=dtype, device=a.device)
    for part in _blocks(a):
        left = a[part].to(dtype)
        total += torch.dot(left, left if a is b else b[part].to(dtype))
    return total


def _sum_of_products(a: Tensor, b: Tensor) -> Tensor:
    """Return aᵀb, each product rounded once; torch adds up pairwise, unlike a BLAS dot product."""
    products, sums = a.new_empty(_width(a)), []
    for part in _blocks(a):
        left = a[part]
        sums.append(torch.mul(left, b[part], out=products[: len(left)]).sum())
    return torch.stack(sums).sum(dtype=wide(a.device))


def _is_safe(total: Tensor) -> bool:
    """Tell whether sums of products of float32 have neither overflowed nor lost digits."""
    least, most = _SAFE
    return least <= (float(total.abs().max()) if total.numel() else least) <= most


def norm(w: Tensor) -> float:
    """Return the Euclidean norm of a vector."""
    return math.sqrt(dot(w, w))


def orthogonalise(w: Tensor, basis: Tensor, *, known: Floats | None = None) -> Floats:
    """Subtract from w, in place, its projection on an orthonormal basis.

    A second pass removes what rounding left of the first, where the first took away more than
    half of w's square; twice is enough (Giraud, Langou and Rozložník, 2005). Coefficients that
    are known, and the one of the last row, are subtracted before, so that in a Lanczos step
    nothing but rounding is left to the first pass and it is the only one.
    """
    total = np.zeros(len(basis))
    if known is not None:
        for i in _significant(known):
            total[i] = known[i]
            w.sub_(basis[i], alpha=total[i])
        total[-1] = dot(basis[-1], w)
        w.sub_(basis[-1], alpha=total[-1])
    square = dot(w, w)
    for _ in range(2):
        coefficients = inner(basis, w)
        subtract(w, coefficients, basis)
        total += coefficients.cpu().numpy()
        removed = float(coefficients @ coefficients)
        if removed <= 0.5 * square:
            break
        square = max(square - removed, 0.0)
    return total


def _significant(known: Floats) -> npt.NDArray[np.intp]:
    """Return the few rows whose coefficients are more than rounding, none where there are many."""
    rows = np.flatnonzero(np.abs(known) > 1e-3 * np.abs(known).max(initial=0.0))
    return rows if len(rows) <= _FEW else rows[:0]


def subtract(w: Tensor, coefficients: Floats | Tensor, basis: Tensor) -> None:
    """Subtract a linear combination of the rows of a basis from w, in place."""
    wide_mix = torch.as_tensor(coefficients).to(w.device, wide(w.device))
    if _is_long(basis, w):
        narrow = wide_mix.to(w.dtype)
        for part in _blocks(w):
            w[part].addmv_(basis[:, part].T, narrow, alpha=-1.0)
        return
    for part in _chunks(basis):
        projection = wide_mix @ basis[:, part].to(wide_mix.dtype)
        w[part] = (w[part].to(wide_mix.dtype) - projection).to(w.dtype)


def combine(coefficients: Floats, basis: Tensor, *, out: Tensor) -> Tensor:
    """Write linear combinations of the rows of a basis: out = coefficientsᵀ basis."""
    mix = torch.from_numpy(coefficients.T.copy()).to(basis.device, wide(basis.device))
    for part in _chunks(basis):
        out[:, part] = (mix @ basis[:, part].to(mix.dtype)).to(out.dtype)
    return out


def rayleigh(v: Tensor, product: Tensor) -> tuple[float, float]:
    """Return the Rayleigh quotient of a vector and the norm of its residual."""
    theta = dot(v, product) / dot(v, v)
    total = torch.zeros((), dtype=wide(v.device), device=v.device)
    for part in _chunks(v[None]):
        difference = product[part].to(total.dtype) - theta * v[part].to(total.dtype)
        total += difference @ difference
    return theta, math.sqrt(float(over_shards(total)))


def _is_long(basis: Tensor, w: Tensor) -> bool:
    """Tell whether float32 is multiplied as it is: many blocks average their rounding out."""
    return basis.dtype == w.dtype == torch.float32 and basis.numel() > _LONG


def _width(w: Tensor) -> int:
    return _BLOCK.get(w.device.type, 2**22)


def _blocks(w: Tensor) -> Iterator[slice]:
    return (slice(low, low + _width(w)) for low in range(0, len(w), _width(w)))


def _chunks(basis: Tensor) -> Iterator[slice]:
    m, n = basis.shape
    width = max(1, _CHUNK // max(1, m))
    return (slice(low, low + width) for low in range(0, n, width))
