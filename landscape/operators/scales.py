"""Scales T of the parameters, for spectra of THT that rescaling a network does not change."""

from __future__ import annotations

import torch
from torch import Tensor

from landscape.directions import filter_norms_of
from landscape.errors import one_of
from landscape.problem import Problem

SCALES = ("none", "elementwise", "filterwise")


def parameter_scale(problem: Problem, kind: str) -> Tensor:
    """Return the diagonal of T, as adaptive sharpness uses it.

    Args:
        problem: gives the weights.
        kind: ``elementwise`` (t = |w|) or ``filterwise`` (t = the norm of the filter that an entry
            belongs to; |w| for biases and for the gains and shifts of normalisation layers).

    Returns:
        Shape (n,), in the problem's dtype and on its device.

    References:
        Kwon, Kim, Park, Choi (2021), ASAM, arXiv:2102.11600; Dinh, Pascanu, Bengio, Bengio
        (2017), Sharp minima can generalize, arXiv:1703.04933.
    """
    one_of(kind, SCALES[1:], what="scale")
    weights = problem.weights
    if kind == "elementwise":
        return torch.abs(weights)
    return filter_norms_of(problem)
