"""Directions and planes in parameter space, filter-normalised as Li et al. (2018) define it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.errors import InvalidArgumentError, one_of
from landscape.problem import Problem

NORMALISATIONS = ("filter", "none")


@dataclass(frozen=True)
class Direction:
    """A direction in parameter space.

    Attributes:
        vector: shape (n,), on the problem's device and in its dtype.
        kind: one word that names how it came about: ``random``, ``worst-case``, ``eigenvector``
            or ``given``.
        description: the same in words, for a caption.
        seed: of a random one.
    """

    vector: Tensor
    kind: str
    description: str
    seed: int | None = None

    @property
    def norm(self) -> float:
        """Euclidean norm."""
        return float(torch.linalg.vector_norm(self.vector, dtype=torch.float64))

    def settings(self) -> dict[str, Any]:
        """Return what identifies the direction, as JSON values.

        Returns:
            Its kind and seed, and a digest of the vector itself.
        """
        digest = hashlib.sha256(self.vector.detach().cpu().contiguous().numpy().tobytes())
        return {"kind": self.kind, "seed": self.seed, "digest": digest.hexdigest()[:16]}


@dataclass(frozen=True)
class Plane:
    """Two directions; a point of the plane is w + x d₁ + y d₂.

    Attributes:
        x: the first direction.
        y: the second direction.
        description: what the plane is, for a caption.
    """

    x: Direction
    y: Direction
    description: str

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the directions."""
        dot = float(self.x.vector.double() @ self.y.vector.double())
        return dot / (self.x.norm * self.y.norm)

    def at(self, origin: Tensor, x: float, y: float) -> Tensor:
        """Return a point of the plane, computed from the origin and not from its neighbour.

        Args:
            origin: shape (n,).
            x: first coordinate.
            y: second coordinate.

        Returns:
            origin + x d₁ + y d₂, shape (n,); the origin itself, bit for bit, at (0, 0).
        """
        return origin.add(self.x.vector, alpha=x).add_(self.y.vector, alpha=y)


def random_direction(
    problem: Problem, seed: int = 0, *, normalisation: str = "filter"
) -> Direction:
    """Draw a Gaussian direction, normalised filter by filter.

    d ~ N(0, I); every filter dⱼ becomes dⱼ / ‖dⱼ‖ · ‖wⱼ‖, so that a step of 1 is as large as the
    filter itself. A filter is what makes one output: see `filters`. Tensors with less than two
    axes (biases, gains and shifts of normalisation layers) get zero.

    Args:
        problem: gives the architecture and the weights.
        seed: same seed, same Gaussian numbers, on any device and in any dtype.
        normalisation: ``filter`` or ``none`` (the Gaussian numbers as they are, on all tensors).

    Returns:
        The direction.

    Raises:
        InvalidArgumentError: if the normalisation is unknown, or leaves no direction at all.

    References:
        Li, Xu, Taylor, Studer, Goldstein (2018), Visualizing the Loss Landscape of Neural Nets,
        arXiv:1712.09913.
    """
    generator = torch.Generator().manual_seed(seed)
    return _random(problem, generator, seed=seed, normalisation=normalisation)


def random_plane(problem: Problem, seed: int = 0, *, normalisation: str = "filter") -> Plane:
    """Draw two directions like `random_direction`, one after the other from the same seed.

    The two are independent, as in Li et al.; in many dimensions they are nearly orthogonal, and
    the cosine is reported with every surface.

    Args:
        problem: gives the architecture and the weights.
        seed: same seed, same Gaussian numbers, on any device and in any dtype.
        normalisation: see `random_direction`.

    Returns:
        The plane.
    """
    generator = torch.Generator().manual_seed(seed)
    x, y = (_random(problem, generator, seed=seed, normalisation=normalisation) for _ in range(2))
    return Plane(x, y, f"{x.description} (seed {seed})")


def given_direction(
    problem: Problem,
    values: Tensor | np.ndarray[Any, Any] | Mapping[str, Tensor],
    *,
    kind: str = "given",
    description: str = "given direction",
) -> Direction:
    """Make a direction of a flat vector or of named tensors.

    Args:
        problem: gives the architecture.
        values: a vector of shape (n,), or a tensor for every parameter.
        kind: see `Direction`.
        description: see `Direction`.

    Returns:
        The direction, with the values as they are.

    Raises:
        InvalidArgumentError: if the size does not fit, or the values are all zero or not finite.
    """
    if isinstance(values, Mapping):
        _check_names(problem, values)
        vector = problem.space.flatten(values)
    else:
        vector = torch.as_tensor(values)
    if vector.shape != (problem.space.n,):
        msg = (
            f"the direction has shape {tuple(vector.shape)}, the model has {problem.space.n:,} "
            "parameters; is it of another architecture?"
        )
        raise InvalidArgumentError(msg)
    # A copy: what the caller does to the values later must not change the direction.
    own = vector.detach().to(problem.device, problem.dtype, copy=True)
    direction = Direction(own, kind, description)
    if not (np.isfinite(direction.norm) and direction.norm > 0):
        msg = f"the direction has norm {direction.norm:g}; expected a finite one above zero"
        raise InvalidArgumentError(msg)
    return direction


def _check_names(problem: Problem, tensors: Mapping[str, Tensor]) -> None:
    space = problem.space
    absent = [name for name in space.names if name not in tensors]
    if absent:
        msg = f"the direction lacks the parameters {', '.join(absent[:8])}"
        raise InvalidArgumentError(msg)
    for name, shape in zip(space.names, space.shapes, strict=True):
        if tensors[name].shape != shape:
            msg = (
                f"the direction has shape {tuple(tensors[name].shape)} for {name}, the model has "
                f"{tuple(shape)}; is it of another architecture?"
            )
            raise InvalidArgumentError(msg)


def normalise_filterwise(tensor: Tensor, reference: Tensor, module: nn.Module) -> Tensor:
    """Scale each filter of a tensor to the norm of the same filter in another.

    Args:
        tensor: Gaussian numbers, of the parameter's shape.
        reference: the parameter.
        module: the layer that holds it.

    Returns:
        dⱼ / ‖dⱼ‖ · ‖wⱼ‖ for every filter j, in the parameter's shape; zero for tensors with less
        than two axes, and for gains and shifts of any shape.
    """
    if not _has_filters(reference, module):
        return torch.zeros_like(reference)
    ours, theirs = filters(tensor, module), filters(reference, module)
    # In float64: the squares of small weights are below what float32 can hold.
    scale = _row_norms(theirs) / _row_norms(ours).clamp_min(torch.finfo(torch.float64).tiny)
    return _from_filters((ours * scale).to(tensor.dtype), tensor, module)


def filter_norms(weight: Tensor, module: nn.Module) -> Tensor:
    """Give every entry of a weight the norm of its filter.

    Args:
        weight: a parameter's values.
        module: the layer that holds it.

    Returns:
        ‖wⱼ‖ for every entry of filter j, in the parameter's shape; the absolute values for tensors
        with less than two axes, and for gains and shifts of any shape.
    """
    if not _has_filters(weight, module):
        return weight.abs()
    rows = filters(weight, module)
    norms = _row_norms(rows).to(weight.dtype).expand_as(rows)
    return _from_filters(norms, weight, module)


def _has_filters(weight: Tensor, module: nn.Module) -> bool:
    # The norms of batches and groups have one axis; these two have as many as their input.
    return weight.ndim >= 2 and not isinstance(module, (nn.LayerNorm, nn.RMSNorm))


def _row_norms(rows: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
    return norms


def filters(tensor: Tensor, module: nn.Module) -> Tensor:
    """Lay out a weight with one output per row.

    The output axis is the first one for Linear and Conv1d/2d/3d (and wherever nothing else is
    known); a ConvTranspose keeps it second, within each group; GPT-2's Conv1D keeps it last.

    Args:
        tensor: a parameter's values, at least two axes.
        module: the layer that holds the parameter.

    Returns:
        Shape (number of outputs, weights per output).
    """
    if _is_transposed(module):
        groups = int(getattr(module, "groups", 1))
        split = tensor.reshape(groups, tensor.shape[0] // groups, *tensor.shape[1:])
        moved = split.movedim(2, 1)
        return moved.reshape(groups * tensor.shape[1], -1)
    if _is_gpt2_conv1d(module):
        return tensor.t()
    return tensor.reshape(len(tensor), -1)


def _from_filters(rows: Tensor, like: Tensor, module: nn.Module) -> Tensor:
    if _is_transposed(module):
        groups = int(getattr(module, "groups", 1))
        inputs, outputs, *kernel = like.shape
        split = rows.reshape(groups, outputs, inputs // groups, *kernel)
        return split.movedim(1, 2).reshape(like.shape)
    if _is_gpt2_conv1d(module):
        return rows.t()
    return rows.reshape(like.shape)


def _is_transposed(module: nn.Module) -> bool:
    return isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))


def _is_gpt2_conv1d(module: nn.Module) -> bool:
    # By name: transformers need not be installed for its models to be measured.
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _random(
    problem: Problem, generator: torch.Generator, *, seed: int, normalisation: str
) -> Direction:
    one_of(normalisation, NORMALISATIONS, what="normalisation")
    weights = problem.space.unflatten(problem.weights)
    drawn: dict[str, Tensor] = {}
    for name, weight in weights.items():
        # Drawn on the CPU in float64, then rounded: the same direction on every device and dtype.
        numbers = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        gaussian = numbers.to(weight.device, weight.dtype)
        owner = problem.model.get_submodule(name.rpartition(".")[0])
        drawn[name] = (
            normalise_filterwise(gaussian, weight, owner) if normalisation == "filter" else gaussian
        )
    words = "filter-normalised random" if normalisation == "filter" else "Gaussian"
    direction = Direction(problem.space.flatten(drawn), "random", f"{words} direction", seed)
    if direction.norm == 0.0:
        msg = (
            "the filter-normalised direction is zero: the model has no parameter with two axes or "
            "more that is not zero; use normalisation='none'"
        )
        raise InvalidArgumentError(msg)
    return direction
