"""What the numbers of a comparison say, in cautious sentences, whichever way they come out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from landscape.plots.style import shorten
from landscape.results import Provenance
from landscape.results.comparison import Comparison, Measured
from landscape.wording import number, with_error

SAME = 0.05
"""Relative difference below which two values count as about the same."""

LOSSES_DIFFER = 0.20
"""Relative difference of the training losses from which a comparison is warned about."""

_DIFFERENCES = {
    "data_fingerprint": "on different data",
    "objective": "with different losses or models",
    "mode": "in different layer modes",
    "dtype": "in different dtypes",
    "n_parameters": "in models of different size",
}
_HELD_OUT = ("data_fingerprint", "mode")
"""What losses on held-out data must share to be ranked."""


@dataclass(frozen=True)
class Verdict:
    """Sentences for people.

    Attributes:
        findings: what the numbers say.
        cautions: what stands in the way of concluding more from them.
    """

    findings: tuple[str, ...]
    cautions: tuple[str, ...]


@dataclass(frozen=True)
class Value:
    """One number of one checkpoint.

    Attributes:
        name: the checkpoint, for running text.
        value: the number.
        text: the number with its evidence.
        error: how far it may be off; 0 where that is not known.
    """

    name: str
    value: float
    text: str
    error: float = 0.0


def verdict(comparison: Comparison) -> Verdict:
    """Say which checkpoint is the sharpest and the flattest by each measure, and what to mind.

    Args:
        comparison: what was measured, any part of it missing.

    Returns:
        Findings and cautions; both may be empty.
    """
    models = comparison.models
    curvature, rise = _curvatures(models), _rises(models)
    findings = [
        _rank(curvature, "λmax of the Hessian"),
        _rank(rise, f"Sharpness ({_ball(models)})", remark="as lower bounds found by search"),
        _agreement(curvature, rise),
        _rank(_losses(models), "Loss on held-out data", low="lowest", high="highest"),
    ]
    cautions = [
        *_different_losses(models),
        *_slopes(models),
        *_not_converged(models),
        *_different_balls(models),
        *_different_sources(models),
    ]
    if len(models) > 1 and any(findings):
        cautions.append(
            "These are single checkpoints: what sets them apart need not set the methods apart "
            "that trained them; repeat with several training seeds."
        )
    return Verdict(tuple(filter(None, findings)), tuple(cautions))


def _curvatures(models: Sequence[Measured]) -> list[Value]:
    return [
        Value(
            _short(model),
            float(model.eigenpairs.values[0]),
            f"{number(float(model.eigenpairs.values[0]))} ± {model.eigenpairs.residuals[0]:.1e}",
            float(model.eigenpairs.residuals[0]),
        )
        for model in models
        if model.eigenpairs is not None
    ]


def _rises(models: Sequence[Measured]) -> list[Value]:
    if len(_balls(models)) > 1:
        return []
    return [
        Value(_short(model), model.sharpness.value, f"≥ {number(model.sharpness.value)}")
        for model in models
        if model.sharpness is not None
    ]


def _losses(models: Sequence[Measured]) -> list[Value]:
    tests = [(model, model.test) for model in models if model.test is not None]
    if any(_differ([test.provenance for _, test in tests], field) for field in _HELD_OUT):
        return []
    return [
        Value(_short(model), test.loss, with_error(test.loss, test.loss_se), _finite(test.loss_se))
        for model, test in tests
    ]


def _rank(
    values: Sequence[Value],
    what: str,
    *,
    low: str = "smallest",
    high: str = "largest",
    remark: str = "",
) -> str:
    values = sorted((v for v in values if math.isfinite(v.value)), key=lambda v: v.value)
    if len(values) < 2:
        return ""
    least, most = values[0], values[-1]
    ends = f"{least.name} ({least.text}) and {most.name} ({most.text})"
    qualifier = f", {remark}" if remark else ""
    if _same(least, most):
        return f"{what}: about the same for {ends}{qualifier}."
    said = f"{what}: {low} for {least.name} ({least.text}), {high} for {most.name} ({most.text})"
    if least.value > 0:
        said += f", {most.value / least.value:.3g} times as large"
    return f"{said}{qualifier}."


def _same(least: Value, most: Value) -> bool:
    apart = most.value - least.value
    within_errors = apart <= 2 * math.hypot(least.error, most.error)
    return within_errors or apart <= SAME * max(abs(least.value), abs(most.value))


def _agreement(curvature: Sequence[Value], rise: Sequence[Value]) -> str:
    if len(rise) < 2 or {v.name for v in curvature} != {v.name for v in rise}:
        return ""
    flattest = min(curvature, key=lambda v: v.value), min(rise, key=lambda v: v.value)
    sharpest = max(curvature, key=lambda v: v.value), max(rise, key=lambda v: v.value)
    if any(_same(*ends) for ends in zip(flattest, sharpest, strict=True)):
        return ""
    if flattest[0].name == flattest[1].name and sharpest[0].name == sharpest[1].name:
        return (
            f"Both measures call {flattest[0].name} the flattest and {sharpest[0].name} the "
            "sharpest."
        )
    return (
        f"The measures do not agree: by λmax {flattest[0].name} is the flattest, by sharpness "
        f"{flattest[1].name}."
    )


def _different_losses(models: Sequence[Measured]) -> list[str]:
    losses = [(_short(m), m.evaluation.loss) for m in models if m.evaluation is not None]
    losses = [(name, loss) for name, loss in losses if math.isfinite(loss)]
    if len(losses) < 2:
        return []
    (low_name, low), (high_name, high) = (f(losses, key=_second) for f in (min, max))
    if high - low <= LOSSES_DIFFER * max(abs(low), abs(high)):
        return []
    return [
        f"The losses at the checkpoints differ much: {number(low)} for {low_name}, {number(high)} "
        f"for {high_name}. Curvature changes as a loss is fitted further (that of the "
        "cross-entropy falls with the loss itself), so part of any difference may come from how "
        "well each is fitted, not from the kind of minimum."
    ]


def _slopes(models: Sequence[Measured]) -> list[str]:
    said = []
    for model in models:
        found, at = model.sharpness, model.evaluation
        if found is None or at is None or found.p != 2 or not math.isfinite(at.gradient_norm):
            continue
        same = (*_DIFFERENCES, "problem_fingerprint")
        if any(_differ([found.provenance, at.provenance], field) for field in same):
            continue  # the gradient is that of another loss
        slope = found.rho * at.gradient_norm
        if slope > 0.5 * found.value > 0:
            said.append(
                f"{_short(model)} is not at a minimum on the scale of the ball: its gradient "
                f"alone gives a rise of ρ‖∇L‖ = {number(slope)}, next to the {number(found.value)}"
                " found; its sharpness tells of slope as much as of curvature."
            )
    return said


def _not_converged(models: Sequence[Measured]) -> list[str]:
    parts: tuple[tuple[str, Callable[[Measured], bool]], ...] = (
        ("λmax", lambda m: m.eigenpairs is not None and not m.eigenpairs.converged),
        ("the sharpness", lambda m: m.sharpness is not None and not m.sharpness.converged),
    )
    said = []
    for what, is_open in parts:
        names = [_short(model) for model in models if is_open(model)]
        if names:
            said.append(
                f"The search for {what} has not converged for {' and '.join(names)}: the value "
                "may be larger than shown."
            )
    return said


def _different_balls(models: Sequence[Measured]) -> list[str]:
    if len(_balls(models)) < 2:
        return []
    return ["The sharpness was sought in different balls (ρ, p or scale), and is not compared."]


def _different_sources(models: Sequence[Measured]) -> list[str]:
    sources = [source for model in models for source in model.sources().values()]
    tests = [model.test.provenance for model in models if model.test is not None]
    several = len(models) > 1
    who, whose = ("The checkpoints were", "their") if several else ("The checkpoint was", "its")
    said = []
    for field, what in _DIFFERENCES.items():
        ranked = field not in _HELD_OUT and _differ(tests, field)
        if ranked or _differ(sources, field):
            said.append(f"{who} measured {what}: {whose} numbers are not strictly comparable.")
        if field in _HELD_OUT and _differ(tests, field):
            said.append(f"The losses on held-out data were measured {what}, and are not compared.")
    for model in models:
        if not said and _differ(list(model.sources().values()), "problem_fingerprint"):
            said.append(
                f"Some numbers of {_short(model)} are of a model or loss that computes something "
                "else: its numbers are not strictly comparable."
            )
    return said


def _differ(sources: Sequence[Provenance], field: str) -> bool:
    return len({getattr(source, field) for source in sources}) > 1


def _balls(models: Sequence[Measured]) -> set[tuple[float, float, str, float]]:
    found = [m.sharpness for m in models if m.sharpness is not None]
    return {(s.rho, s.p, s.adaptive, s.eta) for s in found}


def _ball(models: Sequence[Measured]) -> str:
    balls = _balls(models)
    if len(balls) != 1:
        return ""
    rho, p, adaptive, _ = next(iter(balls))
    scale = "" if adaptive == "none" else f", {adaptive}"
    return f"ρ = {rho:g}, p = {p:g}{scale}"


def _second(pair: tuple[str, float]) -> float:
    return pair[1]


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _short(model: Measured) -> str:
    return shorten(model.name, 40)
