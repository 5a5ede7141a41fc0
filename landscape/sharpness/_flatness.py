"""The other measures of flatness of the field, each with its evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from landscape.checks import positive, whole
from landscape.errors import LandscapeError, LossError, NonFiniteError
from landscape.evaluate import Engine, Evaluator, choose_plan, require_finite
from landscape.measurement import Run, Work, error_of_difference
from landscape.operators import EmpiricalFisher, Hessian
from landscape.problem import Problem, check_problem
from landscape.results import Flatness
from landscape.sharpness._noise_scale import NotReachedError, noise_scale
from landscape.sharpness._perturbations import Perturbations
from landscape.sharpness._relative_flatness import neuron_blocks, relative_flatness
from landscape.stats import jackknife
from landscape.study import Study

FLOOR = 1e-3
"""What is added to |w| in the noise that is scaled by the weights."""
_GROUPS = 32


class AbsentError(LandscapeError):
    """This problem has nothing that the measure is of."""


def flatness(
    problem: Problem,
    *,
    rho: float = 0.05,
    rise: float = 0.1,
    n_samples: int = 16,
    relative_error: float = 0.05,
    max_products: int = 200,
    seed: int = 0,
    study: Study | None = None,
    progress: bool | None = None,
) -> Flatness:
    """Measure the gradient norm, Fisher-Rao norm, relative flatness, surrogate gap, and 1/σ².

    - Fisher-Rao norm, squared (Liang et al. 2019): ⟨w, Fw⟩ = Σ ωᵢ⟨w, ∇ℓᵢ⟩² / Σ ωᵢ, with the
      empirical Fisher matrix: the labels are those of the data, not drawn from the model.
    - Relative flatness (Petzka et al. 2021) of a linear or convolutional layer with neurons s:
      κ = Σₛₛ' ⟨wₛ, wₛ'⟩ tr(Hₛₛ'), over all pairs of neurons, without biases.
    - Surrogate gap (Zhuang et al. 2022, GSAM): h = L(w + ρ∇L/‖∇L‖) − L(w); 2h/ρ² is λ₁ near a
      minimum, when the gradient points along the top eigenvector.
    - 1/σ² (Jiang et al. 2020): σ the standard deviation of Gaussian noise at which the loss rises
      by ``rise`` on average (they take the error rate); and the same with noise of standard
      deviation σ(|w| + 0.001), where they add the floor to the variance, without σ.

    Rescaling the layers of a ReLU network against each other changes all but the first two.

    Args:
        problem: what to measure.
        rho: radius of the surrogate gap.
        rise: average rise of the loss that σ is searched for, in units of the loss.
        n_samples: draws of noise for σ, each tried with both signs.
        relative_error: half-width of the 95 % interval of the summed relative flatness to reach,
            relative to it.
        max_products: products with the Hessian to spend at most.
        seed: of noise, probes and dropout masks.
        study: where the result is kept, and looked up first.
        progress: show a bar on stderr; None: where stderr is a terminal.

    Returns:
        All measures with standard errors; one that cannot be made is NaN, with the reason. Cost: a
        gradient, ``max_products`` products and one more, and about 32 forward passes for each draw.

    Raises:
        InvalidArgumentError: if an argument is out of its range.

    References:
        Liang, Poggio, Rakhlin, Stokes (2019), Fisher-Rao metric, geometry, and complexity of
        neural networks, arXiv:1711.01530; Petzka et al. (2021), Relative flatness and
        generalization, arXiv:2001.00939; Zhuang et al. (2022), Surrogate gap minimization improves
        sharpness-aware training, arXiv:2203.08065; Jiang et al. (2020), Fantastic generalization
        measures and where to find them, arXiv:1912.02178.
    """
    check_problem(problem)
    numbers = {"rho": rho, "rise": rise, "relative_error": relative_error}
    settings: dict[str, Any] = {name: positive(name, value) for name, value in numbers.items()}
    counts = {"n_samples": n_samples, "max_products": max_products}
    settings |= {name: whole(name, count, least=2) for name, count in counts.items()}
    settings["seed"] = seed

    def measure(work: Work) -> dict[str, Any]:
        evaluator = work.evaluator
        loss = evaluator.loss().value
        require_finite(loss, problem)
        _, gradient = evaluator.gradient()
        weights = evaluator.origin.double()
        noise: dict[str, Any] = {"loss": loss, "rise": settings["rise"], "n": settings["n_samples"]}
        measures: dict[str, Callable[[], dict[str, Any]]] = {
            "fisher_rao": lambda: _fisher_rao(evaluator),
            "relative_flatness": lambda: _relative_flatness(evaluator, settings),
            "gap": lambda: _gap(evaluator, gradient, settings["rho"]),
            "pac_bayes": lambda: _noise(
                evaluator, "sigma", torch.ones_like(weights), seed=seed, **noise
            ),
            "pac_bayes_magnitude": lambda: _noise(
                evaluator, "sigma_magnitude", weights.abs() + FLOOR, seed=seed, **noise
            ),
        }
        fields: dict[str, Any] = {"loss": loss, "gradient_norm": _norm(gradient)}
        fields |= {"rho": settings["rho"], "rise": settings["rise"], "left_out": {}}
        for name, part in measures.items():
            try:
                fields |= work.count(part)()
            except (AbsentError, LossError, NonFiniteError, NotReachedError) as error:
                fields["left_out"][name] = str(error)
        return fields

    run = Run(study=study, seed=seed, progress=progress)
    return run.record(Flatness, problem, settings, measure, unit="measure", total=5)


def _fisher_rao(evaluator: Evaluator) -> dict[str, Any]:
    plain_sum = evaluator.problem.loss.sums
    operator = EmpiricalFisher(evaluator)
    sums, weights = operator.quadratic_forms(evaluator.origin[None], n_groups=_GROUPS)
    total = float(weights.sum())
    found = {"fisher_rao": float(sums.sum()) / (1.0 if plain_sum else total)}
    if len(sums) >= 2:
        error = float(jackknife(sums, weights)[0])
        found["fisher_rao_se"] = error * total if plain_sum else error
    return found


def _relative_flatness(evaluator: Evaluator, settings: Mapping[str, Any]) -> dict[str, Any]:
    blocks = neuron_blocks(evaluator.problem)
    if not blocks:
        msg = "no linear or convolutional layer has its weight among the parameters"
        raise AbsentError(msg)
    hessian = Hessian(evaluator)
    names = ("relative_error", "max_products", "seed")
    found = relative_flatness(hessian, blocks, **{name: settings[name] for name in names})
    return {
        "layers": tuple(block.name.removesuffix(".weight") for block in blocks),
        "relative_flatness": found.value,
        "relative_flatness_se": found.standard_error,
        "relative_flatness_low": found.low,
        "relative_flatness_high": found.high,
        "products": hessian.describe(),
    }


def _gap(evaluator: Evaluator, gradient: Tensor, rho: float) -> dict[str, Any]:
    size = _norm(gradient)
    if size == 0.0:
        msg = "the gradient is zero, and has no direction"
        raise AbsentError(msg)
    step = (rho * (gradient.double() / size)).to(gradient.dtype)
    origin = evaluator.origin
    here, there = Engine(evaluator).losses([origin, origin + step], keep=True)
    error = error_of_difference(evaluator.problem, there, here)
    return {"gap": there.value - here.value, "gap_se": error}


def _noise(
    evaluator: Evaluator, name: str, scale: Tensor, *, seed: int, loss: float, rise: float, n: int
) -> dict[str, Any]:
    draws = Perturbations(scale, "gaussian", seed=seed)
    engine = Engine(evaluator, choose_plan(evaluator))
    # Noise of a tenth of the weights' norm, or of a tenth where there are none.
    size = float(torch.linalg.vector_norm(evaluator.origin.double()))
    start = 0.1 * (size / float(torch.linalg.vector_norm(draws.scale)) or 1.0)
    sigma, error = noise_scale(engine, draws, loss=loss, rise=rise, n=n, start=start)
    return {name: sigma, f"{name}_se": error}


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))
