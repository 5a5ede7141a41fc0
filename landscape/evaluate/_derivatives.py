"""Derivatives of a user's loss, products of its Hessian, and kernels that have a second one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction

from landscape.errors import LossError
from landscape.problem._shards import fetched
from landscape.processes import largest_over_shards

if TYPE_CHECKING:
    from landscape.evaluate._evaluator import Evaluator

INDEPENDENT = (
    "the loss does not depend on the parameters in a differentiable way; is there a "
    "detach(), a no_grad() or an argmax between the parameters and the loss, or does the "
    "loss use another model than the one that it is given?"
)


# Older versions of torch differentiate tensors only.
_TAKES_EDGES = "GradientEdge" in str(inspect.signature(torch.autograd.grad))
_ONCE = "torch::autograd::Error"  # the node that torch puts behind once_differentiable


def differentiate(
    total: Tensor,
    inputs: Sequence[Tensor],
    *,
    create_graph: bool = False,
    retain_graph: bool = False,
    along: Tensor | None = None,
) -> list[Tensor | None]:
    """Return the gradient (or Jᵀ along) by each input; None where there is no dependence."""
    if not total.requires_grad:
        return [None] * len(inputs)
    with needing_derivatives("twice" if create_graph else "once"):
        found: list[Tensor | None] = list(
            torch.autograd.grad(
                total,
                inputs,
                along,
                create_graph=create_graph,
                retain_graph=create_graph or retain_graph,
                allow_unused=True,
            )
        )
    if create_graph and any(
        node.name() == _ONCE for node in graph_nodes(*(g for g in found if g is not None))
    ):
        # torch only says so where its dead end is walked into, and gives zeros elsewhere.
        msg = (
            "the loss cannot be differentiated twice: it uses a torch.autograd.Function that "
            "is marked once_differentiable"
        )
        raise LossError(msg)
    return found


def graph_nodes(*outputs: Tensor | GradientEdge) -> Iterator[Any]:
    """Walk through the graphs of differentiable tensors, or of their edges, each node once."""
    seen: set[object] = set()
    todo: list[Any] = [o.grad_fn if isinstance(o, Tensor) else o.node for o in outputs]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        todo.extend(parent for parent, _ in node.next_functions)


def require_gathered(total: Tensor, parameters: Mapping[int, str]) -> None:
    """Refuse a loss that reads a part of a parameter where it means the whole."""
    for node in graph_nodes(total) if total.requires_grad else ():
        for parent, _ in node.next_functions:
            name = parameters.get(id(getattr(parent, "variable", None)))
            if name is not None and node.name() != "_GatherBackward":
                msg = (
                    f"the loss reads the parameter {name} elsewhere than as an attribute of its "
                    "module, such as from model.parameters() in a penalty, and finds a part of it "
                    "there: read model.….weight itself, or use sharing(shard='data')"
                )
                raise LossError(msg)


@contextmanager
def noting_reentrant() -> Iterator[list[str]]:
    """Note calls of reentrant activation checkpointing, whose parameters no graph shows."""
    calls: list[str] = []
    forward: Any = CheckpointFunction.forward

    def noting(ctx: Any, *args: Any) -> Any:
        calls.append("reentrant")
        return forward(ctx, *args)

    CheckpointFunction.forward = staticmethod(noting)  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        CheckpointFunction.forward = staticmethod(forward)  # type: ignore[method-assign]


@contextmanager
def needing_derivatives(how_often: str) -> Iterator[None]:
    """Turn what torch says of a missing derivative into an error of ours."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        msg = (
            f"the loss cannot be differentiated {how_often}: {first}; replace the operation by "
            "one whose derivative torch knows"
        )
        raise LossError(msg) from error


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Compute with kernels that have a right second derivative, and with gradients on."""
    with torch.enable_grad(), right_kernels(model):
        yield


@contextmanager
def right_kernels(model: nn.Module) -> Iterator[None]:
    """Compute with kernels that have a right second derivative.

    The fused attention kernels have none, nor have cuDNN's recurrent layers; that of the fused
    weight norm is wrong (torch 2.13: gradgradcheck fails). What is recomputed in a backward pass
    must find the same kernels, so that products are made inside of the context as well.
    """
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(part, nn.RNNBase) for part in model.modules()):
            # Not torch.backends.cudnn.flags: it reads all other settings too, which can fail.
            stack.callback(setattr, torch.backends.cudnn, "enabled", torch.backends.cudnn.enabled)
            torch.backends.cudnn.enabled = False
        if any(map(_normalises_weights, model.modules())):
            stack.enter_context(_WrittenOut())
        yield


def _normalises_weights(part: nn.Module) -> bool:
    hooks = getattr(part, "_forward_pre_hooks", {}).values()
    return type(part).__name__ == "_WeightNorm" or any(
        type(hook).__name__ == "WeightNorm" for hook in hooks
    )


class _WrittenOut(TorchFunctionMode):
    """Computes the weight norm as g v / ‖v‖."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") != "_weight_norm":
            return func(*args, **(kwargs or {}))
        v, g, dim = (*args, *(kwargs or {}).values(), 0)[:3]
        return v * (g / torch.norm_except_dim(v, 2, dim))


# Products of the Hessian


class NotTwiceDifferentiableError(LossError):
    """An operation in the loss or the model has no second derivative."""


class DoubleBackward:
    """The gradient with its graph, to be differentiated once more along each vector."""

    def __init__(self, evaluator: Evaluator, at: Tensor, batch: Any, number: int) -> None:
        self._evaluator, self._inputs = evaluator, evaluator.parameters
        with twice_differentiable(evaluator.model):
            with noting_reentrant() as reentrant:
                terms = evaluator.terms(at, batch, number)
            if reentrant:
                msg = (
                    "reentrant activation checkpointing has no second derivative: call "
                    "torch.utils.checkpoint.checkpoint with use_reentrant=False"
                )
                raise NotTwiceDifferentiableError(msg)
            try:
                gradients = differentiate(terms.total, evaluator.parameters, create_graph=True)
            except LossError as error:
                raise NotTwiceDifferentiableError(str(error)) from error
        # A gradient that does not depend on the weights adds nothing.
        self._slots = [i for i, g in enumerate(gradients) if g is not None and g.requires_grad]
        outputs = [g for g in gradients if g is not None and g.requires_grad]
        # The graph is enough: the gradients themselves would be as large as the weights.
        self._outputs: list[Any] = (
            [get_gradient_edge(g) for g in outputs] if _TAKES_EDGES else outputs
        )
        self.weight = float(terms.weight)

    @cached_property
    def n_bytes(self) -> int:
        """Memory of the graph."""
        return graph_bytes(*self._outputs)

    def times(self, vector: Tensor, *, retain: bool) -> list[Tensor | None]:
        """Return the product with a vector of shape (n,) as tensors, None for zero."""
        if not self._outputs:
            return [None] * len(self._inputs)
        views = self._evaluator.problem.space.views(vector)
        try:
            with needing_derivatives("twice"):
                return list(
                    torch.autograd.grad(
                        self._outputs,
                        self._inputs,
                        [views[i] for i in self._slots],
                        retain_graph=retain,
                        allow_unused=True,
                    )
                )
        except LossError as error:
            raise NotTwiceDifferentiableError(str(error)) from error


def graph_bytes(*outputs: Tensor | GradientEdge) -> int:
    """Measure the memory of all tensors that the graphs of some outputs have saved."""
    saved = [item.untyped_storage() for node in graph_nodes(*outputs) for item in _saved_by(node)]
    own = sum({storage.data_ptr(): storage.nbytes() for storage in saved}.values())
    return largest_over_shards(own)


def _saved_by(node: Any) -> Iterator[Tensor]:
    for name in dir(node):
        if name.startswith("_saved_") or name == "saved_tensors":
            # What has a hook is not here: activation checkpointing would compute it again.
            raw = _listed(getattr(node, f"_raw_{name.removeprefix('_')}", ()))
            if any(getattr(item, "unpack_hook", None) is fetched for item in raw):
                yield from (item.data for item in raw if isinstance(item.data, Tensor))
            elif all(getattr(item, "unpack_hook", None) is None for item in raw):
                for item in _listed(getattr(node, name)):
                    if isinstance(item, Tensor) and item.layout == torch.strided:
                        yield item


def _listed(saved: Any) -> Sequence[Any]:
    return saved if isinstance(saved, (tuple, list)) else (saved,)
