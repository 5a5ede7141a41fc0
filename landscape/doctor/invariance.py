"""Self-test of invariance: rescale the network without changing it, and see which measures move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.doctor._rescaling import Outputs, find_rescalings, rescaled
from landscape.doctor.context import DiagnosticContext, check, not_applicable
from landscape.doctor.minimum import RHO
from landscape.evaluate import Evaluator, sample, stand_ins
from landscape.linalg.krylov import dot
from landscape.operators import Hessian, parameter_scale
from landscape.problem import Problem
from landscape.problem._live import tensors_by_name
from landscape.randomness import seeded
from landscape.results import FloatArray
from landscape.results.diagnoses import Check
from landscape.surface import random_direction
from landscape.wording import number

_EXAMPLES = 32  # on which a rescaling is tried
_PROBES = 2
_TOP, _SCALED = 8, 6  # products for a largest eigenvalue, of H and of THT
_STEP = 0.5  # along the filter-normalised direction
_SAME = 1e-3  # change of the loss, relative, that is rounding
_STILL, _MOVED = 0.01, 0.5  # change of a measure, relative


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What was rescaled, and each measure before and after."""

    rescaled: tuple[str, ...]  # each rescaling, in words
    measures: tuple[str, ...]  # names
    before: FloatArray  # shape (m,)
    after: FloatArray  # shape (m,)


def invariance(context: DiagnosticContext) -> Check:
    """Rescale all that can be, by powers of two from 1/4 to 4, and measure again.

    References:
        Dinh, Pascanu, Bengio, Bengio (2017), Sharp minima can generalize for deep nets,
        arXiv:1703.04933; Kwon, Kim, Park, Choi (2021), ASAM, arXiv:2102.11600.
    """
    own = context.finite_loss
    if context.problem.mode == "train":
        return not_applicable("in train mode the statistics of the batch take part")
    context.evaluator.write()
    state = _state(context.problem)
    found = find_rescalings(
        context.problem.model, _outputs(context), state=state, seed=context.seed
    )
    if not found:
        return not_applicable(
            "no layers that can be rescaled against each other without changing the outputs"
        )
    other = context.problem.at(rescaled(state, found))
    top = float(context.spectrum.values[0])
    before = _measures(context, context.evaluator, own, context.gradient, top)
    with Evaluator(other, seed=context.seed) as evaluator:
        value, gradient = evaluator.gradient()
        top = _top(context, evaluator, matvecs=_TOP)
        after = _measures(context, evaluator, value.value, gradient, top)
    for name, count in evaluator.passes.items():
        context.evaluator.passes[name] += count
    context.moved = Moved(
        rescaled=tuple(map(str, found)),
        measures=tuple(before),
        before=np.array(list(before.values())),
        after=np.array(list(after.values())),
    )
    return _verdict(own, value.value, context.moved)


def _verdict(own: float, loss: float, moved: Moved) -> Check:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = dict(zip(moved.measures, moved.after / moved.before, strict=True))
    numbers = {"loss": own, "loss_rescaled": loss, "places": float(len(moved.rescaled))}
    numbers |= {f"ratio {name}": float(ratio) for name, ratio in ratios.items()}
    text = f"{len(moved.rescaled)} rescalings leave the function as it is (loss {number(loss)})"
    if not abs(loss - own) <= _SAME * max(abs(own), _SAME):
        text = (
            f"{len(moved.rescaled)} rescalings that leave the outputs on {_EXAMPLES} examples as "
            f"they are change the loss from {number(own)} to {number(loss)}"
        )
        advice = "compute in float64: rounding is large where layers differ much in scale"
        return check("warning", text, numbers, advice)
    low, high = 1 / (1 + _MOVED), 1 + _MOVED
    astray = [name for name, r in ratios.items() if np.isfinite(r) and not low <= r <= high]
    still = [name for name, r in ratios.items() if abs(r - 1) < _STILL]
    if not astray:
        return check("fine", text, numbers)
    shown = ", ".join(f"{name} (times {number(ratios[name])})" for name in astray)
    text += f", but move: {shown}; as they were: {', '.join(still) or 'none'}"
    advice = (
        "what moves depends on how the weights are spread over the layers: compare checkpoints "
        "that were trained in different ways by the measures that stood still"
    )
    return check("note", text, numbers, advice)


def _measures(
    context: DiagnosticContext, evaluator: Evaluator, own: float, gradient: Tensor, top: float
) -> dict[str, float]:
    """Measure in several cheap ways, given the loss, its gradient and the largest eigenvalue."""
    problem, seed = evaluator.problem, context.seed
    scale = parameter_scale(problem, "elementwise")

    def rise(epsilon: Tensor) -> float:
        return evaluator.loss(evaluator.origin + epsilon).value - own

    def scaled_top(kind: str) -> float:
        return _top(context, evaluator, parameter_scale(problem, kind), matvecs=_SCALED)

    return {
        "largest eigenvalue": top,
        f"trace ({_PROBES} probes)": _trace(evaluator, seed),
        f"one-step sharpness, ρ = {RHO:g}": rise(_one_step(gradient, torch.ones_like(scale))),
        "largest eigenvalue, elementwise scale": scaled_top("elementwise"),
        "largest eigenvalue, filterwise scale": scaled_top("filterwise"),
        f"one-step adaptive sharpness, ρ = {RHO:g}": rise(_one_step(gradient, scale)),
        f"rise at {_STEP:g} of a filter-normalised direction": rise(
            _STEP * random_direction(problem, seed).vector
        ),
    }


def _top(
    context: DiagnosticContext, evaluator: Evaluator, scale: Tensor | None = None, *, matvecs: int
) -> float:
    return float(context.ends(evaluator, scale, both=False, matvecs=matvecs).values[0])


def _one_step(gradient: Tensor, scale: Tensor) -> Tensor:
    """Return ρ T²g / ‖Tg‖, the step of SAM and, adaptive, of ASAM."""
    slope = torch.linalg.vector_norm(scale * gradient)
    return RHO * scale.square() * gradient / slope if slope > 0 else torch.zeros_like(gradient)


def _trace(evaluator: Evaluator, seed: int) -> float:
    """Estimate the trace of the Hessian from a few probes of ±1, the same ones every time."""
    hessian = Hessian(evaluator)
    drawn = torch.randint(2, (_PROBES, hessian.n), generator=seeded(seed))
    probes = (2.0 * drawn - 1).to(evaluator.origin)
    return sum(map(dot, probes, hessian.matmat(probes))) / _PROBES


def _outputs(context: DiagnosticContext) -> Outputs:
    """Return a function that runs the model on a few examples with other values in place."""
    evaluator, problem = context.evaluator, context.problem
    few, like = sample(evaluator), evaluator.like

    def body(model: nn.Module, batch: Any) -> Tensor:
        terms, arguments = problem.loss(model, batch)
        output = arguments[0] if problem.loss.splits else None
        if isinstance(output, Tensor) and output.is_floating_point():
            return output
        return terms.total.reshape(1)

    buffers = dict(problem.model.named_buffers())
    own = problem.space.unflatten(evaluator.origin)

    def run(state: Mapping[str, Tensor]) -> Tensor:
        explored = {name: state.get(name, value).to(value) for name, value in own.items()}
        replaced = {name: value for name, value in state.items() if name in buffers}
        others = {n: v.to(like) for n, v in state.items() if n not in own and n not in buffers}
        with torch.no_grad(), stand_ins(problem.model, others):
            vector = problem.space.flatten(explored)
            return evaluator.on_batch(vector, few, 0, body, buffers=replaced)

    return run


def _state(problem: Problem) -> dict[str, Tensor]:
    """Return parameters and buffers that a state dict holds, each under one name."""
    names, saved = dict(tensors_by_name(problem.model)), problem.model.state_dict()
    return {name: problem.state()[name].clone() for name in names if name in saved}
