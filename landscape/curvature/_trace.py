"""The trace of a curvature operator, of the whole and of each layer."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from landscape.checks import check_real, whole
from landscape.choices import Operator, Products, Scale, TraceMethod
from landscape.curvature._prepared import Prepared, Request, spectral_record
from landscape.errors import InvalidArgumentError, one_of
from landscape.linalg import (
    TraceSolution,
    hutchinson_trace,
    hutchpp_trace,
    krylov_trace,
    xtrace,
)
from landscape.problem import Problem, check_problem
from landscape.processes import shards
from landscape.results import TraceEstimate
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
    operator: Operator = "hessian",
    layers: bool = False,
    method: TraceMethod = "krylov",
    rtol: float = 0.05,
    confidence: float = 0.95,
    max_matvecs: int = 1000,
    scale: Scale = "none",
    products: Products = "auto",
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
    check_problem(problem)
    chosen = one_of(method, METHODS, what="method of the trace")
    if layers and chosen not in _IN_BLOCKS:
        names_of = " and ".join(_IN_BLOCKS)
        msg = f"the traces of the layers come from the methods {names_of}; got method={chosen!r}"
        raise InvalidArgumentError(msg)
    if layers and shards() is not None:
        msg = "layers=True takes whole layers, and the parameters are split over the processes"
        raise InvalidArgumentError(msg)
    check_real(rtol=rtol, confidence=confidence)
    request = Request(
        operator=operator,
        scale=scale,
        products=products,
        memory=memory,
        seed=seed,
        progress=progress,
    )
    options: dict[str, Any] = {
        "rtol": rtol,
        "confidence": confidence,
        "max_matvecs": whole("max_matvecs", max_matvecs),
    }
    settings = {**options, "method": chosen, "layers": layers, **request.settings()}
    slices = problem.space.layers() if layers else {}

    def measure(ready: Prepared) -> dict[str, Any]:
        solve: Any = METHODS[chosen]
        with ready.block_products() as matmat:
            if chosen in _IN_BLOCKS:
                solve = partial(solve, matmat=matmat, groups=list(slices.values()))
            solution: TraceSolution = solve(**options, **ready.where, seed=seed)
        fields = dict(vars(solution))
        del fields["samples"]
        groups = fields.pop("groups")
        return {
            **fields,
            "method": chosen,
            "layers": tuple(slices),
            "layer_sizes": np.array([s.stop - s.start for s in slices.values()], dtype=float),
            "layer_values": groups.value,
            "layer_standard_errors": groups.standard_error,
            "layer_low": groups.low,
            "layer_high": groups.high,
        }

    return spectral_record(TraceEstimate, problem, request, settings, study, measure, what="trace")
