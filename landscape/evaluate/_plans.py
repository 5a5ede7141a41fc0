"""Plans: how to evaluate the loss at many weight vectors, for other times and no other numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from landscape.errors import InvalidArgumentError, one_of
from landscape.precision import float32_products
from landscape.problem import Problem

PRECISIONS = ("exact", "bfloat16", "float16", "tf32")


@dataclass(frozen=True)
class Plan:
    """A way of evaluating the loss at many weight vectors.

    Attributes:
        fold: whether BatchNorm is folded into the layer before it.
        piece: examples that go through the model at once; None: the user's batches.
        channels_last: whether images and convolutions are laid out with the channels last.
        compiled: whether the model is compiled by torch.compile.
        points: weight vectors that are evaluated at once, by torch.vmap; 1: one after the other.
    """

    fold: bool = False
    piece: int | None = None
    channels_last: bool = False
    compiled: bool = False
    points: int = 1

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
        """Return the plan with some settings, as `settings` returned them.

        >>> Plan.of({"fold": True}).fold
        True
        """
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
