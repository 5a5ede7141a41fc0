"""Two checkpoints compared: differences of measures on the same examples and the same noise."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from landscape.choices import Scale
from landscape.errors import InvalidArgumentError, LossError
from landscape.evaluate import Engine, Evaluator, error_of_mean, final_divisor
from landscape.measurement import cached_measurement, check_pair, identity_of
from landscape.operators import parameter_scale
from landscape.problem import Problem
from landscape.results import AverageSharpness, Cost, Differences, PairedDifference, Provenance
from landscape.sharpness import VERSION, average_sharpness, sharpness
from landscape.stats import interval_of_mean, student
from landscape.study import Study

CONFIDENCE = 0.95
# Losses that differ by more than this share of the larger one mislead.
_APART = 0.5

_SOURCE = ("data_fingerprint", "objective", "split", "mode", "n_parameters", "parameters")

Pair = tuple[Problem, Problem]


class _Row(NamedTuple):
    """One measure at both checkpoints, and the difference."""

    name: str
    own: float
    other: float
    standard_error: float
    low: float
    high: float


def differences(
    problem: Problem,
    against: Problem,
    *,
    rho: float = 0.05,
    full: bool = True,
    seed: int = 0,
    study: Study | None = None,
    progress: bool | None = None,
) -> Differences:
    """Measure how much more loss and sharpness a checkpoint has than another one.

    The loss; sharpness in balls of equal ρ, and of equal ρ/‖w‖ (that of ρ at the other
    checkpoint). With ``full`` also what neither the scale of the weights nor that of the logits
    changes: sharpness in the filter-wise adaptive ball, at the radius that moves the other
    checkpoint's weights by ρ in the mean square, and of normalised logits where the loss is one of
    classes; and the average on the sphere of radius ρ.

    Standard errors are over the examples, the maximisers being as they are.

    Args:
        problem: at one checkpoint.
        against: at the other, on the same data.
        rho: radius ρ.
        full: whether to measure the last three too.
        seed: of the searches, and of the noise.
        study: where the results are kept, the single ones too, and looked up first.
        progress: show bars on stderr; None: where stderr is a terminal.

    Returns:
        The differences with their 95 % intervals.

    Raises:
        InvalidArgumentError: if ρ is not above zero, or the models differ.
        DataError: if the checkpoints are not on the same data.

    Cost: three or seven searches for sharpness in all, those that the study holds not counted, and
    about 20 forward passes.

    References:
        Foret, Kleiner, Mobahi, Neyshabur (2021), arXiv:2010.01412; Kwon, Kim, Park, Choi (2021),
        arXiv:2102.11600; Andriushchenko, Croce, Müller, Hein, Flammarion (2023), arXiv:2302.07011.
    """
    if problem.space != against.space:
        names = f"{problem.name} and {against.name}"
        msg = f"{names} explore different parameters; compare like with like"
        raise InvalidArgumentError(msg)
    check_pair(problem, against, alike=("mode", "split", "dtype"))
    settings = {
        "against": against.checkpoint_hash,
        "mode": against.mode,
        "problem": identity_of(against, study),
        "rho": float(rho),
        "full": full,
        "seed": seed,
        "search": VERSION,
    }
    shared = {"seed": seed, "study": study, "progress": progress}

    def measure(provenance: Provenance) -> Differences:
        started = time.perf_counter()
        rows = list(_rows((problem, against), float(rho), full, shared))
        names, *columns = zip(*rows, strict=True)
        return Differences(
            against=against.name,
            names=names,
            **{name: np.array(c) for name, c in zip(_Row._fields[1:], columns, strict=True)},
            notes=_notes(problem.name, against.name, rows),
            settings=settings,
            # The searches have records of their own: these are the passes at their ends.
            cost=Cost(
                forwards=2 + 4 * sum("sharpness" in row.name for row in rows),
                seconds=time.perf_counter() - started,
            ),
            provenance=provenance,
        )

    found = cached_measurement(Differences, problem, settings, study, measure)
    return dataclasses.replace(found, against=against.name)


def _rows(pair: Pair, rho: float, full: bool, shared: dict[str, Any]) -> Iterator[_Row]:
    sizes = [float(torch.linalg.vector_norm(p.weights, dtype=torch.float64)) for p in pair]
    yield _loss_row(pair, shared["seed"])
    yield _sharpness_row(f"sharpness, ρ = {rho:g}", pair, (rho, rho), shared)
    if min(sizes) > 0:
        name = f"sharpness, ρ/‖w‖ = {rho / sizes[1]:.3g}"
        yield _sharpness_row(name, pair, (rho * sizes[0] / sizes[1], rho), shared)
    if not full:
        return
    scale = parameter_scale(pair[1], "filterwise").double()
    size = float(torch.linalg.vector_norm(scale))
    if size > 0:
        radius = rho * math.sqrt(len(scale)) / size
        name = f"adaptive sharpness, filterwise, ρ = {radius:.3g}"
        yield _sharpness_row(name, pair, (radius, radius), shared, adaptive="filterwise")
    try:
        normal = (pair[0].with_normalised_logits(), pair[1].with_normalised_logits())
        name = f"sharpness of normalised logits, ρ = {rho:g}"
        yield _sharpness_row(name, normal, (rho, rho), shared)
    except LossError:
        pass  # not a loss of classes by their logits
    yield _average_row(pair, rho, shared)


def _loss_row(pair: Pair, seed: int) -> _Row:
    own, other = (_losses(problem, [], seed) for problem in pair)
    return _paired("loss", pair, own[0], other[0])


def _sharpness_row(
    name: str,
    pair: Pair,
    radii: tuple[float, float],
    shared: dict[str, Any],
    adaptive: Scale = "none",
) -> _Row:
    """Compare the rises of the examples at the two maximisers."""
    rises = []
    for problem, rho in zip(pair, radii, strict=True):
        found = sharpness(problem, rho, adaptive=adaptive, **shared)
        epsilon = torch.as_tensor(found.epsilon).to(problem.device, problem.dtype)
        (low, weights), (high, _) = _losses(problem, [epsilon], shared["seed"])
        rises.append((high - low, weights))
    return _paired(name, pair, *rises)


def _losses(problem: Problem, steps: list[Tensor], seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return loss and weight of each example at the checkpoint, and after each step."""
    with Evaluator(problem, seed=seed) as evaluator:
        engine = Engine(evaluator)
        points = [evaluator.origin, *(evaluator.origin + step for step in steps)]
        losses = engine.losses(points, keep=True)
    found = [loss.examples for loss in losses if loss.examples is not None]
    if len(found) < len(points):
        msg = (
            f"the loss of {problem.name} gives no losses of single examples, and a paired "
            "difference takes them: return one loss per example"
        )
        raise LossError(msg)
    return found


def _paired(
    name: str, pair: Pair, own: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]
) -> _Row:
    """Return Σs/Σw at both, and the interval of the difference by the delta method."""
    (s, w), (s_other, _) = own, other
    sums = pair[0].loss.sums
    error = error_of_mean(s - s_other, w, plain_sum=sums)
    divisor = final_divisor(float(w.sum()), plain_sum=sums)
    values = float(s.sum()) / divisor, float(s_other.sum()) / divisor
    half = student(CONFIDENCE, len(s) - 1) * error if len(s) > 1 else math.nan
    difference = float((s - s_other).sum()) / divisor
    return _Row(name, *values, error, difference - half, difference + half)


def _average_row(pair: Pair, rho: float, shared: dict[str, Any]) -> _Row:
    options = {"distribution": "sphere", "prediction": False, **shared}
    own, other = (average_sharpness(problem, rho, **options) for problem in pair)
    found = paired_difference(own, other)
    name = f"average on the sphere, ρ = {rho:g}"
    return _Row(name, own.value, other.value, found.standard_error, found.low, found.high)


def _notes(own: str, other: str, rows: list[_Row]) -> tuple[str, ...]:
    loss = rows[0]
    larger = max(abs(loss.own), abs(loss.other))
    if abs(loss.own - loss.other) <= _APART * larger:
        return ()
    lower, higher = (own, other) if loss.own < loss.other else (other, own)
    return (
        f"the losses differ much: as {lower} fits the data better than {higher}, its outputs may "
        "be saturated, which lowers curvature and small-radius sharpness without a wider minimum; "
        "look at normalised logits, larger ρ, and checkpoints of equal loss",
    )


def paired_difference(first: AverageSharpness, second: AverageSharpness) -> PairedDifference:
    """Compare the average rises around two checkpoints, draw by draw.

    With the same noise for both, what a draw of z adds to both averages cancels in their
    difference.

    Args:
        first: the average around one checkpoint.
        second: that around another, on the same data, with the same settings but for the number of
            samples.

    Returns:
        The first minus the second, over the draws that both have, with its 95 % interval. No
        passes over the data.

    Raises:
        InvalidArgumentError: if the two were not measured with the same noise on the same data.
    """
    names = ("rho", "distribution", "adaptive", "eta", "seed")
    pairs = {name: (first.settings[name], second.settings[name]) for name in names}
    for name in _SOURCE:
        pairs[name] = getattr(first.provenance, name), getattr(second.provenance, name)
    for name, (one, other) in pairs.items():
        if one != other:
            msg = (
                f"{first.name} was measured with {name} = {one!r} and {second.name} with {other!r};"
                " a paired difference needs the same noise on the same data: measure one again"
            )
            raise InvalidArgumentError(msg)
    n = min(len(first.rises), len(second.rises))
    a, b = first.draws[:n], second.draws[:n]
    with np.errstate(invalid="ignore"):
        value, error, low, high = interval_of_mean(a - b)
    spreads = np.isfinite(value) and a.std() > 0 and b.std() > 0
    return PairedDifference(
        names=(first.name, second.name),
        value=value,
        standard_error=error,
        low=low,
        high=high,
        n_draws=n,
        rho=first.rho,
        correlation=float(np.corrcoef(a, b)[0, 1]) if spreads else math.nan,
    )
