"""Exact answers to compare with: no code of the library is used to find them.

`Quadratic` is a loss that is known in closed form; `trust_region` and `best_vertex` give the true
maximum of its rise over a ball; `quadratic_problem` hands the same loss to the library as a model
with data, in any number of examples and batches.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from landscape.problem import Problem

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Quadratic:
    """The loss c + gᵀ(w − w₀) + ½ (w − w₀)ᵀH(w − w₀)."""

    hessian: Floats
    gradient: Floats
    constant: float = 0.0

    def rise(self, epsilon: Floats) -> float:
        return float(self.gradient @ epsilon + 0.5 * epsilon @ self.hessian @ epsilon)

    def slope(self, epsilon: Floats) -> Floats:
        return self.gradient + self.hessian @ epsilon

    @property
    def n(self) -> int:
        return len(self.gradient)


@dataclass(frozen=True)
class Maximum:
    """A maximiser of a rise over ‖ε‖₂ ≤ ρ with its multiplier: (μI − H)ε = g."""

    epsilon: Floats
    multiplier: float
    value: float
    hard: bool = False


def trust_region(quadratic: Quadratic, rho: float) -> Maximum:
    """Maximise gᵀε + ½εᵀHε over ‖ε‖₂ ≤ ρ exactly (Moré, Sorensen 1983).

    With μ ≥ max(0, λmax) and (μI − H)ε = g, either ‖ε‖ = ρ or μ = 0. In the eigenbasis
    ‖ε(μ)‖² = Σ cᵢ² / (μ − λᵢ)², which falls in μ. If it stays below ρ up to μ = λmax (g has no
    part along the top eigenvectors), the top eigenvector fills the rest up: the hard case.
    """
    values, vectors = np.linalg.eigh(quadratic.hessian)
    c = vectors.T @ quadratic.gradient
    floor = max(0.0, float(values[-1]))
    # Distances from the floor keep their digits where μ would not: μ = floor + s.
    gaps = floor - values
    tiny = 1e-13 * (float(np.abs(values).max()) + 1e-300)
    top = gaps <= tiny
    gaps = np.where(top, 0.0, gaps)
    size = float(np.linalg.norm(c))
    hard = not top.any() or float(np.linalg.norm(c[top])) <= 1e-13 * size
    if hard:
        at_floor = np.where(top, 0.0, c / np.where(top, 1.0, gaps))
        left = rho**2 - float(at_floor @ at_floor)
        if left >= 0:
            if floor > 0:
                at_floor = at_floor + math.sqrt(left) * _unit(int(top.argmax()), len(c))
            return _maximum(quadratic, vectors @ at_floor, floor, hard=floor > 0)
        c = np.where(top, 0.0, c)

    def excess(s: float) -> float:
        return 1.0 / float(np.linalg.norm(_divided(c, s + gaps))) - 1.0 / rho

    low = 1e-3 * float(np.linalg.norm(c[top])) / rho if not hard else 0.0
    s = brentq(excess, low, size / rho * (1 + 1e-12), xtol=1e-300, rtol=1e-15, maxiter=500)
    return _maximum(quadratic, vectors @ _divided(c, s + gaps), floor + s)


def _divided(c: Floats, by: Floats) -> Floats:
    return np.divide(c, by, out=np.zeros_like(c), where=c != 0)


def _unit(i: int, n: int) -> Floats:
    e = np.zeros(n)
    e[i] = 1.0
    return e


def _maximum(
    quadratic: Quadratic, epsilon: Floats, multiplier: float, *, hard: bool = False
) -> Maximum:
    return Maximum(epsilon, multiplier, quadratic.rise(epsilon), hard)


def best_vertex(
    rise: Callable[[Floats], float], n: int, *, rho: float, p: float
) -> tuple[float, Floats]:
    """Maximise over the vertices of the ball ‖ε‖ₚ ≤ ρ, p = 1 or ∞: exact for a convex rise.

    The 2n vertices of p = 1 are ± ρ on one coordinate; the 2ⁿ of p = ∞ (n ≤ 12) are all signs.
    """
    if p == 1:
        vertices = [sign * rho * _unit(i, n) for i in range(n) for sign in (1.0, -1.0)]
    elif math.isinf(p) and n <= 12:
        vertices = [rho * np.array(signs) for signs in itertools.product((1.0, -1.0), repeat=n)]
    else:
        message = f"expected p = 1, or p = inf with n at most 12; got p = {p} and n = {n}"
        raise ValueError(message)
    best = max(vertices, key=rise)
    return rise(best), best


class Bowl(nn.Module):
    """One flat vector of weights; the examples carry the coefficients."""

    def __init__(self, at: Floats) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.as_tensor(at, dtype=torch.float64).clone())
        self.register_buffer("origin", torch.as_tensor(at, dtype=torch.float64).clone())

    def forward(self, hessian: Tensor, gradient: Tensor, constant: Tensor) -> Tensor:
        e = self.w - self.origin
        curved = torch.einsum("i,bij,j->b", e, hessian, e)
        return constant + gradient @ e + 0.5 * curved


def weighted_quadratic(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Return (Σ weight · loss, Σ weight) of a batch of `quadratic_problem`."""
    hessian, gradient, constant, weight = batch
    return (weight * model(hessian, gradient, constant)).sum(), weight.sum()


def quadratic_problem(
    quadratic: Quadratic,
    *,
    n_examples: int = 1,
    batch_size: int | None = None,
    dtype: str = "float64",
    at: Floats | None = None,
    seed: int = 0,
    name: str = "quadratic",
) -> Problem:
    """Make a problem whose loss is the quadratic: a weighted mean of examples that are not.

    Every example has random coefficients and a random weight; only their weighted mean is the
    quadratic, so that a batch that is lost or weighted wrongly shows.
    """
    rng = np.random.default_rng(seed)
    n = quadratic.n
    weights = rng.uniform(0.5, 2.0, n_examples)
    parts = []
    for whole in (quadratic.hessian, quadratic.gradient, np.array(quadratic.constant)):
        scale = 0.0 if n_examples == 1 else max(float(np.abs(whole).max()), 1e-3)
        noise = scale * rng.standard_normal((n_examples, *np.shape(whole)))
        if noise.ndim == 3:
            noise = (noise + noise.transpose(0, 2, 1)) / 2
        parts.append(whole + noise - np.average(noise, axis=0, weights=weights))
    data = tuple(torch.from_numpy(part) for part in (*parts, weights))
    return Problem(
        Bowl(np.zeros(n) if at is None else at),
        batch_loss=weighted_quadratic,
        data=data,
        dtype=dtype,
        batch_size=batch_size or n_examples,
        name=name,
    )


def spectrum(values: Floats, seed: int) -> Floats:
    """Return a symmetric matrix with the given eigenvalues and random eigenvectors."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((len(values), len(values))))
    matrix = (basis * values) @ basis.T
    return (matrix + matrix.T) / 2


def model_at(problem: Problem) -> nn.Module:
    """Return a copy of the problem's model that holds the weights and buffers of its checkpoint."""
    model = copy.deepcopy(problem.model)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            tensor.copy_(problem.state()[name])
    return model


def in_krylov_subspace(q: Quadratic, k: int) -> Quadratic:
    """Restrict a quadratic to the span of g, Hg, …, H^(k−1) g."""
    powers = [np.linalg.matrix_power(q.hessian, i) @ q.gradient for i in range(k)]
    basis = np.linalg.qr(np.stack(powers).T)[0]
    return Quadratic(basis.T @ q.hessian @ basis, basis.T @ q.gradient, q.constant)
