"""Seeds that the caller passes, and the generators that they start."""

from __future__ import annotations

import operator

import torch

from landscape.errors import InvalidArgumentError


def whole_seed(seed: int) -> int:
    """Return a seed as a plain number, if it is a whole one.

    Args:
        seed: of any integer type, NumPy's among them.

    Returns:
        The number.

    Raises:
        InvalidArgumentError: if it is not whole, or does not fit into 64 bits.
    """
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

    Args:
        seed: as for `whole_seed`.

    Returns:
        A seed that is never the one given.

    Raises:
        InvalidArgumentError: if the seed is not a whole number.

    >>> next_seed(3), next_seed(2**64 - 1)
    (4, 0)
    """
    number = whole_seed(seed)
    return 0 if number == 2**64 - 1 else number + 1


def seeded(seed: int) -> torch.Generator:
    """Start a generator on the CPU, where everything is drawn, so that all devices see the same.

    Args:
        seed: as for `whole_seed`.

    Returns:
        The generator; torch's global one is not touched.

    Raises:
        InvalidArgumentError: if the seed is not a whole number.

    >>> import numpy as np
    >>> torch.equal(torch.rand(2, generator=seeded(np.int64(3))),
    ...             torch.rand(2, generator=seeded(3)))
    True
    """
    return torch.Generator().manual_seed(whole_seed(seed))
