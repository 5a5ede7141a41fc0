"""The spectral density of a curvature operator, its outliers found by themselves."""

from __future__ import annotations

from typing import Any

import numpy as np

from landscape.errors import InvalidArgumentError
from landscape.linalg import EigenSolution, SpectralDensity, lanczos
from landscape.linalg import spectral_density as quadrature
from landscape.measure.arguments import check_real, whole
from landscape.measure.curvature import Prepared, Request, graph_budget, prepared
from landscape.measure.recall import recall_or_measure
from landscape.problem import Problem
from landscape.randomness import next_seed
from landscape.results import Density, Provenance
from landscape.study import Study

N_OUTLIERS = 5
_TOL = 1e-3
_MATVECS = 200


def spectral_density(
    problem: Problem,
    *,
    operator: str = "hessian",
    outliers: int = N_OUTLIERS,
    steps: int = 64,
    n_probes: int = 8,
    bandwidth: float | None = None,
    confidence: float = 0.95,
    scale: str = "none",
    products: str = "auto",
    memory: float | None = None,
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
        steps: Lanczos steps of each probe.
        n_probes: random vectors, at least 2.
        bandwidth: standard deviation of the Gaussian; None: about the finest that the steps
            resolve.
        confidence: probability that an interval is to cover its truth.
        scale: ``elementwise`` or ``filterwise``: of THT instead, see `parameter_scale`.
        products: how the Hessian's products are made, see `Hessian`.
        memory: half of it is for graphs that are kept between products; None: 2 GiB. The vectors
            come on top, see "Cost" in `landscape.linalg`.
        seed: of the probes.
        study: where the result is kept, and looked up first.
        progress: show a bar on stderr; None: where stderr is a terminal.

    Returns:
        The density with its band, the mass below zero with its interval, and the moments. Cost:
        ``matvecs`` products: n_probes · steps, and those for the outliers.

    Raises:
        InvalidArgumentError: if an argument is out of its range.

    References:
        Ghorbani, Krishnan, Xiao (2019), arXiv:1901.10159; Ubaru, Chen, Saad (2017), SIAM J.
        Matrix Anal. Appl. 38.
    """
    outliers, steps = whole("outliers", outliers), whole("steps", steps)
    n_probes = whole("n_probes", n_probes)
    check_real(confidence=confidence)
    check_real(or_none=True, bandwidth=bandwidth, memory=memory)
    if outliers < 0:
        msg = f"outliers = {outliers}; expected the number of eigenvalues to deflate, or 0"
        raise InvalidArgumentError(msg)
    request = Request(operator=operator, scale=scale, products=products, seed=seed)
    asked: dict[str, Any] = {
        "steps": steps,
        "n_probes": n_probes,
        "bandwidth": bandwidth,
        "confidence": confidence,
    }
    settings = {"outliers": outliers, **asked, **request.settings(memory)}

    def measure(provenance: Provenance) -> Density:
        with prepared(
            problem, request, graph_bytes=graph_budget(memory), what="density", progress=progress
        ) as ready:
            top = _outliers(ready, outliers, seed)
            atoms = None if top is None else (top.values, top.vectors)
            found = quadrature(
                **asked,
                eigenpairs=atoms,
                seed=next_seed(seed),
                **ready.where,
            )
            return _record(found, top, ready, settings, provenance)

    return recall_or_measure(Density, problem, settings, study, measure)


def _outliers(ready: Prepared, k: int, seed: int) -> EigenSolution | None:
    """Return the top eigenpairs, if all of them converged."""
    k = min(k, ready.operator.n - 1)
    if k < 1:
        return None
    found = lanczos(
        k=k,
        tol=max(_TOL, 2 * ready.noise.floor),
        max_matvecs=max(_MATVECS, 20 * k),
        seed=seed,
        **ready.where,
    )
    return found if found.converged else None


def _record(
    found: SpectralDensity,
    top: EigenSolution | None,
    ready: Prepared,
    settings: dict[str, Any],
    provenance: Provenance,
) -> Density:
    curve, negative, moments = found.curve, found.negative, found.moments
    return Density(
        grid=curve.grid,
        density=curve.density,
        low=curve.low,
        high=curve.high,
        bandwidth=curve.bandwidth,
        confidence=found.quadrature.confidence,
        negative=negative.value,
        negative_low=negative.low,
        negative_high=negative.high,
        atoms=found.quadrature.atoms,
        atom_residuals=np.empty(0) if top is None else top.residuals,
        mean=float(moments.value[1]),
        mean_se=float(moments.standard_error[1]),
        mean_square=float(moments.value[2]),
        mean_square_se=float(moments.standard_error[2]),
        nodes=found.quadrature.nodes,
        weights=found.quadrature.weights,
        n_probes=len(found.quadrature.nodes),
        steps=found.quadrature.nodes.shape[1],
        matvecs=found.matvecs + (0 if top is None else top.matvecs),
        settings=settings,
        cost=ready.evaluator.cost,
        provenance=provenance,
        **ready.describe(),
    )
