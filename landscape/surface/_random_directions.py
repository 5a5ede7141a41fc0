"""Random directions and planes, normalised to the weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from landscape.choices import Metric, Normalisation
from landscape.errors import InvalidArgumentError, one_of
from landscape.problem import Problem, check_problem
from landscape.problem._filters import Owner, is_vector, layout, normalise_filterwise, owner_of
from landscape.problem._parameters import part_of, whole_of
from landscape.processes import norm_over_shards, shards
from landscape.randomness import seeded
from landscape.surface._directions import Direction, Plane, orthogonalised

NORMALISATIONS = ("filter", "layer", "global", "none")
_ZERO = "zero: a bias, gain or shift"


def random_direction(
    problem: Problem, seed: int = 0, *, normalisation: str = "filter", vectors: bool = False
) -> Direction:
    """Draw a Gaussian direction, d ~ N(0, I), and normalise it to the weights.

    ``filter``: every filter dⱼ, the weights of one output, becomes dⱼ / ‖dⱼ‖ · ‖wⱼ‖. ``layer``:
    the same with whole tensors, ``global``: with all of them as one. ``none``: the Gaussian numbers
    as they are. Biases, gains and shifts get zero, but with ``vectors`` or ``none``.

    Args:
        problem: gives the architecture and the weights.
        seed: same seed, same Gaussian numbers, on any device and in any dtype.
        normalisation: ``filter``, ``layer``, ``global`` or ``none``.
        vectors: move biases, gains and shifts too, each tensor as one filter.

    Returns:
        The direction; its ``treatment`` says what each tensor received.

    Raises:
        InvalidArgumentError: if the normalisation is unknown, or leaves no direction at all.

    References:
        Li, Xu, Taylor, Studer, Goldstein (2018), Visualizing the Loss Landscape of Neural Nets,
        arXiv:1712.09913.
    """
    check_problem(problem)
    return _random(problem, seeded(seed), seed=seed, normalisation=normalisation, vectors=vectors)


def random_plane(
    problem: Problem,
    seed: int = 0,
    *,
    normalisation: Normalisation = "filter",
    vectors: bool = False,
    orthogonal: Metric = "none",
) -> Plane:
    """Draw two directions like `random_direction`, one after the other from the same seed.

    Args:
        problem: gives the architecture and the weights.
        seed: same seed, same Gaussian numbers, on any device and in any dtype.
        normalisation: see `random_direction`.
        vectors: see `random_direction`.
        orthogonal: make the second orthogonal to the first after normalising them: ``euclidean``,
            or ``filter``, in the metric that measures each filter in units of its own norm.

    Returns:
        The plane.

    Raises:
        InvalidArgumentError: if a choice is unknown, or leaves no direction at all.
    """
    generator = seeded(seed)
    x, y = (
        _random(problem, generator, seed=seed, normalisation=normalisation, vectors=vectors)
        for _ in range(2)
    )
    plane = Plane(x, y, f"{x.description} (seed {seed})")
    return plane if orthogonal == "none" else orthogonalised(problem, plane, metric=orthogonal)


def _random(
    problem: Problem,
    generator: torch.Generator,
    *,
    seed: int,
    normalisation: str,
    vectors: bool,
) -> Direction:
    one_of(normalisation, NORMALISATIONS, what="normalisation")
    state, space, here = problem.state(), problem.space, shards()
    vector = torch.empty(space.length, dtype=problem.dtype, device=problem.device)
    drawn = space.unflatten(vector)
    treatment: dict[str, str] = {}
    for name, part in drawn.items():
        # Drawn on the CPU in float64, then rounded: the same direction on every device and dtype.
        weight, owner = whole_of(state[name]).to(part), owner_of(problem.model, name)
        numbers = torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(part)
        found, treatment[name] = _treated(numbers, weight, owner, normalisation, vectors)
        part.copy_(part_of(found, here))
        del numbers, weight, found  # beside those of the next tensor
    if normalisation == "global":
        vector = _to_norm_of_moved(problem, vector, treatment)
    words = "Gaussian" if normalisation == "none" else f"{normalisation}-normalised random"
    also = ", biases and gains too" if vectors and normalisation != "none" else ""
    direction = Direction(
        vector, "random", f"{words} direction{also}", seed, treatment, spread=space.spread
    )
    if direction.norm == 0.0:
        msg = (
            f"the {normalisation}-normalised direction is zero: the model has no parameter with "
            "two axes or more that is not zero; use normalisation='none'"
        )
        raise InvalidArgumentError(msg)
    return direction


def _treated(
    gaussian: Tensor, weight: Tensor, owner: Owner, normalisation: str, vectors: bool
) -> tuple[Tensor, str]:
    """Return what a tensor gets, and the same in words."""
    if normalisation == "none":
        return gaussian, "Gaussian"
    if is_vector(weight, *owner):
        if not vectors:
            return torch.zeros_like(weight), _ZERO
        scaled = gaussian if normalisation == "global" else _to_norm_of(weight, gaussian)
        return scaled, "one filter: a bias, gain or shift"
    if normalisation == "filter":
        return normalise_filterwise(gaussian, weight, *owner), layout(weight, *owner)
    if normalisation == "layer":
        return _to_norm_of(weight, gaussian), "as a whole"
    return gaussian, "together with the others"


def _to_norm_of(weight: Tensor, gaussian: Tensor) -> Tensor:
    ours, theirs = (
        torch.linalg.vector_norm(part, dtype=torch.float64) for part in (gaussian, weight)
    )
    scaled: Tensor = gaussian * (theirs / ours.clamp_min(torch.finfo(torch.float64).tiny))
    return scaled.to(gaussian.dtype)


def _to_norm_of_moved(problem: Problem, vector: Tensor, treatment: Mapping[str, str]) -> Tensor:
    """Scale a whole direction to the norm of the weights that it moves."""
    weights = problem.space.unflatten(problem.weights)
    moved = torch.cat([w.reshape(-1) * (treatment[name] != _ZERO) for name, w in weights.items()])
    ours, theirs = (
        norm_over_shards(float(torch.linalg.vector_norm(part, dtype=torch.float64)))
        for part in (vector, moved)
    )
    return vector * (theirs / ours) if ours else vector
