"""The sharpness term max over ‖ε‖ₚ ≤ ρ of L(w+ε) − L(w), with how good the maximum found is."""

from __future__ import annotations

import hashlib
import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.balls import Ball
from landscape.errors import InvalidArgumentError, LossError, NonFiniteError, NonFiniteWarning
from landscape.evaluate import Evaluator, require_finite
from landscape.linalg import lanczos
from landscape.measure.ascent import Ascent, Objective, Point
from landscape.measure.recall import recall_or_measure
from landscape.operators import Hessian
from landscape.problem import Problem
from landscape.progress import counting
from landscape.results import FloatArray, Provenance, Sharpness
from landscape.study import Study

_SCOUTING = 8  # gradient passes for each start before the best ones go on
_FINALISTS = 2
_VERTICES = 4  # of the ball p = 1, tried for each direction to start in
_SAME = 0.99  # cosine above which two climbs are taken for one
_EIGEN_TOL, _EIGEN_MATVECS = 1e-2, 16


def sharpness(
    problem: Problem,
    rho: float = 0.05,
    *,
    p: float = 2.0,
    tol: float = 1e-4,
    max_gradients: int = 200,
    eigenvectors: FloatArray | None = None,
    seed: int = 0,
    study: Study | None = None,
    progress: bool | None = None,
) -> Sharpness:
    """Measure max over ‖ε‖ₚ ≤ ρ of L(w+ε) − L(w), over the whole data set.

    A climb from several starts: ± the dual of the gradient (the first is SAM's one-step estimate),
    ± the top eigenvector of the Hessian, and a random point; for p = 1 from the vertices of the
    four largest entries of each. Each start gets a few passes; the two highest then go on until
    the relative Frank-Wolfe gap (ρ‖G‖_q − Gᵀε) / (ρ‖G‖_q), G = ∇L(w+ε), is at most ``tol``. The
    value is a lower bound on the maximum, and never below the one-step value nor below 0 (ε = 0 is
    in the ball). Points where the loss overflows are left out of it, with a warning.

    The gap alone does not prove that the maximum is global: a loss that curves upwards has local
    ones. On quadratic losses with p = 2 the tests hold the value to the exact maximum, to 1e-6
    where ``tol`` is 1e-10 and to 2 % where it is 1e-3; for p = 1 and ∞ a higher vertex may exist.

    Args:
        problem: what to measure.
        rho: radius ρ, in the units of the weights.
        p: order of the norm, at least 1; ``math.inf`` is allowed.
        tol: relative gap to reach.
        max_gradients: gradient passes to spend at most, after scouting.
        eigenvectors: directions to start from, shape (k, n), in place of the top eigenvector
            that is otherwise found with a few Hessian-vector products.
        seed: of the random start.
        study: where the result is kept, and looked up first.
        progress: show a bar on stderr; None: where stderr is a terminal.

    Returns:
        The largest rise found, ε, and the evidence. Cost: ``gradients`` gradient passes, and up
        to 18 Hessian-vector products for the eigenvector. Memory: about 45 vectors of length n.

    Raises:
        InvalidArgumentError: if ρ is not above zero, p is below 1, or a setting is out of range.

    References:
        Foret, Kleiner, Mobahi, Neyshabur (2021), arXiv:2010.01412.
    """
    ball = Ball(float(rho), float(p))
    if not 0 < tol < 1 or max_gradients < 1:
        msg = f"expected 0 < tol < 1 and max_gradients ≥ 1, got {tol!r} and {max_gradients!r}"
        raise InvalidArgumentError(msg)
    if eigenvectors is not None:
        eigenvectors = _checked_eigenvectors(eigenvectors, problem.space.n)
    settings = {
        "rho": ball.rho,
        "p": ball.p,
        "tol": tol,
        "max_gradients": max_gradients,
        "eigenvectors": None if eigenvectors is None else _digest(eigenvectors),
        "seed": seed,
    }

    def measure(provenance: Provenance) -> Sharpness:
        with (
            Evaluator(problem, seed=seed) as evaluator,
            counting(f"sharpness of {problem.name}", show=progress, unit="gradient") as count,
        ):
            search = _Search(evaluator, ball, count)
            search.add_starts(eigenvectors, seed)
            search.run(tol, max_gradients)
            return search.result(settings, provenance, tol)

    return recall_or_measure(Sharpness, problem, settings, study, measure)


class _Search:
    """A climb from several starts."""

    def __init__(self, evaluator: Evaluator, ball: Ball, count: Any) -> None:
        self._evaluator, self._ball = evaluator, ball
        origin, gradient = evaluator.gradient()
        require_finite(origin.value, evaluator.problem)
        _require_finite_gradient(gradient, evaluator.problem)
        self._loss, self._slope = origin.value, ball.dual_norm(gradient)
        self._origin = Point(torch.zeros_like(gradient), 0.0, gradient)
        self._objective: Objective = count(self._rise)
        self._climbs: dict[str, Ascent] = {}
        self._overflowed = 0

    def _rise(self, epsilon: Tensor) -> tuple[float, Tensor]:
        loss, gradient = self._evaluator.gradient(self._evaluator.origin + epsilon)
        finite = math.isfinite(loss.value) and bool(torch.isfinite(gradient).all())
        self._overflowed += not finite
        return loss.value - self._loss, gradient

    def add_starts(self, eigenvectors: FloatArray | None, seed: int) -> None:
        """Begin a climb from every start; the first is SAM's own step."""
        gradient = self._origin.gradient
        if self._slope > 0:
            self._start("gradient", gradient)
            self._start("-gradient", -gradient)
        for i, vector in enumerate(self._eigenvectors(eigenvectors, seed)):
            self._start(f"+eigenvector {i + 1}", vector)
            self._start(f"-eigenvector {i + 1}", -vector)
        generator = torch.Generator().manual_seed(seed)
        numbers = torch.randn(gradient.numel(), generator=generator, dtype=torch.float64)
        self._start("random", numbers.to(gradient))

    def run(self, tol: float, max_gradients: int) -> None:
        """Climb: a few passes for every start, then the highest ones until the gap is met."""
        for climb in self._climbs.values():
            climb.climb(tol, _SCOUTING)
        left = max_gradients
        for n_others, climb in zip(reversed(range(_FINALISTS)), self._finalists(), strict=False):
            before = climb.gradients
            climb.climb(tol, before + left // (n_others + 1))
            left -= climb.gradients - before

    def _finalists(self) -> list[Ascent]:
        """Order the climbs by height, those that point the same way as a higher one last."""
        ranked = sorted(self._climbs.values(), key=lambda climb: -climb.height)
        own: list[Ascent] = []
        for climb in ranked:
            if all(_cosine(climb.best.epsilon, higher.best.epsilon) < _SAME for higher in own):
                own.append(climb)
        return own + [climb for climb in ranked if climb not in own]

    def result(self, settings: dict[str, Any], provenance: Provenance, tol: float) -> Sharpness:
        """Put the record together."""
        if self._overflowed:
            msg = (
                f"the loss or its gradient overflowed at {self._overflowed} points of the ball of "
                f"radius {self._ball.rho:g}; they were left out of the search"
            )
            warnings.warn(msg, NonFiniteWarning, stacklevel=5)
        climbs = list(self._climbs.values())
        highest = max(climbs, key=lambda climb: climb.height)
        best, gap = highest.best, highest.gap
        if highest.height <= 0:  # nothing found is above ε = 0 itself
            best = self._origin
            rounding = torch.finfo(best.gradient.dtype).eps * abs(self._loss)
            gap = best.gap(self._ball, slope=self._slope, noise=rounding)
        return Sharpness(
            value=best.value,
            one_step=self._one_step,
            gap=gap,
            gradients=self._evaluator.passes["gradients"],
            rho=self._ball.rho,
            p=self._ball.p,
            loss=self._loss,
            norm=self._ball.norm(best.epsilon),
            converged=gap <= tol,
            epsilon=best.epsilon.cpu().numpy(),
            starts=tuple(self._climbs),
            start_values=np.array([climb.height for climb in climbs]),
            start_gaps=np.array([climb.gap for climb in climbs]),
            settings=settings,
            cost=self._evaluator.cost,
            provenance=provenance,
        )

    def _start(self, name: str, direction: Tensor) -> None:
        """Begin where the direction points; for p = 1 also at the vertices that come next."""
        self._climb_from(name, direction)
        if self._ball.p == 1:
            for i, index in enumerate(direction.abs().topk(min(_VERTICES, len(direction))).indices):
                if i:
                    vertex = torch.zeros_like(direction)
                    vertex[index] = direction[index]
                    self._climb_from(f"{name}, entry {i + 1}", vertex)

    def _climb_from(self, name: str, direction: Tensor) -> None:
        start = self._ball.dual(direction)
        climb = Ascent(self._objective, self._ball, start, slope=self._slope, level=self._loss)
        if name == "gradient":
            self._one_step = climb.start_value
        self._climbs[name] = climb

    _one_step = 0.0  # where the gradient is zero, SAM takes no step

    def _eigenvectors(self, given: FloatArray | None, seed: int) -> Tensor:
        if given is not None:
            return torch.as_tensor(given).to(self._origin.gradient)
        operator = Hessian(self._evaluator)
        try:
            solution = lanczos(
                operator.matvec,
                operator.n,
                k=1,
                tol=_EIGEN_TOL,
                max_matvecs=_EIGEN_MATVECS,
                seed=seed,
                dtype=operator.dtype,
                device=operator.device,
            )
        except (LossError, NonFiniteError) as error:
            # Sharpness itself needs no second derivative: search on without these two starts.
            msg = f"searching without the top eigenvector: {error}"
            warnings.warn(msg, stacklevel=6)
            return self._origin.gradient.new_zeros((0, operator.n))
        return solution.vectors


def _require_finite_gradient(gradient: Tensor, problem: Problem) -> None:
    bad = int((~torch.isfinite(gradient)).sum())
    if bad:
        msg = (
            f"the gradient of the loss of {problem.name} on the {problem.split} data is not "
            f"finite in {bad:,} of {gradient.numel():,} entries, so that no search can start; is "
            "there a square root or a norm at zero in the model?"
        )
        raise NonFiniteError(msg)


def _checked_eigenvectors(values: Any, n: int) -> FloatArray:
    vectors: FloatArray = np.atleast_2d(np.asarray(values))
    if vectors.ndim != 2 or vectors.shape[1] != n or not np.isfinite(vectors).all():
        msg = (
            f"expected finite eigenvectors of shape (k, {n}), one in each row and as long as the "
            f"model has parameters, got shape {vectors.shape}"
        )
        raise InvalidArgumentError(msg)
    return vectors


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


def _digest(values: FloatArray) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]
