"""Plans: how to evaluate the loss at many weight vectors, for other times and no other numbers.

And the data as a plan wants them: batches joined and cut anew, images with the channels last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from landscape.errors import InvalidArgumentError, one_of
from landscape.evaluate._evaluator import Evaluator
from landscape.evaluate._values import fitting
from landscape.precision import float32_products
from landscape.problem import Problem
from landscape.problem._batching import Batching
from landscape.problem.data import leaves, map_leaves, n_bytes
from landscape.processes import own

PRECISIONS = ("exact", "bfloat16", "float16", "tf32")
Numbered = Iterable[tuple[int, Any]]
# Pieces that take no more are made once and kept, beside the batches that they are made of.
_KEPT_BYTES = 2**30


@dataclass(frozen=True)
class Plan:
    """A way of evaluating the loss at many weight vectors."""

    fold: bool = False  # whether BatchNorm is folded into the layer before it
    piece: int | None = None  # examples that go through the model at once; None: the user's batches
    channels_last: bool = False  # whether images and convolutions have their channels last
    compiled: bool = False  # whether the model is compiled by torch.compile
    points: int = 1  # weight vectors evaluated at once, by torch.vmap; 1: one after the other

    def __post_init__(self) -> None:
        if self.points < 1 or (self.piece is not None and self.piece < 1):
            msg = (
                "a plan needs pieces of at least 1 example and at least 1 point at once, got "
                f"piece = {self.piece} and points = {self.points}"
            )
            raise InvalidArgumentError(msg)
        if self.points > 1 and (self.compiled or self.channels_last):
            msg = (
                f"{self.points} points at once go neither with compiled nor with channels_last; "
                "use points = 1 with these"
            )
            raise InvalidArgumentError(msg)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Plan:
        """Return the plan with some settings, as `settings` returned them."""
        known = [field.name for field in fields(cls)]
        for name in settings:
            one_of(name, known, what="setting of a plan")
        return cls(**settings)

    def settings(self) -> dict[str, Any]:
        """Return the plan as values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Return the plan in words.

        >>> str(Plan(fold=True, piece=256, channels_last=True))
        'BatchNorm folded, pieces of 256, channels last'
        """
        parts = [
            "BatchNorm folded" if self.fold else "",
            "" if self.piece is None else f"pieces of {self.piece}",
            "channels last" if self.channels_last else "",
            "compiled" if self.compiled else "",
            f"{self.points} points at once" if self.points > 1 else "",
        ]
        return ", ".join(filter(None, parts)) or "plain"


PLAIN = Plan()


def check_precision(precision: str, problem: Problem) -> None:
    """Refuse an unknown precision, and one that the problem cannot be computed in."""
    one_of(precision, PRECISIONS, what="precision")
    if precision == "tf32" and problem.device.type != "cuda":
        msg = (
            f"precision 'tf32' needs a CUDA device, and the problem is on {problem.device}; use "
            "'exact' or 'bfloat16'"
        )
        raise InvalidArgumentError(msg)
    if precision != "exact" and problem.dtype != torch.float32:
        msg = (
            f"precision {precision!r} lowers that of float32, and the problem computes in "
            f"{str(problem.dtype).removeprefix('torch.')}; use dtype='float32', or 'exact'"
        )
        raise InvalidArgumentError(msg)


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Compute in a precision, at one weight vector: autocast caches what it has cast."""
    if precision == "exact":
        yield
    elif precision == "tf32":
        with float32_products(tf32=True):
            yield
    else:
        with torch.autocast(device.type, dtype=getattr(torch, precision)):
            yield


# The data


def pieces_of(problem: Problem, plan: Plan) -> Callable[[], Numbered]:
    """Return a function that goes through the whole data as a plan wants them."""
    batches = problem.batches

    def whole() -> Numbered:
        numbered = own(enumerate(batches), batches.n_batches)
        return fitting(problem, numbered) if plan.piece is None else numbered

    if plan.piece is None and not plan.channels_last:
        return whole
    if n_bytes(next(iter(batches))) * batches.n_batches > _KEPT_BYTES:
        return lambda: arranged(problem.batching, whole(), plan)
    kept = list(arranged(problem.batching, whole(), plan))
    return lambda: kept


def sample_of(evaluator: Evaluator, n: int, *, at_most: int | None) -> list[tuple[int, Any]]:
    """Return the first batches, with n examples or more, of each at most so many if it is cut."""
    problem, cuts = evaluator.problem, at_most is not None and evaluator.divisible
    found, missing = list[tuple[int, Any]](), n
    for i, batch in islice(enumerate(problem.batches), n):
        size, limit = problem.batching.known_size(batch) or 1, min(at_most or n, missing)
        if cuts and size > limit and problem.batching.can_split(batch):
            batch, size = problem.batching.part(batch, 0, limit), limit
        found.append((i, batch))
        missing -= size
        if missing <= 0:
            break
    return found


def arranged(batching: Batching, batches: Numbered, plan: Plan) -> Iterator[tuple[int, Any]]:
    """Arrange numbered batches as a plan wants them, in the order of the data."""
    for i, piece in batches if plan.piece is None else _cut_anew(batching, batches, plan.piece):
        yield i, map_leaves(piece, channels_last) if plan.channels_last else piece


def channels_last(leaf: Any) -> Any:
    """Lay the channels of images, or of the weights of a convolution, out last."""
    if isinstance(leaf, Tensor) and leaf.ndim == 4 and leaf.is_floating_point():
        # Not by contiguous(), which leaves one channel, or a kernel of one pixel, as it is, and
        # the layer then lays its output out the other way.
        return leaf.to(memory_format=torch.channels_last)
    return leaf


def _cut_anew(batching: Batching, batches: Numbered, size: int) -> Iterator[tuple[int, Any]]:
    """Join batches that can be joined, and cut what comes out into pieces of one size."""
    waiting: list[Any] = []
    first = 0
    for i, batch in batches:
        whole = bool(waiting) and batching.size(waiting[0]) >= size
        if waiting and (whole or not _joinable(batching, waiting[0], batch)):
            yield from ((first, piece) for piece in _cut(batching, waiting, size))
            waiting = []
        first = first if waiting else i
        waiting.append(batch)
        if sum(map(batching.size, waiting)) >= size:
            *before, rest = _cut(batching, waiting, size)
            yield from ((first, piece) for piece in before)
            waiting, first = [rest], i
    if waiting:
        yield from ((first, piece) for piece in _cut(batching, waiting, size))


def _cut(batching: Batching, batches: list[Any], size: int) -> Iterator[Any]:
    """Join batches, and cut them into pieces of a size; the last one may be smaller."""
    batch = batches[0]
    if len(batches) > 1:
        parts = iter([torch.cat(tensors) for tensors in zip(*map(leaves, batches), strict=True)])
        batch = map_leaves(batch, lambda _: next(parts))
    n = batching.size(batch)
    if n <= size or not batching.can_split(batch):
        yield batch
        return
    for at in range(0, n, size):
        yield batching.part(batch, at, min(at + size, n))


def _joinable(batching: Batching, one: Any, other: Any) -> bool:
    ours, theirs = leaves(one), leaves(other)
    sizes = batching.size(one), batching.size(other)
    return (
        batching.axis == 0
        and batching.can_split(one)
        and len(ours) == len(theirs)
        and all(
            isinstance(a, Tensor)
            and isinstance(b, Tensor)
            and a.layout == b.layout == torch.strided
            and a.ndim == b.ndim > 0
            and (a.shape[1:], a.dtype) == (b.shape[1:], b.dtype)
            and (len(a), len(b)) == sizes
            for a, b in zip(ours, theirs, strict=True)
        )
    )
