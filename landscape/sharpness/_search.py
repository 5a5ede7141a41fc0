"""The search for the largest rise of a loss in a ball: climbs from several starts, in turn."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.checks import check_real, positive
from landscape.errors import InvalidArgumentError, LossError, NonFiniteError, NonFiniteWarning
from landscape.linalg.krylov import dot, norm
from landscape.problem import Problem
from landscape.progress import note_on_bar
from landscape.results import FloatArray
from landscape.sharpness._ascent import HISTORY, Ascent, Point
from landscape.sharpness._auto_pgd import auto_pgd
from landscape.sharpness._ball import Ball
from landscape.sharpness._objective import BallObjective
from landscape.sharpness._quadratic import QuadraticModel

# In the settings of what it finds, so that studies do not give back what an earlier one found:
# raised where another value may come of the same question. The first had none.
VERSION = 2
SCOUTING = 8  # gradient passes for each start, before it must be the highest to go on
COMPARING = 5  # the same for p = ∞ and the quadratic model, compared with the first start
MOMENTUM = 10  # gradient passes with momentum that lead to a start
FEW_PRODUCTS = 3  # of the quadratic model, before its start is compared with the first
_MORE_PRODUCTS = 8  # where the two do not agree
_ROUTINE = "memory for "  # how notes begin that nobody needs to be warned of
_LARGEST_COORDINATES = 4  # of the ball p = 1, tried for each direction to start in
_SAME = 0.99  # cosine above which two climbs are taken for one
_LEVEL = 3e-3  # relative difference below a higher climb within which another one ends
_EQUAL = 1e-2  # relative difference of two values that are taken for one
_EARLY = 0.1  # of the gap that is sought: where it is met, steps with momentum end
_MODEL_TOL = 1e-2
_MOST_VERTICES = 256  # of a ball p = 1 or ∞, up to which all are tried
_POLISHING = (3, 10)  # second-order steps, and products for each
PRODUCTS = 16  # with the Hessian at w, at most
VECTORS = 12  # beyond the model, its checkpoint and the graph
SMALL = 2**26  # bytes that are always used, so that small models are searched with all means
# The gradient at w, the best point, two points with their gradients less one, and a direction.
_CLIMB = 8
# The gradient at w, the best point, and what a product and the next vector take.
_PRODUCT = 6


@dataclass(frozen=True)
class Room:
    """What there is memory for."""

    pairs: int = HISTORY  # of the L-BFGS history
    products: int = PRODUCTS  # vectors of a quadratic model's subspace
    keeps_model: bool = True  # whether the subspace can stay while the search climbs
    note: str = ""  # what was shortened and left out for lack of memory; empty: nothing


def room(vector_bytes: int, memory: float | None, *, scaled: bool) -> Room:
    """Divide memory among the history and the quadratic model."""
    bytes_there = max(VECTORS * vector_bytes, SMALL) if memory is None else memory
    vectors, least = int(bytes_there // vector_bytes), _CLIMB + scaled
    if vectors < least:
        msg = (
            f"memory = {bytes_there:,.0f} bytes holds {vectors} vectors of the model's size, and a "
            f"search takes {least} at least: give {least * vector_bytes:,} bytes"
        )
        raise InvalidArgumentError(msg)
    pairs = min(HISTORY, (vectors - least) // 2)
    products = min(PRODUCTS, vectors - _PRODUCT - 2 * scaled)
    keeps = vectors >= least + 2 * HISTORY + PRODUCTS + 2  # more than history and model need
    note = (
        f"memory for {vectors} vectors of the model's size: a quadratic model of at most "
        f"{products} products, an L-BFGS history of {pairs} pairs, no starts along the top "
        "eigenvector"
    )
    return Room(pairs, products, keeps, "" if keeps else note)


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How long a search goes on."""

    tol: float = 1e-4  # relative Frank-Wolfe gap to reach
    max_gradients: int = 200  # gradient passes to spend at most, after scouting
    seed: int = 0  # of the random start
    memory: float | None = None  # bytes to use beyond model, data and graph; None: a few vectors

    def __post_init__(self) -> None:
        check_real(tol=self.tol)
        if self.memory is not None:
            object.__setattr__(self, "memory", positive("memory", self.memory))
        if not 0 < self.tol < 1 or self.max_gradients < 1:
            msg = (
                f"expected 0 < tol < 1 and max_gradients ≥ 1, got {self.tol!r} and "
                f"{self.max_gradients!r}"
            )
            raise InvalidArgumentError(msg)

    @property
    def settings(self) -> dict[str, Any]:
        """What identifies the search."""
        settings = {"tol": self.tol, "max_gradients": self.max_gradients, "seed": self.seed}
        return settings | ({} if self.memory is None else {"memory": self.memory})

    def room(self, problem: Problem, ball: Ball) -> Room:
        """Return what a search has memory for."""
        size = problem.space.n * problem.dtype.itemsize
        return room(size, self.memory, scaled=ball.adaptive != "none")


@dataclass(frozen=True)
class Climb:
    """A climb that has ended."""

    height: float  # rise at its highest point; −∞ where the loss was finite at none
    gap: float  # relative Frank-Wolfe gap there
    # whether it ended because it came close to an earlier, higher one, or as high
    met: bool = False


class Search:
    """Climbs in one ball, one after another; of all but the highest point only numbers are kept.

    Attributes:
        origin: the rise of the loss around the checkpoint.
        ball: where the search goes on.
        climbs: what came of each start, by its name.
        one_step: rise after SAM's one step.
        left: gradient passes that may still be spent, beyond the first ones of each climb.
        notes: limits and failures that the user should know of.
        model: the quadratic model at the checkpoint, if there is one.
    """

    def __init__(
        self,
        origin: BallObjective,
        ball: Ball,
        options: SearchOptions = SearchOptions(),
    ) -> None:
        """Begin without any start."""
        self.origin, self.ball, self.options = origin, ball, options
        self.tol, self.left = options.tol, options.max_gradients
        origin.ball = ball
        self.room = options.room(origin.evaluator.problem, ball)
        self.climbs: dict[str, Climb] = {}
        self.one_step = 0.0  # where the gradient is zero, SAM takes no step
        self.notes: tuple[str, ...] = (self.room.note,) if self.room.note else ()
        self.model: QuadraticModel | None = None
        self._highest: tuple[Point, float] | None = None
        self.slope = origin.point.steepness
        self._ascent = partial(
            Ascent,
            origin.objective,
            ball,
            slope=self.slope,
            level=origin.loss,
            history=self.room.pairs,
        )

    @property
    def height(self) -> float:
        """The highest rise that a climb came to; −∞ where the loss was finite at none."""
        return max((climb.height for climb in self.climbs.values()), default=-math.inf)

    @property
    def best(self) -> Point:
        """The highest point, the checkpoint itself among those that count."""
        if self._highest is not None and self.height > 0:
            return self._highest[0]
        return self.origin.point

    @property
    def gap(self) -> float:
        """Relative Frank-Wolfe gap at the highest point."""
        if self._highest is not None and self.height > 0:
            return self._highest[1]
        return self.best.gap(self.ball, slope=self.slope, noise=self._rounding)

    @property
    def _rounding(self) -> float:
        return float(torch.finfo(self.origin.point.gradient.dtype).eps * abs(self.origin.loss))

    @property
    def agrees(self) -> bool:
        """Whether the gap is met, and at least two starts came to the same, and none to another."""
        equal = [
            climb.met or abs(climb.height - self.height) <= _EQUAL * abs(self.height)
            for climb in self.climbs.values()
        ]
        return len(equal) > 1 and all(equal) and self.gap <= self.tol

    def explore(
        self,
        *,
        eigenvectors: FloatArray | None = None,
        start: FloatArray | None = None,
        few_products: int = FEW_PRODUCTS,
    ) -> None:
        """Climb from one start after another; for p = 2 and ∞ only until they agree."""
        like = self.origin.point.gradient
        if start is not None:
            epsilon, scale = self.origin.held(start).to(like, copy=True), self.origin.scale
            if scale is not None:
                epsilon = torch.where(scale != 0, epsilon / scale, 0.0)
            self.start_at("given", epsilon)
        self.start_from_gradient()
        if eigenvectors is None:
            self.start_from_model(few_products)
        else:
            self.start_along(self.origin.held(eigenvectors).to(like))
        self.start_at_vertices()
        if self.ball.p in {2.0, math.inf} and self.agrees:
            return
        if self.ball.p == 2:
            self.start_from_momentum("momentum")
        if self.slope > 0:
            self.start("-gradient", -like)
        self.start_from_eigenvector()
        self.start("random", self.origin.drawn(self.options.seed))

    def start_from_gradient(self) -> None:
        """Begin at the dual maximiser of the gradient, SAM's own step; for p = ∞ with momentum."""
        if self.slope == 0:
            return
        if math.isinf(self.ball.p) and self.ball.rho * self.slope > self._rounding:
            self.start_from_momentum("gradient")
        else:
            self.one_step = self.start("gradient", self.origin.point.gradient)

    def start_from_momentum(self, name: str) -> None:
        """Begin at the highest point of some steps of Auto-PGD, for p = 2 and ∞.

        Its long steps with momentum pass over local maxima where a line search stays.
        """
        origin, ball = self.origin, self.ball
        if ball.rho * self.slope <= self._rounding:
            return
        enough = _EARLY * self.tol
        best, values = auto_pgd(
            origin.objective,
            ball,
            origin.point,
            n_steps=MOMENTUM,
            done=lambda point: point.gap(ball, slope=self.slope, noise=self._rounding) <= enough,
        )
        if name == "gradient":
            self.one_step = values[0]
        if best is not origin.point:
            climb = self._ascent(best)
            del best  # not to be held while the search climbs
            self._climb(name, climb)
        elif name == "gradient":
            self.start(name, origin.point.gradient)

    def start_from_model(self, max_products: int) -> None:
        """Begin at the maximiser of the quadratic model, which is built or grows."""
        model = self._grown(max_products, self.options.seed)
        if model is None or not model.products:
            return
        step, _ = model.maximum(self._radius)
        if not self.room.keeps_model:
            model.release()
        holder = [step if self.ball.p == 2 else self.ball.dual(step)]
        del step  # not to be held while the search climbs
        few = COMPARING if math.isinf(self.ball.p) else SCOUTING
        self._start("quadratic model", holder, scouting=few)

    def start_from_eigenvector(self) -> None:
        """Begin at both ends of the top eigenvector of the quadratic model, if that is kept."""
        if self.model is None or not self.room.keeps_model:
            return
        model = self._grown(_MORE_PRODUCTS, 0)
        if model is not None and model.products:
            self.start_along(model.top()[2][None])

    @property
    def _radius(self) -> float:
        """Radius of the Euclidean ball of about this size, in all directions that can move."""
        return float(self.ball.rho * self.origin.n_free ** (0.5 - 1 / self.ball.p))

    def _grown(self, max_products: int, seed: int) -> QuadraticModel | None:
        try:
            if self.model is None or self.model.is_released:
                self.model = QuadraticModel(
                    self.origin.curvature(),
                    self.origin.point.gradient,
                    self.origin.drawn(seed),
                    max_products=self.room.products,
                )
            self.model.grow(self._radius, tol=_MODEL_TOL, max_products=max_products)
        except (LossError, NonFiniteError) as error:
            # Sharpness itself needs no second derivative: search on without these starts.
            self.notes += (f"searching without the top eigenvector: {error}",)
            self.model = None
        return self.model

    def start_along(self, vectors: Tensor) -> None:
        """Begin at both ends of some directions."""
        for i, vector in enumerate(vectors):
            self.start(f"+eigenvector {i + 1}", vector)
            self.start(f"-eigenvector {i + 1}", -vector)

    def start_at_vertices(self) -> None:
        """Begin at the best of all vertices, where the ball has few: exact for a convex loss.

        Cost: a gradient pass, and a forward pass for each vertex.
        """
        vertices = _vertices(self.ball, self.origin)
        if vertices is None:
            return
        evaluator, origin = self.origin.evaluator, self.origin
        losses = [evaluator.loss(origin.at(d)).value for d in vertices]
        finite = np.where(np.isfinite(losses), losses, -np.inf)
        if np.isfinite(finite).any():
            self.start_at("best vertex", vertices[int(np.argmax(finite))])

    def start(self, name: str, direction: Tensor) -> float:
        """Begin where a direction points; for p = 1 also at the vertices that come next."""
        entries: list[tuple[int, float]] = []
        if self.ball.p == 1:
            largest = direction.abs().topk(min(_LARGEST_COORDINATES, len(direction))).indices
            entries = [(int(i), float(direction[i])) for i in largest]
        holder = [self.ball.dual(direction)]
        del direction  # not to be held while the search climbs
        first = self._start(name, holder)
        for i, (index, value) in enumerate(entries):
            if i and value:
                vertex = torch.zeros_like(self.origin.point.gradient)
                vertex[index] = math.copysign(self.ball.rho, value)
                holder.append(vertex)
                del vertex
                self._start(f"{name}, entry {i + 1}", holder)
        return first

    def start_at(self, name: str, d: Tensor) -> float:
        """Begin at a point."""
        return self._start(name, [d])

    def _start(self, name: str, holder: list[Tensor], *, scouting: int = SCOUTING) -> float:
        """Begin at the one point of a list, which is emptied: nobody holds it during the climb."""
        climb = self._ascent(self.ball.project_(holder.pop()))
        self._climb(name, climb, scouting=scouting)
        return climb.start_value

    def _climb(self, name: str, climb: Ascent, *, scouting: int = SCOUTING) -> None:
        """Climb until the gap is met; give up where a higher climb has been, or is higher."""
        met = False

        def meets(point: Point) -> bool:
            nonlocal met
            met = self._is_known(point)
            return met

        if not meets(climb.best):
            climb.climb(self.tol, scouting, done=meets)
        if not met and (climb.height > self.height or not self.climbs):
            before = climb.gradients
            climb.climb(self.tol, before + max(0, self.left), done=meets)
            self.left -= climb.gradients - before
        if climb.height > self.height:
            self._highest = climb.best.bare, climb.gap
        self.climbs[name] = Climb(climb.height, climb.gap, met)
        note_on_bar(f"rise {self.height:.4g}, gap {self.gap:.1e} of {self.tol:.1e}")

    def _is_known(self, point: Point) -> bool:
        """Whether a point is close to the highest one so far, or as high, and not above it."""
        if self._highest is None or not point.value <= self.height:
            return False
        if self.height - point.value <= _LEVEL * abs(self.height):
            return True
        best = self._highest[0].epsilon
        return dot(best, point.epsilon) >= _SAME * norm(best) * norm(point.epsilon) > 0

    def polish(self) -> None:
        """Take second-order steps from the highest point, where the gap is not met (p = 2).

        The step is to the maximiser over the ball of the quadratic model of the loss at the point
        itself, in a subspace of ten products with the Hessian there; a climb goes on from there.
        """
        rounds, products = _POLISHING
        for i in range(rounds):
            risen = self.height > 0 and self.best.usable
            if self.ball.p != 2 or self.left < 2 or not risen or self.gap <= self.tol:
                return
            try:
                there = [self._second_order_step(min(products, self.room.products))]
            except (LossError, NonFiniteError):
                return
            self.left -= 2
            self.go_on_at(f"second-order step {i + 1}", there)

    def go_on_at(self, name: str, holder: list[Tensor], *, share: float = 1.0) -> None:
        """Begin at a point close to the highest one, and climb as long as there are passes."""
        climb = self._ascent(self.ball.project_(holder.pop()))
        climb.climb(self.tol, climb.gradients + int(share * self.left))
        self.left -= climb.gradients
        if climb.height > self.height or (climb.height == self.height and climb.gap < self.gap):
            self._highest = climb.best.bare, climb.gap
        self.climbs[name] = Climb(climb.height, climb.gap)

    def _second_order_step(self, products: int) -> Tensor:
        here = self.best.epsilon
        matvec = self.origin.curvature(here)
        # Around d₀ the model is Gᵀ(d − d₀) + ½ (d − d₀)ᵀH(d − d₀): its slope at 0 is G − Hd₀.
        slope = self.origin.objective(here)[1].sub_(matvec(here))
        model = QuadraticModel(matvec, slope, here, max_products=products)
        model.grow(self.ball.rho, tol=1e-6)
        return model.maximum(self.ball.rho)[0]


def model_fields(search: Search) -> dict[str, float]:
    """Return what the quadratic model at the checkpoint says, where there is one."""
    model = search.model
    if model is None or not model.products:
        return {}
    fields = {"top_eigenvalue": model.top_value}
    if search.ball.p == 2:
        fields["quadratic_maximum"] = model.rise(search.ball.rho)
    return fields


def warn_of_search(
    n_overflowed: int, points: str, *, radius: float | None = None, notes: Sequence[str] = ()
) -> None:
    """Warn of points where the loss overflowed, and of notes that are not routine."""
    if n_overflowed:
        msg = (
            f"the loss or its gradient overflowed at {n_overflowed} {points}; they were left out "
            "of the search"
        )
        if radius is not None:
            msg += f"; the largest radius with a finite loss was {radius:g}"
        warnings.warn(msg, NonFiniteWarning, stacklevel=3)
    for note in notes:
        if not note.startswith(_ROUTINE):
            warnings.warn(note, stacklevel=3)


def n_vertices(p: float, n: int) -> int:
    """Return how many vertices of an n-dimensional ball are tried: all, if p = 1 or ∞ has few."""
    most = math.log2(_MOST_VERTICES)
    k = 2 * n if p == 1 else 2**n if math.isinf(p) and n <= most else 0
    return k if k <= _MOST_VERTICES else 0


def _vertices(ball: Ball, origin: BallObjective) -> Tensor | None:
    """Return all vertices of a ball p = 1 or ∞ if they are few, one in each row."""
    n = len(origin.point.epsilon)
    free = torch.arange(n, device=origin.point.epsilon.device)
    if origin.scale is not None:
        free = free[origin.scale != 0]
    k = len(free)
    if not n_vertices(ball.p, k):
        return None
    if ball.p == 1:
        signs = torch.cat([torch.eye(k), -torch.eye(k)])
    else:
        signs = 2.0 * torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * k).reshape(-1, k) - 1
    vertices = origin.point.epsilon.new_zeros((len(signs), n))
    vertices[:, free] = ball.rho * signs.to(vertices)
    return vertices
