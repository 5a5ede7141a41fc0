"""Double backward with activation checkpointing of each block.

``torch.utils.checkpoint`` saves nothing in a product: the graph of the gradient keeps all that it
has computed anew. Here the gradient of a block is a function of its own, which keeps the inputs of
the block and the gradient of its outputs alone; its derivative computes both anew, and frees them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten

from landscape.errors import LossError
from landscape.evaluate import DoubleBackward, Evaluator, graph_bytes, graph_nodes, right_kernels
from landscape.problem import Problem
from landscape.processes import shards

# What the graph of a product holds of a block, in sizes of the graph of its outputs.
_OF_PRODUCT = 3


class Checkpoints:
    """The blocks of a model that save their inputs alone.

    Where parameters are split over processes, the layers beside the blocks as well: what a graph
    adds up of the gradient of a whole parameter would else stand until the last layer is done.

    Attributes:
        names: of the blocks.
        measures: whether the graphs of blocks are measured as they are built.
        largest: bytes of the largest one so far.
    """

    def __init__(self, problem: Problem) -> None:
        self._blocks = repeated_blocks(problem.model)
        self.measures, self.largest = True, 0
        self.names = tuple(self._blocks)
        # Models of transformers fill a cache that no training needs, anew each time.
        configs = (getattr(part, "config", None) for part in problem.model.modules())
        found = {id(c): c for c in configs if getattr(c, "use_cache", False) is True}
        self._caching: list[Any] = list(found.values())
        if shards() is not None:
            self._blocks |= layers_beside(problem.model, self._blocks)
        elif not self._blocks:
            msg = (
                f"{problem.name} has no blocks to checkpoint: these are the layers of one class in "
                "an nn.Sequential or nn.ModuleList that are made of other layers; use another way "
                "of making products"
            )
            raise LossError(msg)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the blocks save their inputs alone in what is computed inside of the context."""
        before = {name: vars(block).get("forward") for name, block in self._blocks.items()}
        for config in self._caching:
            config.use_cache = False
        try:
            for name, block in self._blocks.items():
                vars(block)["forward"] = partial(self._run, name, block, block.forward)
            yield
        finally:
            for name, block in self._blocks.items():
                vars(block).pop("forward", None)
                if (own := before[name]) is not None:
                    vars(block)["forward"] = own
            for config in self._caching:
                config.use_cache = True

    def _run(
        self, name: str, block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Evaluate a block by a function that saves the tensors it takes."""
        leaves, spec = tree_flatten((args, kwargs))
        places = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.requires_grad]
        parameters = [p for p in block.parameters() if p.requires_grad]
        if not torch.is_grad_enabled() or not (places or parameters):
            return forward(*args, **kwargs)
        inputs = [leaves[i] for i in places]
        device = next(x.device for x in (*inputs, *parameters))
        cast = torch.autocast(
            device.type,
            torch.get_autocast_dtype(device.type),
            enabled=torch.is_autocast_enabled(device.type),
        )
        again = _same_masks(block, device)
        for place in places:  # what is saved of them must not keep their graphs alive
            leaves[place] = None
        returned: list[Any] = []  # outputs that are no functions of the inputs, and the structure

        def call(inputs: Sequence[Tensor]) -> list[Tensor]:
            given = list(leaves)
            for place, x in zip(places, inputs, strict=True):
                given[place] = x
            own_args, own_kwargs = tree_unflatten(given, spec)
            # CUDA computes anew in threads of its own, where contexts around the call do not hold.
            with right_kernels(block), cast, again() if returned else nullcontext():
                outputs, structure = tree_flatten(forward(*own_args, **own_kwargs))
            is_own = [_is_differentiable(x) for x in outputs]
            if not returned:
                others = [None if own else x for own, x in zip(is_own, outputs, strict=True)]
                returned.extend((others, is_own, structure))
            return list(compress(outputs, is_own))

        def check(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
            if self.measures:
                self.largest = max(self.largest, graph_bytes(*outputs))
            known = {id(x) for x in (*inputs, *parameters)}
            read = (getattr(node, "variable", None) for node in graph_nodes(*outputs))
            if any(x is not None and id(x) not in known for x in read):
                msg = (
                    f"the block {name} reads parameters or results of other parts of the model "
                    "that it is not given: use another way of making products"
                )
                raise LossError(msg)

        found = iter(_Block.apply(call, check, parameters, *inputs, *parameters))  # type: ignore[no-untyped-call]
        others, is_own, structure = returned
        every = [next(found) if own else x for own, x in zip(is_own, others, strict=True)]
        return tree_unflatten(every, structure)


def repeated_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the outermost layers of which a list or a sequence has several of one class."""
    found: dict[str, nn.Module] = {}
    for name, part in model.named_modules():
        if isinstance(part, (nn.ModuleList, nn.Sequential)) and not any(
            name == outer or name.startswith(f"{outer}.") for outer in found
        ):
            kinds = Counter(map(_kind, part))
            found |= {
                f"{name}.{key}".lstrip("."): child
                for key, child in part.named_children()
                if kinds[_kind(child)] > 1 and next(child.children(), None) is not None
            }
    names = {block: name for name, block in found.items()}  # each block once
    return {name: block for block, name in names.items()}


def layers_beside(model: nn.Module, blocks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the innermost layers with parameters that are in none of the blocks."""
    owners = [name for name, part in model.named_modules() if part._parameters]
    return {
        name: model.get_submodule(name)
        for name in owners
        if not any(name == block or name.startswith(f"{block}.") for block in blocks)
        and not any(other.startswith(f"{name}.".lstrip(".")) for other in owners if other != name)
    }


def _same_masks(
    block: nn.Module, device: torch.device
) -> Callable[[], AbstractContextManager[None]]:
    """Return a context in which a block in train mode draws the masks that it draws next."""
    if not any(part.training for part in block.modules()):
        return nullcontext
    places = [device] if device.type == "cuda" else []
    states = torch.get_rng_state(), [torch.cuda.get_rng_state(place) for place in places]

    @contextmanager
    def again() -> Iterator[None]:
        with torch.random.fork_rng(places):
            torch.set_rng_state(states[0])
            for place, state in zip(places, states[1], strict=True):
                torch.cuda.set_rng_state(state, place)
            yield

    return again


def _kind(module: nn.Module) -> tuple[str, str]:
    """Name the class of a module, also where it was given one of its own."""
    return type(module).__module__, type(module).__qualname__


def _is_differentiable(value: object) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


class _Block(torch.autograd.Function):
    """The outputs of a block; saves what it takes."""

    @staticmethod
    def forward(ctx: Any, call: Any, check: Any, parameters: Any, *tensors: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        inputs = tensors[: len(tensors) - len(parameters)]
        ctx.given = call, check, parameters
        ctx.save_for_backward(*inputs)
        # An output that the block was given, or holds, stays what it is for its owner.
        return tuple(x.detach() for x in call(inputs))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        call, check, parameters = ctx.given
        used = [i for i, gradient in enumerate(gradients) if gradient is not None]
        given = *(gradients[i] for i in used), *ctx.saved_tensors, *parameters
        found = _Gradient.apply(call, check, parameters, used, *given)  # type: ignore[no-untyped-call]
        return None, None, None, *found


class _Gradient(torch.autograd.Function):
    """The gradients of a block by its inputs and parameters; saves the inputs, and its own."""

    @staticmethod
    def forward(
        ctx: Any, call: Any, check: Any, parameters: Any, used: list[int], *tensors: Tensor
    ) -> Any:
        ctx.set_materialize_grads(False)
        kept, n = tensors[: len(tensors) - len(parameters)], len(used)
        ctx.given = call, parameters, used
        ctx.save_for_backward(*kept)
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in kept[n:]]
            outputs, gradients = _dependent(call(inputs), used, kept[:n])
            check(outputs, inputs)
            if not outputs:
                return (None,) * (len(tensors) - n)
            return torch.autograd.grad(
                outputs, [*inputs, *parameters], gradients, allow_unused=True
            )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *along: Tensor | None) -> Any:
        call, parameters, used = ctx.given
        n = len(used)
        with torch.enable_grad():
            every = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            outputs, own = _dependent(call(every[n:]), used, every[:n])
            wanted = [*every, *parameters]
            firsts = torch.autograd.grad(
                outputs, wanted[n:], own, create_graph=True, allow_unused=True
            )
            pairs = [
                (first, v)
                for first, v in zip(firsts, along, strict=True)
                if first is not None and v is not None and first.requires_grad
            ]
            found: Sequence[Tensor | None] = [None] * len(wanted)
            if pairs:
                tensors, vectors = zip(*pairs, strict=True)
                found = torch.autograd.grad(tensors, wanted, vectors, allow_unused=True)
        return None, None, None, None, *found


def _dependent(
    outputs: Sequence[Tensor], used: Sequence[int], gradients: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the outputs that are used and depend on something, with their gradients."""
    pairs = [(outputs[i], g) for i, g in zip(used, gradients, strict=True)]
    pairs = [(x, g) for x, g in pairs if x.requires_grad]
    return [x for x, _ in pairs], [g for _, g in pairs]


class CheckpointedBackward(DoubleBackward):
    """Double backward that holds the inputs of the blocks, and the graph of one block at a time."""

    def __init__(
        self, evaluator: Evaluator, at: Tensor, batch: Any, number: int, blocks: Checkpoints
    ) -> None:
        with blocks.applied():
            super().__init__(evaluator, at, batch, number)
        self._blocks = blocks

    @cached_property
    def n_bytes(self) -> int:
        """Memory of the graph, with that of one block."""
        return graph_bytes(*self._outputs) + _OF_PRODUCT * self._blocks.largest
