"""Seeds that the caller passes, and the generators that they start."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from landscape.errors import InvalidArgumentError
from landscape.processes import Spread, norm_over_shards

_AT_ONCE = 2**24  # numbers that are drawn of a vector that is spread over processes


def whole_seed(seed: int) -> int:
    """Return a seed as a plain number, if it is a whole one."""
    try:
        number = operator.index(seed)
    except TypeError:
        number = None
    if number is None or isinstance(seed, bool) or not -(2**63) <= number < 2**64:
        msg = f"seed must be a whole number of at most 64 bits, got {seed!r}; 0 is the default"
        raise InvalidArgumentError(msg)
    return number


def next_seed(seed: int) -> int:
    """Return the seed that follows another; after the largest comes 0.

    >>> next_seed(3), next_seed(2**64 - 1)
    (4, 0)
    """
    number = whole_seed(seed)
    return 0 if number == 2**64 - 1 else number + 1


def seeded(seed: int) -> torch.Generator:
    """Start a generator on the CPU, where everything is drawn, so that all devices see the same.

    >>> import numpy as np
    >>> torch.equal(torch.rand(2, generator=seeded(np.int64(3))),
    ...             torch.rand(2, generator=seeded(3)))
    True
    """
    return torch.Generator().manual_seed(whole_seed(seed))


@contextmanager
def forked_rng(seed: int | None = None) -> Iterator[None]:
    """Give the global generators of torch, NumPy and Python back as they were."""
    generators = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    try:
        if seed is not None:
            seed_all(seed)
        yield
    finally:
        torch.set_rng_state(generators[0])
        np.random.set_state(generators[1])
        random.setstate(generators[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def seed_all(seed: int) -> None:
    """Seed the global generators of torch, NumPy and Python; only ever inside `forked_rng`."""
    number = whole_seed(seed)
    # Not torch.manual_seed, which costs more than a small model: it formats a stack for devices
    # that are not in use.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(number)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


def random_unit_vector(n: int, *, seed: int, spread: Spread | None = None) -> torch.Tensor:
    """Draw a unit vector of shape (n,), uniform on the sphere, on the CPU in float64.

    Where vectors are spread over processes, what is held here.
    """
    generator = seeded(seed)
    v = drawn(n, lambda m: torch.randn(m, generator=generator, dtype=torch.float64), spread)
    return v.div_(v.norm() if spread is None else norm_over_shards(float(v.norm())))


def drawn(
    n: int, draw: Callable[[int], torch.Tensor], spread: Spread | None = None
) -> torch.Tensor:
    """Draw n numbers in float64, or of as many what is held here."""
    if spread is None:
        return draw(n)
    # In pieces of a multiple of 16, and no fewer, torch draws the numbers that it draws at once.
    out = torch.empty(spread.length, dtype=torch.float64)
    return spread.draw_(out, draw, width=_AT_ONCE, least=16)
