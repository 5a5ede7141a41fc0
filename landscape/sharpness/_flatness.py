"""The other measures of flatness of the field, each with its evidence."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.checks import positive
from landscape.errors import InvalidArgumentError, LandscapeError, LossError, NonFiniteError
from landscape.evaluate import Engine, Evaluator, choose_plan, error_of_mean, require_finite
from landscape.measurement import Run, Work
from landscape.operators import EmpiricalFisher, Hessian
from landscape.problem import Problem
from landscape.results import Flatness
from landscape.sharpness._noise_scale import NotReachedError, width_of_noise
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

    In a ReLU network, rescaling layers against each other changes neither the Fisher-Rao norm nor
    the relative flatness, and all others. The relative flatness is of the Hessian, which does not
    see the kinks of such a network; what is measured with noise does.

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
    numbers = {"rho": rho, "rise": rise, "relative_error": relative_error}
    asked: dict[str, Any] = {name: positive(name, value) for name, value in numbers.items()}
    for name, count in (("n_samples", n_samples), ("max_products", max_products)):
        given: object = count
        if not isinstance(given, (int, np.integer)) or given < 2:
            msg = f"{name} must be a whole number of at least 2, got {given!r}"
            raise InvalidArgumentError(msg)
        asked[name] = int(given)
    settings = {**asked, "seed": seed}

    def measure(work: Work) -> dict[str, Any]:
        loss = work.evaluator.loss().value
        require_finite(loss, problem)
        _, gradient = work.evaluator.gradient()
        at = _FlatnessMeasures(work.evaluator, loss, gradient, settings)
        left_out: dict[str, str] = {}
        found: dict[str, Any] = {}
        for name, part in at.measures().items():
            try:
                found |= work.count(part)()
            except (AbsentError, LossError, NonFiniteError, NotReachedError) as error:
                left_out[name] = str(error)
        own = {"loss": loss, "gradient_norm": at.gradient_norm, "left_out": left_out}
        return {**own, **found, "rho": asked["rho"], "rise": asked["rise"]}

    run = Run(study=study, seed=seed, progress=progress)
    return run.record(Flatness, problem, settings, measure, unit="measure", total=5)


@dataclass(frozen=True)
class _FlatnessMeasures:
    """One checkpoint, and what is measured there."""

    evaluator: Evaluator
    loss: float
    gradient: Tensor
    asked: dict[str, Any]

    def measures(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """Return what to call for each measure; it gives values by field."""
        return {
            "fisher_rao": self._fisher_rao,
            "relative_flatness": self._relative_flatness,
            "gap": self._gap,
            "pac_bayes": lambda: self._width("sigma", torch.ones_like(self._weights)),
            "pac_bayes_magnitude": lambda: self._width(
                "sigma_magnitude", self._weights.abs() + FLOOR
            ),
        }

    @property
    def gradient_norm(self) -> float:
        return float(torch.linalg.vector_norm(self.gradient, dtype=torch.float64))

    @property
    def _weights(self) -> Tensor:
        return self.evaluator.origin.double()

    def _fisher_rao(self) -> dict[str, Any]:
        plain_sum = self.evaluator.problem.loss.sums
        operator = EmpiricalFisher(self.evaluator)
        sums, weights = operator.quadratic_forms(self.evaluator.origin[None], n_groups=_GROUPS)
        value = float(sums.sum()) / (1.0 if plain_sum else float(weights.sum()))
        if len(sums) < 2:
            return {"fisher_rao": value}
        error = float(jackknife(sums, weights)[0])
        return {
            "fisher_rao": value,
            "fisher_rao_se": error * float(weights.sum()) if plain_sum else error,
        }

    def _relative_flatness(self) -> dict[str, Any]:
        blocks = neuron_blocks(self.evaluator.problem)
        if not blocks:
            msg = "no linear or convolutional layer has its weight among the parameters"
            raise AbsentError(msg)
        hessian = Hessian(self.evaluator)
        names = ("relative_error", "max_products", "seed")
        asked = {name: self.asked[name] for name in names}
        found = relative_flatness(hessian, blocks, **asked)
        return {
            "layers": tuple(block.name.removesuffix(".weight") for block in blocks),
            "relative_flatness": found.value,
            "relative_flatness_se": found.standard_error,
            "relative_flatness_low": found.low,
            "relative_flatness_high": found.high,
            "products": hessian.describe(),
        }

    def _gap(self) -> dict[str, Any]:
        norm = self.gradient_norm
        if norm == 0.0:
            msg = "the gradient is zero, and has no direction"
            raise AbsentError(msg)
        step = (self.asked["rho"] * (self.gradient.double() / norm)).to(self.gradient.dtype)
        origin = self.evaluator.origin
        engine = Engine(self.evaluator)
        here, there = engine.losses([origin, origin + step], keep=True)
        error = math.nan
        if here.examples is not None and there.examples is not None:
            (terms, weights), (others, _) = here.examples, there.examples
            sums = self.evaluator.problem.loss.sums
            error = error_of_mean(others - terms, weights, plain_sum=sums)
        return {"gap": there.value - here.value, "gap_se": error}

    def _width(self, name: str, scale: Tensor) -> dict[str, Any]:
        draws = Perturbations(scale, "gaussian", seed=self.asked["seed"])
        engine = Engine(self.evaluator, choose_plan(self.evaluator))
        # Noise of a tenth of the weights' norm, or of a tenth where there are none.
        size = float(torch.linalg.vector_norm(self._weights))
        start = 0.1 * (size / float(torch.linalg.vector_norm(draws.scale)) or 1.0)
        found = width_of_noise(
            engine,
            draws,
            loss=self.loss,
            rise=self.asked["rise"],
            n=self.asked["n_samples"],
            start=start,
        )
        return {name: found.sigma, f"{name}_se": found.standard_error}
