"""The trace of a curvature operator, of the whole and of each layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from landscape.checks import check_real, whole
from landscape.curvature._blocks import block_products
from landscape.curvature._prepared import Prepared, Request, graph_budget, prepared
from landscape.errors import InvalidArgumentError, one_of
from landscape.linalg import (
    TraceSolution,
    hutchinson_trace,
    hutchpp_trace,
    krylov_trace,
    xtrace,
)
from landscape.measurement import cached_measurement
from landscape.problem import Problem
from landscape.results import Provenance, TraceEstimate
from landscape.study import Study

METHODS = {
    "krylov": krylov_trace,
    "hutchinson": hutchinson_trace,
    "hutch++": hutchpp_trace,
    "xtrace": xtrace,
}
_IN_BLOCKS = ("krylov", "hutchinson")  # probes in blocks, and traces of diagonal blocks


def trace(
    problem: Problem,
    *,
    operator: str = "hessian",
    layers: bool = False,
    method: str = "krylov",
    rtol: float = 0.05,
    confidence: float = 0.95,
    max_matvecs: int = 1000,
    scale: str = "none",
    products: str = "auto",
    memory: float | None = None,
    seed: int = 0,
    study: Study | None = None,
    progress: bool | None = None,
) -> TraceEstimate:
    """Estimate the trace of a curvature operator, until its confidence interval is narrow enough.

    Args:
        problem: what to measure.
        operator: ``hessian``, ``ggn`` (generalised Gauss-Newton) or ``fisher`` (empirical).
        layers: estimate the trace of each layer's diagonal block too, from the same probes; they
            sum to the whole. Those of small layers are made exact by a fifth more products.
        method: ``krylov`` (Hutchinson's probes beside a Lanczos basis), ``hutch++``, ``xtrace`` or
            ``hutchinson``; layers come from ``krylov`` and ``hutchinson``.
        rtol: half-width of the confidence interval to reach, relative to the trace.
        confidence: probability that the interval is to cover the trace.
        max_matvecs: products to spend at most. Where that is as many as there are parameters, the
            trace is exact, unless a fifth of them met ``rtol``.
        scale: ``elementwise`` or ``filterwise``: of THT instead, see `parameter_scale`.
        products: how the Hessian's products are made, see `Hessian`.
        memory: half of it is for graphs; None: 4 GiB, of which those that are kept between products
            take 2. The vectors come on top, see "Cost" in `landscape.linalg`.
        seed: of the probes.
        study: where the result is kept, and looked up first.
        progress: show a bar on stderr; None: where stderr is a terminal.

    Returns:
        The estimate with its interval. Cost: ``matvecs`` products and one forward pass.

    Raises:
        InvalidArgumentError: if an argument is out of its range.

    References:
        Chen, Hallman (2023), arXiv:2205.01736; Hutchinson (1990); Meyer, Musco, Musco, Woodruff
        (2021), arXiv:2010.09649; Epperly, Tropp, Webber (2024), arXiv:2301.07825.
    """
    chosen = one_of(method, METHODS, what="method of the trace")
    if layers and chosen not in _IN_BLOCKS:
        names_of = " and ".join(_IN_BLOCKS)
        msg = f"the traces of the layers come from the methods {names_of}; got method={chosen!r}"
        raise InvalidArgumentError(msg)
    max_matvecs = whole("max_matvecs", max_matvecs)
    check_real(rtol=rtol, confidence=confidence)
    check_real(or_none=True, memory=memory)
    request = Request(operator=operator, scale=scale, products=products, seed=seed)
    asked: dict[str, Any] = {
        "rtol": rtol,
        "confidence": confidence,
        "max_matvecs": max_matvecs,
    }
    settings = {**asked, "method": chosen, "layers": layers, **request.settings(memory)}
    names = problem.space.layers() if layers else {}
    groups = {"groups": list(names.values())} if layers else {}

    def measure(provenance: Provenance) -> TraceEstimate:
        with prepared(
            problem, request, graph_bytes=graph_budget(memory), what="trace", progress=progress
        ) as ready:
            solve: Any = METHODS[chosen]
            with block_products(ready, what="probes", show=progress) as matmat:
                blocks = {"matmat": matmat} if chosen in _IN_BLOCKS else {}
                found = solve(**asked, **groups, **blocks, **ready.where, seed=seed)
            return _record(found, names, ready, chosen, settings, provenance)

    return cached_measurement(TraceEstimate, problem, settings, study, measure)


def _record(
    found: TraceSolution,
    layers: dict[str, slice],
    ready: Prepared,
    method: str,
    settings: dict[str, Any],
    provenance: Provenance,
) -> TraceEstimate:
    return TraceEstimate(
        value=found.value,
        standard_error=found.standard_error,
        low=found.low,
        high=found.high,
        confidence=found.confidence,
        n_probes=found.n_probes,
        matvecs=found.matvecs,
        converged=found.converged,
        exact=found.exact,
        method=method,
        layers=tuple(layers),
        layer_sizes=np.array([part.stop - part.start for part in layers.values()], dtype=float),
        layer_values=found.groups.value,
        layer_standard_errors=found.groups.standard_error,
        layer_low=found.groups.low,
        layer_high=found.groups.high,
        settings=settings,
        cost=ready.evaluator.cost,
        provenance=provenance,
        **ready.describe(),
    )
