"""Which parameters, and the one place that converts between named tensors and one flat vector.

Algorithms work on a flat vector w of shape (n,). `ParameterSpace` says which tensors of a module
it holds and in which order; `preserved` guarantees that a module comes out of a measurement bit
for bit as it went in.
"""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from landscape.errors import InvalidArgumentError, ProblemError, did_you_mean
from landscape.randomness import whole_seed


@dataclass(frozen=True)
class ParameterSpace:
    """The trainable parameters of a module, tied ones once, laid end to end.

    Attributes:
        names: names of the tensors, in the module's order.
        shapes: their shapes.
        n: length of the flat vector.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    n: int

    @classmethod
    def of(cls, module: nn.Module) -> ParameterSpace:
        """Describe the parameters of a module that require a gradient.

        Args:
            module: any module; a tensor registered under several names counts once.

        Returns:
            The description; it keeps no reference to the module.

        Raises:
            ProblemError: if nothing is trainable, or a parameter is complex or has no values yet.

        >>> ParameterSpace.of(nn.Linear(3, 2)).n
        8
        """
        parameters = dict(module.named_parameters())
        for name, tensor in parameters.items():
            if is_lazy(tensor) or tensor.is_meta:
                msg = (
                    f"the parameter {name} has no values yet (a lazy layer, or the device meta): "
                    "run the model once on a batch before it is measured, or build it on the CPU"
                )
                raise ProblemError(msg)
            if tensor.is_complex() and tensor.requires_grad:
                msg = (
                    f"the parameter {name} is complex, and a landscape is explored over real "
                    "numbers: hold its real and imaginary parts apart, or freeze it"
                )
                raise ProblemError(msg)
        chosen = [
            (name, tensor.shape)
            for name, tensor in parameters.items()
            if tensor.requires_grad and tensor.is_floating_point()
        ]
        if not chosen:
            msg = (
                "the model has no trainable parameter, so its loss has no landscape; "
                "set requires_grad_(True) on the parameters to explore"
            )
            raise ProblemError(msg)
        names, shapes = zip(*chosen, strict=True)
        return cls(names, shapes, sum(shape.numel() for shape in shapes))

    def only(self, patterns: Sequence[str]) -> ParameterSpace:
        """Return the space of some of the parameters.

        Args:
            patterns: names of parameters or of modules; one that is no such name may have ``*``,
                ``?`` and ``[…]`` in it, as in a shell.

        Returns:
            The parameters that match one of the patterns, in the order of this space.

        Raises:
            InvalidArgumentError: if a pattern matches nothing; the message lists the names.

        >>> ParameterSpace.of(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))).only(["1"]).names
        ('1.weight', '1.bias')
        """
        chosen = set()
        for pattern in patterns:
            found = self._named(pattern) or self._matching(pattern)
            if not found:
                near = did_you_mean(pattern, [*self.names, *self.layers()])
                shown = ", ".join(self.names[:20]) + (", …" if len(self.names) > 20 else "")
                msg = f"no parameter matches {pattern!r}{near}; the parameters are: {shown}"
                raise InvalidArgumentError(msg)
            chosen |= found
        kept = [pair for pair in zip(self.names, self.shapes, strict=True) if pair[0] in chosen]
        names, shapes = zip(*kept, strict=True)
        return ParameterSpace(names, shapes, sum(shape.numel() for shape in shapes))

    def _named(self, name: str) -> set[str]:
        """Return the parameter of a name, or those of the module of that name."""
        return {own for own in self.names if own == name or own.startswith(f"{name}.")}

    def _matching(self, pattern: str) -> set[str]:
        return {
            name
            for name in self.names
            if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
        }

    def layers(self) -> dict[str, slice]:
        """Return which part of the flat vector each layer holds.

        A layer is a module that has parameters of its own.

        Returns:
            Slices by the module's name, in order; parameters of the root are named by themselves.

        >>> ParameterSpace.of(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))).layers()
        {'0': slice(0, 8, None), '1': slice(8, 14, None)}
        """
        layers: dict[str, slice] = {}
        stop = 0
        for name, size in zip(self.names, self.sizes, strict=True):
            owner = name.rpartition(".")[0] or name
            start, stop = stop, stop + size
            layers[owner] = slice(layers[owner].start if owner in layers else start, stop)
        return layers

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each tensor."""
        return tuple(shape.numel() for shape in self.shapes)

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Lay named tensors end to end.

        Args:
            tensors: at least the names of this space, with its shapes.

        Returns:
            A new vector of shape (n,).
        """
        return torch.cat([tensors[name].reshape(-1) for name in self.names])

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """View a flat vector as named tensors, differentiably and without a copy.

        Args:
            vector: shape (n,).

        Returns:
            Views of the vector, by name. One `torch.split` makes them all, so that the backward
            pass concatenates once, and a parameter that the loss does not use gets zeros.
        """
        pieces = torch.split(vector, list(self.sizes))
        return {
            name: piece.view(shape)
            for name, shape, piece in zip(self.names, self.shapes, pieces, strict=True)
        }

    def read(self, module: nn.Module, *, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Copy the parameters out of a module.

        Args:
            module: the module that this space describes, or one of the same architecture.
            device: where the copy goes.
            dtype: its floating-point type.

        Returns:
            A new vector of shape (n,), detached.
        """
        tensors = dict(module.named_parameters())
        named = {name: tensors[name].detach().to(device, dtype) for name in self.names}
        return self.flatten(named)


@contextmanager
def preserved(module: nn.Module) -> Iterator[None]:
    """Give the module and all random generators back as they were, whatever happens inside.

    Restores every attribute of every submodule (which parameter and buffer objects it holds,
    train or eval mode, tensors that hooks have put there, what a list or dict holds),
    ``requires_grad`` and ``.grad`` of every parameter, and the state of the global generators of
    torch (CPU and CUDA), NumPy and Python. Values inside a parameter or buffer are not copied:
    measurements never write to them, they substitute others.

    Args:
        module: the module that is measured.

    Yields:
        Nothing.
    """
    saved = [(part, _attributes(part)) for part in module.modules()]
    flags = [(tensor, tensor.requires_grad, tensor.grad) for tensor in module.parameters()]
    try:
        with forked_rng():
            yield
    finally:
        for part, attributes in saved:
            _restore(part, attributes)
        for tensor, requires_grad, grad in flags:
            if tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)
            if tensor.grad is not grad:
                tensor.grad = grad


@contextmanager
def forked_rng(seed: int | None = None) -> Iterator[None]:
    """Give the global generators of torch, NumPy and Python back as they were.

    Args:
        seed: what to seed them with inside; None: leave them as they are.

    Yields:
        Nothing.

    Raises:
        InvalidArgumentError: if the seed is not a whole number of at most 64 bits.
    """
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
    """Seed the global generators of torch, NumPy and Python; only ever inside `forked_rng`.

    Args:
        seed: as for `whole_seed`.

    Raises:
        InvalidArgumentError: if it is not a whole number of at most 64 bits.
    """
    number = whole_seed(seed)
    torch.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


def known_device(device: str | torch.device) -> torch.device:
    """Return a device that can be computed on.

    Args:
        device: its name, as ``cpu`` or ``cuda:1``.

    Returns:
        The device.

    Raises:
        InvalidArgumentError: if there is none of that name, or none here.
    """
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        msg = f"unknown device {device!r}; known: cpu, cuda, cuda:0, mps, …"
        raise InvalidArgumentError(msg) from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        msg = f"device {device} was asked for, but this torch sees no CUDA device; use cpu"
        raise InvalidArgumentError(msg)
    return chosen


_CONTAINERS = (dict, OrderedDict, list, set)


def _attributes(part: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Note every attribute, and of a plain container also what is in it."""
    return {
        key: (value, copy.copy(value) if type(value) in _CONTAINERS else None)
        for key, value in vars(part).items()
    }


def _restore(part: nn.Module, attributes: dict[str, tuple[Any, Any]]) -> None:
    vars(part).clear()
    for key, (value, content) in attributes.items():
        # Refilled in place: other objects may hold a reference to the container.
        if content is not None:
            value.clear()
            (value.extend if isinstance(value, list) else value.update)(content)
        vars(part)[key] = value
