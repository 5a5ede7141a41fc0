"""Linear models as independent modes: least squares and kernel regression, from zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from landscape.checks import positive, real, whole
from landscape.errors import InvalidArgumentError, NonFiniteError, one_of
from landscape.results import FloatArray
from landscape.wording import number

RISKS = ("in-sample", "parameter")
DESCENTS = ("function", "coefficients")


@dataclass(frozen=True, kw_only=True)
class Modes:
    """A linear model in the eigenbasis of its Hessian.

    After k steps from zero, with rᵢ the factor by which one step shrinks mode i,

        bias²ₖ = unreachable + Σᵢ bias_weightsᵢ rᵢ²ᵏ,
        varianceₖ = Σᵢ variance_weightsᵢ (1 − rᵢᵏ)².

    Attributes:
        curvatures: the eigenvalues dᵢ above zero, shape (r,), largest first.
        bias_weights: initial squared error of mode i, shape (r,).
        variance_weights: final variance of mode i, shape (r,).
        unreachable: squared error that no iteration removes: truth where the curvature is zero.
        risk: ``in-sample``, (1/n) ‖f̂ − f‖² over the examples, or ``parameter``, ‖ŵ − w‖².
    """

    curvatures: FloatArray
    bias_weights: FloatArray
    variance_weights: FloatArray
    unreachable: float = 0.0
    risk: str = "in-sample"

    def __post_init__(self) -> None:
        shape: tuple[int | None, ...] = (None,)
        for name in ("curvatures", "bias_weights", "variance_weights"):
            values = check_array(getattr(self, name), name=name, shape=shape)
            real(f"smallest of {name}", float(values.min()), least=0.0)
            object.__setattr__(self, name, values)
            shape = values.shape
        positive("smallest of curvatures", float(self.curvatures.min()))
        real("unreachable", self.unreachable, least=0.0)
        one_of(self.risk, RISKS, what="risk")

    @property
    def top(self) -> float:
        """The largest curvature, d₁."""
        return float(np.max(self.curvatures))


def least_squares(
    design: FloatArray, truth: FloatArray, *, noise: float, risk: str = "in-sample"
) -> Modes:
    """Return the modes of least squares, L(w) = ‖y − Xw‖² / 2n, y = Xw₀ + ε, cov ε = σ² I.

    With XᵀX/n = U diag(d) Uᵀ: in-sample, mode i starts with dᵢ(uᵢᵀw₀)² and ends with the variance
    σ²/n; for the parameters with (uᵢᵀw₀)² and σ²/(n dᵢ). Where d = 0, to the rounding of the
    singular values, w stays zero: the truth there is ``unreachable``.

    Args:
        design: X, shape (n, d), of any rank above zero.
        truth: w₀, shape (d,).
        noise: σ, standard deviation of ε, in the unit of y.
        risk: ``in-sample``, (1/n) ‖X(w − w₀)‖², or ``parameter``, ‖w − w₀‖².

    Returns:
        The modes.

    Raises:
        InvalidArgumentError: if shapes do not fit, σ is negative, the design is zero or the risk
            is unknown.

    Cost: one singular value decomposition, O(n d min(n, d)).

    Reference: Behdin, Mazumder 2023, arXiv 2302.11836; derived here.

    >>> modes = least_squares(np.diag([2.0, 1.0]), np.array([1.0, 1.0]), noise=1.0)
    >>> modes.curvatures.round(12).tolist(), modes.variance_weights.tolist()
    ([2.0, 0.5], [0.5, 0.5])
    """
    x = check_array(design, name="design", shape=(None, None))
    w = check_array(truth, name="truth", shape=(x.shape[1],))
    real("noise", noise, least=0.0)
    one_of(risk, RISKS, what="risk")
    n = x.shape[0]
    _, singular, right = np.linalg.svd(x, full_matrices=False)
    rank = _rank(singular, max(x.shape), name="design")
    curvatures, right = singular[:rank] ** 2 / n, right[:rank]
    along = right @ w
    scale = curvatures if risk == "in-sample" else np.ones_like(curvatures)
    beyond = w - along @ right
    return Modes(
        curvatures=curvatures,
        bias_weights=scale * along**2,
        variance_weights=noise**2 / n * scale / curvatures,
        # Rounding of a full-rank design is not truth that cannot be reached.
        unreachable=float(beyond @ beyond) if risk == "parameter" and len(right) < len(w) else 0.0,
        risk=risk,
    )


def kernel_regression(
    kernel: FloatArray, truth: FloatArray, *, noise: float, descent: str = "function"
) -> Modes:
    """Return the modes of kernel regression, L(f) = Σ(yᵢ − f(xᵢ))² / 2n with y = f₀ + ε.

    With K = V diag(κ) Vᵀ: descent in function space (the RKHS) moves the predictions by modes of
    curvature κᵢ/n, descent in the coefficients of f = Σ αⱼ k(·, xⱼ) by modes of curvature κᵢ²/n.
    Either way the in-sample error of mode i starts with (vᵢᵀf₀)²/n and ends with σ²/n; the part
    of f₀ where κ = 0 is unreachable. The risk is (1/n) Σ(f(xᵢ) − f₀(xᵢ))².

    Args:
        kernel: K, shape (n, n), symmetric and positive semidefinite.
        truth: f₀ at the examples, shape (n,).
        noise: σ, standard deviation of ε, in the unit of y.
        descent: ``function`` or ``coefficients``.

    Returns:
        The modes.

    Raises:
        InvalidArgumentError: if shapes do not fit, σ is negative, K is not symmetric and positive
            semidefinite or is zero, or the descent is unknown.

    Cost: one eigendecomposition, O(n³).

    Reference: Behdin, Mazumder 2023, arXiv 2302.11836; derived here.

    >>> modes = kernel_regression(np.diag([4.0, 2.0]), np.array([1.0, 0.0]), noise=0.0)
    >>> modes.curvatures.tolist(), modes.bias_weights.tolist()
    ([2.0, 1.0], [0.5, 0.0])
    """
    k = check_symmetric(kernel, name="kernel")
    f = check_array(truth, name="truth", shape=(len(k),))
    real("noise", noise, least=0.0)
    one_of(descent, DESCENTS, what="descent")
    kappa, vectors = _eigenpairs(k)
    rank = _rank(kappa, len(k), name="kernel")
    kappa, along = kappa[:rank], vectors.T @ f
    return Modes(
        curvatures=kappa / len(k) if descent == "function" else kappa**2 / len(k),
        bias_weights=along[:rank] ** 2 / len(k),
        variance_weights=np.full(kappa.shape, noise**2 / len(k)),
        unreachable=float(along[rank:] @ along[rank:]) / len(k),
    )


def rbf_kernel(a: FloatArray, b: FloatArray, *, length: float) -> FloatArray:
    """Return the radial basis function kernel, exp(−‖aᵢ − bⱼ‖² / 2ℓ²).

    Args:
        a: points, shape (n, d).
        b: points, shape (m, d).
        length: ℓ, in the unit of the points.

    Returns:
        Shape (n, m).

    >>> rbf_kernel(np.zeros((1, 2)), np.array([[3.0, 4.0]]), length=5.0).round(6).tolist()
    [[0.606531]]
    """
    from scipy.spatial.distance import cdist

    first, second = _points(a, b)
    positive("length", length)
    return np.asarray(np.exp(-cdist(first, second, "sqeuclidean") / (2.0 * length**2)))


def polynomial_kernel(
    a: FloatArray, b: FloatArray, *, degree: int, offset: float = 1.0
) -> FloatArray:
    """Return the polynomial kernel, (aᵢᵀbⱼ + c)ᵖ.

    Args:
        a: points, shape (n, d).
        b: points, shape (m, d).
        degree: p, at least 1.
        offset: c, at least 0.

    Returns:
        Shape (n, m).

    >>> polynomial_kernel(np.array([[1.0, 2.0]]), np.array([[3.0, 0.0]]), degree=2).tolist()
    [[16.0]]
    """
    first, second = _points(a, b)
    whole("degree", degree, least=1)
    real("offset", offset, least=0.0)
    return np.asarray((first @ second.T + offset) ** int(degree))


def _points(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    first = check_array(a, name="a", shape=(None, None))
    return first, check_array(b, name="b", shape=(None, first.shape[1]))


def _eigenpairs(k: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return eigenvalues, largest first, and eigenvectors of a kernel matrix."""
    kappa, vectors = np.linalg.eigh((k + k.T) / 2.0)
    if kappa[0] < -len(k) * 1e-10 * float(np.abs(k).max()):
        msg = (
            f"kernel is not positive semidefinite: its smallest eigenvalue is {number(kappa[0])}; "
            "use a positive definite kernel function"
        )
        raise InvalidArgumentError(msg)
    return kappa[::-1], vectors[:, ::-1]


def _rank(values: FloatArray, n: int, *, name: str) -> int:
    """Return how many of the values, largest first, exceed the rounding of the largest."""
    rank = int(np.sum(values > n * np.finfo(np.float64).eps * values[0]))
    if rank == 0:
        msg = f"{name} is zero: there is nothing to learn; pass one with an entry that is not"
        raise InvalidArgumentError(msg)
    return rank


def check_array(value: Any, *, name: str, shape: tuple[int | None, ...]) -> FloatArray:
    """Return an array in float64 if it has the expected shape and no value of it is NaN or inf."""
    values = np.asarray(value, dtype=np.float64)
    fits = values.ndim == len(shape) and all(
        n > 0 if expected is None else n == expected
        for n, expected in zip(values.shape, shape, strict=True)
    )
    if not fits:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        msg = f"{name} has the shape {values.shape}; expected ({sizes}): check what was passed"
        raise InvalidArgumentError(msg)
    n_bad = int((~np.isfinite(values)).sum())
    if n_bad:
        msg = f"{name} holds {n_bad} values that are not finite; leave them out or replace them"
        raise NonFiniteError(msg)
    return values


def check_symmetric(value: Any, *, name: str) -> FloatArray:
    """Return a square matrix in float64 if it is symmetric to rounding."""
    matrix = check_array(value, name=name, shape=(None, None))
    check_array(matrix, name=name, shape=(len(matrix), len(matrix)))
    gap = float(np.abs(matrix - matrix.T).max())
    if gap > 1e-10 * float(np.abs(matrix).max()):
        msg = f"{name} is not symmetric: entries differ by {number(gap)}; pass (A + Aᵀ)/2 if meant"
        raise InvalidArgumentError(msg)
    return matrix


def check_stable(top: float, *, eta: float, rho: float, curvature: str = "d₁") -> None:
    """Refuse a step size with which the iteration does not converge."""
    positive("eta", eta)
    real("rho", rho, least=0.0)
    effective = top + rho * top**2
    if not eta * effective < 2.0:
        msg = (
            f"eta = {eta:g} with rho = {rho:g} diverges: η({curvature} + ρ{curvature}²) = "
            f"{number(eta * effective)} at the largest curvature {curvature} = {number(top)}; "
            f"expected below 2: take eta below {number(2.0 / effective)}, or a smaller rho"
        )
        raise InvalidArgumentError(msg)
