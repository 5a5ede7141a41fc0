"""What the numbers of a comparison say, in cautious sentences, whichever way they come out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
    """One number of a checkpoint, in words with its evidence; error: 0 where it is not known."""

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
    sizes, bound = ("smallest", "largest"), ", as lower bounds found by search"
    findings = [
        _rank(curvature, "λmax of the Hessian", sizes),
        _rank(rise, f"Sharpness ({_ball(models)})", sizes, remark=bound),
        _agreement(curvature, rise),
        _rank(_losses(models), "Loss on held-out data", ("lowest", "highest")),
    ]
    cautions = [*_different_losses(models), *_slopes(models), *_not_converged(models)]
    if len(_balls(models)) > 1:
        cautions.append(
            "The sharpness was sought in different balls (ρ, p or scale), and is not compared."
        )
    cautions += _different_sources(models)
    if len(models) > 1 and any(findings):
        cautions.append(
            "These are single checkpoints: what sets them apart need not set the methods apart "
            "that trained them; repeat with several training seeds."
        )
    return Verdict(tuple(filter(None, findings)), tuple(cautions))


def _curvatures(models: Sequence[Measured]) -> list[Value]:
    values = []
    for model in models:
        if model.eigenpairs is not None:
            top, residual = model.eigenpairs.quantity(0), float(model.eigenpairs.residuals[0])
            error = top.error if math.isfinite(top.error) else residual
            values.append(Value(_short(model), top.value, str(top), error))
    return values


def _rises(models: Sequence[Measured]) -> list[Value]:
    values = [(_short(m), m.sharpness.value) for m in models if m.sharpness is not None]
    if len(_balls(models)) > 1:
        return []
    return [Value(name, value, f"≥ {number(value)}") for name, value in values]


def _losses(models: Sequence[Measured]) -> list[Value]:
    tests = [(_short(model), model.test) for model in models if model.test is not None]
    if any(_differ([test.provenance for _, test in tests], field) for field in _HELD_OUT):
        return []
    return [
        Value(
            name,
            at.loss,
            with_error(at.loss, at.loss_se),
            float(np.nan_to_num(at.loss_se, posinf=0)),
        )
        for name, at in tests
    ]


def _rank(values: Sequence[Value], measure: str, ends: tuple[str, str], *, remark: str = "") -> str:
    """Name the ends of the order by a measure, or say that they are about the same."""
    values = sorted((v for v in values if math.isfinite(v.value)), key=lambda v: v.value)
    if len(values) < 2:
        return ""
    least, most = values[0], values[-1]
    low, high = (f"{v.name} ({v.text})" for v in (least, most))
    if _same(least, most):
        return f"{measure}: about the same for {low} and {high}{remark}."
    ratio = f", {most.value / least.value:.3g} times as large" if least.value > 0 else ""
    return f"{measure}: {ends[0]} for {low}, {ends[1]} for {high}{ratio}{remark}."


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
    losses = {_short(m): m.evaluation.loss for m in models if m.evaluation is not None}
    losses = {name: loss for name, loss in losses.items() if math.isfinite(loss)}
    if len(losses) < 2:
        return []
    low_name, high_name = (extreme(losses, key=lambda name: losses[name]) for extreme in (min, max))
    low, high = losses[low_name], losses[high_name]
    if high - low <= LOSSES_DIFFER * max(abs(low), abs(high)):
        return []
    return [
        f"The losses at the checkpoints differ much: {number(low)} for {low_name}, {number(high)} "
        f"for {high_name}. Curvature changes as a loss is fitted further (that of the "
        "cross-entropy falls with the loss itself), so part of any difference may come from how "
        "well each is fitted, not from the kind of minimum."
    ]


def _slopes(models: Sequence[Measured]) -> list[str]:
    cautions = []
    for model in models:
        record, at = model.sharpness, model.evaluation
        if record is None or at is None or record.p != 2 or not math.isfinite(at.gradient_norm):
            continue
        same = (*_DIFFERENCES, "problem_fingerprint")
        if any(_differ([record.provenance, at.provenance], field) for field in same):
            continue  # the gradient is that of another loss
        slope = record.rho * at.gradient_norm
        if slope > 0.5 * record.value > 0:
            cautions.append(
                f"{_short(model)} is not at a minimum on the scale of the ball: its gradient "
                f"alone gives a rise of ρ‖∇L‖ = {number(slope)}, next to the {number(record.value)}"
                " found; its sharpness tells of slope as much as of curvature."
            )
    return cautions


def _not_converged(models: Sequence[Measured]) -> list[str]:
    cautions = []
    for measure, role in (("λmax", "eigenpairs"), ("the sharpness", "sharpness")):
        records = [(_short(model), getattr(model, role)) for model in models]
        names = [name for name, record in records if record and not record.converged]
        if names:
            cautions.append(
                f"The search for {measure} has not converged for {' and '.join(names)}: the value "
                "may be larger than shown."
            )
    return cautions


def _different_sources(models: Sequence[Measured]) -> list[str]:
    sources = [source for model in models for source in model.sources().values()]
    tests = [model.test.provenance for model in models if model.test is not None]
    several = len(models) > 1
    who, whose = ("The checkpoints were", "their") if several else ("The checkpoint was", "its")
    cautions = []
    for field, how in _DIFFERENCES.items():
        ranked = field not in _HELD_OUT and _differ(tests, field)
        if ranked or _differ(sources, field):
            cautions.append(f"{who} measured {how}: {whose} numbers are not strictly comparable.")
        if field in _HELD_OUT and _differ(tests, field):
            cautions.append(
                f"The losses on held-out data were measured {how}, and are not compared."
            )
    for model in models:
        if not cautions and _differ(list(model.sources().values()), "problem_fingerprint"):
            cautions.append(
                f"Some numbers of {_short(model)} are of a model or loss that computes something "
                "else: its numbers are not strictly comparable."
            )
    return cautions


def _differ(sources: Sequence[Provenance], field: str) -> bool:
    return len({getattr(source, field) for source in sources}) > 1


def _balls(models: Sequence[Measured]) -> set[tuple[float, float, str, float]]:
    records = [m.sharpness for m in models if m.sharpness is not None]
    return {(s.rho, s.p, s.adaptive, s.eta) for s in records}


def _ball(models: Sequence[Measured]) -> str:
    if len(_balls(models)) != 1:
        return ""
    ((rho, p, adaptive, _),) = _balls(models)
    scale = "" if adaptive == "none" else f", {adaptive}"
    return f"ρ = {rho:g}, p = {p:g}{scale}"


def _short(model: Measured) -> str:
    return shorten(model.name, 40)
