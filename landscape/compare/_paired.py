"""Two averages under random perturbations, compared draw by draw."""

from __future__ import annotations

import math

import numpy as np

from landscape.errors import InvalidArgumentError
from landscape.results import AverageSharpness, PairedDifference
from landscape.stats import interval_of_mean

_SOURCE = ("data_fingerprint", "objective", "split", "mode", "n_parameters", "parameters")


def paired_difference(first: AverageSharpness, second: AverageSharpness) -> PairedDifference:
    """Compare the average rises around two checkpoints, draw by draw.

    With the same noise for both, what a draw of z adds to both averages cancels in their
    difference.

    Args:
        first: the average around one checkpoint.
        second: that around another, on the same data, with the same settings but for the number of
            samples.

    Returns:
        The first minus the second, over the draws that both have, with its 95 % interval. No
        passes over the data.

    Raises:
        InvalidArgumentError: if the two were not measured with the same noise on the same data.
    """
    names = ("rho", "distribution", "adaptive", "eta", "seed")
    pairs = {name: (first.settings[name], second.settings[name]) for name in names}
    for name in _SOURCE:
        pairs[name] = getattr(first.provenance, name), getattr(second.provenance, name)
    for name, (one, other) in pairs.items():
        if one != other:
            msg = (
                f"{first.name} was measured with {name} = {one!r} and {second.name} with {other!r};"
                " a paired difference needs the same noise on the same data: measure one again"
            )
            raise InvalidArgumentError(msg)
    n = min(len(first.rises), len(second.rises))
    a, b = first.draws[:n], second.draws[:n]
    with np.errstate(invalid="ignore"):
        value, error, low, high = interval_of_mean(a - b)
    spreads = np.isfinite(value) and a.std() > 0 and b.std() > 0
    return PairedDifference(
        names=(first.name, second.name),
        value=value,
        standard_error=error,
        low=low,
        high=high,
        n_draws=n,
        rho=first.rho,
        correlation=float(np.corrcoef(a, b)[0, 1]) if spreads else math.nan,
    )
