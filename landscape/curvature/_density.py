"""The spectral density of a curvature operator, its outliers deflated."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.checks import check_real, whole
from landscape.choices import Basis, Operator, Products, Scale
from landscape.curvature._prepared import Prepared, Request, spectral_record
from landscape.errors import InvalidArgumentError
from landscape.linalg import SpectralDensity, lanczos
from landscape.linalg import spectral_density as quadrature
from landscape.linalg.krylov import Floats, norm
from landscape.problem import Problem, check_problem
from landscape.randomness import next_seed
from landscape.results import Density, Eigenpairs
from landscape.study import Study

N_OUTLIERS = 5
_TOL = 1e-3
_MATVECS = 200
# Share of the sampling error that the quadrature may leave: then steps are enough.
_BIAS = 0.1


def spectral_density(
    problem: Problem,
    *,
    operator: Operator = "hessian",
    outliers: int = 5,
    steps: int = 64,
    n_probes: int = 8,
    bandwidth: float | None = None,
    confidence: float = 0.95,
    eigenpairs: Eigenpairs | None = None,
    scale: Scale = "none",
    products: Products = "auto",
    memory: float | None = None,
    basis: Basis = "device",
    seed: int = 0,
    study: Study | None = None,
    progress: bool | None = None,
) -> Density:
    """Estimate φ(t) = (1/n) Σ g(t − λᵢ), the density of the eigenvalues, smoothed by a Gaussian g.

    The largest eigenvalues are found first by Lanczos and deflated: they enter as exact atoms,
    and the quadrature resolves the bulk. λmax/λ5 follows from them.

    Args:
        problem: what to measure.
        operator: ``hessian``, ``ggn`` (generalised Gauss-Newton) or ``fisher`` (empirical).
        outliers: eigenvalues to deflate, from the top, if all of them converge. 0: none.
        steps: Lanczos steps of each probe at most; the runs end together once the last step has
            changed the smoothed density by less than a tenth of its sampling error.
        n_probes: random vectors, at least 2.
        bandwidth: standard deviation of the Gaussian; None: the width of the spectrum without the
            outliers over ``steps``.
        confidence: probability that an interval is to cover its truth.
        eigenpairs: those that `top_eigenpairs` found of this operator, deflated in place of a
            search for outliers.
        scale: ``elementwise`` or ``filterwise``: of THT instead, see `parameter_scale`.
        products: how the Hessian's products are made, see `Hessian`.
        memory: half of it is for graphs; None: 4 GiB, of which those that are kept between products
            take 2. The vectors come on top, see "Cost" in `landscape.linalg`.
        basis: ``host``: keep the vectors in the memory of the host.
        seed: of the probes.
        study: where the result is kept, and looked up first.
        progress: show a bar on stderr; None: where stderr is a terminal.

    Returns:
        The density with its band, the mass below zero with its interval, and the moments. Cost:
        ``matvecs`` products: at most n_probes · steps, and those for the outliers; one if they
        are given.

    Raises:
        InvalidArgumentError: if an argument is out of its range, or the eigenpairs are others.

    References:
        Ghorbani, Krishnan, Xiao (2019), arXiv:1901.10159; Ubaru, Chen, Saad (2017), SIAM J.
        Matrix Anal. Appl. 38.
    """
    check_problem(problem)
    outliers = whole("outliers", outliers, least=0)
    check_real(confidence=confidence)
    check_real(or_none=True, bandwidth=bandwidth)
    request = Request(
        operator=operator,
        scale=scale,
        products=products,
        memory=memory,
        basis=basis,
        seed=seed,
        progress=progress,
    )
    options: dict[str, Any] = {
        "steps": whole("steps", steps),
        "n_probes": whole("n_probes", n_probes),
        "bandwidth": bandwidth,
        "confidence": confidence,
    }
    if eigenpairs is not None:
        outliers = len(eigenpairs.values) - eigenpairs.n_lowest
    settings = {"outliers": outliers, **options, **request.settings()}
    if eigenpairs is not None:
        settings["eigenpairs"] = _digest(eigenpairs)

    def measure(ready: Prepared) -> dict[str, Any]:
        if eigenpairs is None:
            top = _outliers(ready, outliers, seed)
        else:
            top = _checked_pairs(eigenpairs, ready, seed)
        with ready.block_products(total=steps * -(-n_probes // 8)) as matmat:
            solution = quadrature(
                **options,
                eigenpairs=None if top is None else (top.values, top.vectors),
                bias=_BIAS,
                matmat=matmat,
                seed=next_seed(seed),
                **ready.where,
            )
        return _fields(solution, top)

    return spectral_record(Density, problem, request, settings, study, measure, what="density")


@dataclass(frozen=True)
class _Atoms:
    """Eigenpairs to deflate, and the products that were spent on them."""

    values: Floats
    vectors: Tensor
    residuals: Floats
    matvecs: int


def _digest(pairs: Eigenpairs) -> str:
    """Return a short hash of eigenpairs."""
    content = hashlib.sha256(pairs.values.tobytes())
    content.update(np.ascontiguousarray(pairs.vectors).tobytes())
    return content.hexdigest()[:16]


def _checked_pairs(pairs: Eigenpairs, ready: Prepared, seed: int) -> _Atoms:
    """Return the top pairs of a record, if they are eigenpairs of this operator."""
    k, n = len(pairs.values) - pairs.n_lowest, ready.operator.n
    if not pairs.converged:
        msg = f"the eigenpairs {pairs.name} have not converged: give some that have"
        raise InvalidArgumentError(msg)
    if pairs.vectors.shape[1:] != (n,):
        msg = (
            f"eigenpairs with vectors of shape {pairs.vectors.shape}, and the operator has {n:,} "
            "rows: give those that top_eigenpairs found of this problem"
        )
        raise InvalidArgumentError(msg)
    values, residuals = (part[:k].astype(np.float64) for part in (pairs.values, pairs.residuals))
    vectors = ready.held(pairs.vectors[:k])
    # A product with their sum, signs at random: ‖Σ ±r‖² is Σ ‖r‖² on average, k times it at most.
    signs = 2.0 * np.random.default_rng(seed).integers(0, 2, k) - 1.0
    mix = torch.as_tensor(np.stack([signs, signs * values])).to(vectors)
    total, image = mix @ vectors
    off = norm(ready.where["matvec"](total) - image)
    least = torch.finfo(vectors.dtype).eps ** 0.5 + ready.noise.floor
    allowed = math.sqrt(k) * (
        float(np.linalg.norm(residuals)) + least * float(np.abs(values).max())
    )
    if not off <= allowed:
        msg = (
            f"the eigenpairs {pairs.name} are none of this operator: the residual of their sum is "
            f"{off:.2g}, expected at most {allowed:.2g}; give those that top_eigenpairs found of "
            "this problem, operator and scale"
        )
        raise InvalidArgumentError(msg)
    return _Atoms(values, vectors, residuals, 1)


def _outliers(ready: Prepared, k: int, seed: int) -> _Atoms | None:
    """Return the top eigenpairs, if all of them converged."""
    k = min(k, ready.operator.n - 1)
    if k < 1:
        return None
    solution = lanczos(
        k=k,
        tol=max(_TOL, 2 * ready.noise.floor),
        max_matvecs=max(_MATVECS, 20 * k),
        seed=seed,
        **ready.where,
    )
    if not solution.converged:
        return None
    return _Atoms(solution.values, solution.vectors, solution.residuals, solution.matvecs)


def _fields(solution: SpectralDensity, top: _Atoms | None) -> dict[str, Any]:
    curve, negative, moments = solution.curve, solution.negative, solution.moments
    rule = solution.quadrature
    return {
        "grid": curve.grid,
        "density": curve.density,
        "low": curve.low,
        "high": curve.high,
        "bandwidth": curve.bandwidth,
        "confidence": rule.confidence,
        "negative": negative.value,
        "negative_low": negative.low,
        "negative_high": negative.high,
        "atoms": rule.atoms,
        "atom_residuals": np.empty(0) if top is None else top.residuals,
        "mean": float(moments.value[1]),
        "mean_se": float(moments.standard_error[1]),
        "mean_square": float(moments.value[2]),
        "mean_square_se": float(moments.standard_error[2]),
        "nodes": rule.nodes,
        "weights": rule.weights,
        "n_probes": len(rule.nodes),
        "steps": rule.nodes.shape[1],
        "matvecs": solution.matvecs + (0 if top is None else top.matvecs),
    }
