"""Scales T of the parameters, for spectra of THT that rescaling a network does not change."""

from __future__ import annotations

import torch
from torch import Tensor

from landscape.checks import real
from landscape.errors import one_of
from landscape.problem import Problem
from landscape.problem._filters import filter_norms_of

SCALES = ("none", "elementwise", "filterwise")


def parameter_scale(problem: Problem, kind: str, *, eta: float = 0.0) -> Tensor:
    """Return the diagonal of T, as adaptive sharpness uses it.

    Args:
        problem: gives the weights.
        kind: ``elementwise`` (t = |w| + η) or ``filterwise`` (t = the norm of the filter that an
            entry belongs to, + η; |w| + η for biases and for the gains and shifts of
            normalisation layers).
        eta: η. With 0 a weight that is exactly zero never moves. Kwon et al. train with 0.01, and
            with t = 1 for biases and normalisation layers; Keskar et al. (2017) measure with 1.

    Returns:
        Shape (n,), in the problem's dtype and on its device.

    Raises:
        InvalidArgumentError: if there is no such scale, or η is negative or not finite.

    References:
        Kwon, Kim, Park, Choi (2021), ASAM, arXiv:2102.11600; Dinh, Pascanu, Bengio, Bengio
        (2017), Sharp minima can generalize, arXiv:1703.04933.
    """
    one_of(kind, SCALES[1:], what="scale")
    real("eta", eta, least=0.0)
    scale = torch.abs(problem.weights) if kind == "elementwise" else filter_norms_of(problem)
    return scale + eta if eta else scale
