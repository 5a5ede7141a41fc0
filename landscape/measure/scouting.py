"""Trying the starts of a search on a part of the data, where there is enough of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from landscape.errors import DataError, LossError, NonFiniteError
from landscape.evaluate import Evaluator
from landscape.measure.origin import Origin
from landscape.measure.room import Room
from landscape.measure.search import FEW_PRODUCTS, Search
from landscape.randomness import seeded

PART = 8  # of the data, one in so many
FEWEST = 128  # examples of a part
_TOL = 1e-2  # gap that is sought on the part
_MAX_GRADIENTS = 100


@dataclass(frozen=True)
class Scouted:
    """The highest point over a part of the data.

    Attributes:
        d: the point, shape (n,).
        note: what was tried, on which examples.
    """

    d: Tensor
    note: str


def explore(search: Search, *, seed: int = 0, few_products: int = FEW_PRODUCTS) -> None:
    """Climb from every start: on a part of the data first, where there are at least 1,024 examples.

    On the part all starts are tried, and on all of the data the climb goes on from the highest of
    them; the gradient and the quadratic model go on only from where they begin higher.

    Args:
        search: what to begin.
        seed: of the random start and of the part.
        few_products: of the quadratic model, before its start is compared with the first.
    """
    scouted = _scouted(search, seed)
    if scouted is None:
        search.explore(seed=seed, few_products=few_products)
        return
    search.notes += (scouted.note,)
    search.start_at("scouted", scouted.d)
    search.explore_from_there(seed=seed, few_products=few_products)


def _scouted(search: Search, seed: int) -> Scouted | None:
    origin, problem = search.origin, search.origin.evaluator.problem
    n = problem.batches.n_examples
    if n < PART * FEWEST or not origin.evaluator.divisible:
        return None
    size = n // PART
    first = int(torch.randint(n - size + 1, (1,), generator=seeded(seed)))
    try:
        with Evaluator(problem.on_examples(first, first + size), seed=seed) as evaluator:
            inner = Search(
                Origin(evaluator, scale=origin.scale),
                search.ball,
                tol=max(search.tol, _TOL),
                max_gradients=min(search.left, _MAX_GRADIENTS),
                room=_beside(search.room),
            )
            inner.explore(seed=seed)
            for kind, passes in evaluator.passes.items():
                origin.evaluator.passes[kind] += math.ceil(passes * size / n)
    except (DataError, LossError, NonFiniteError):
        return None
    origin.ball = search.ball
    if not inner.height > 0:
        return None
    return Scouted(inner.best.epsilon, _note(inner, first, size))


def _beside(room: Room) -> Room:
    """Return the room that is left beside the gradient of all of the data."""
    if room.keeps_model:
        return replace(room, note="")
    return replace(room, note="", pairs=max(0, room.pairs - 1), products=max(1, room.products - 1))


def _note(search: Search, first: int, size: int) -> str:
    heights = {name: c.height for name, c in search.climbs.items() if math.isfinite(c.height)}
    best = max(heights, key=lambda name: heights[name])
    return (
        f"scouted on examples {first + 1:,} to {first + size:,}: {len(search.climbs)} starts came "
        f"to {min(heights.values()):.4g} to {max(heights.values()):.4g}, the highest from {best}"
    )
