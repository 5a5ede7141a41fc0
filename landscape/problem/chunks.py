"""Cross entropy over a large vocabulary, of which the logits never stand whole."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from landscape.checks import whole
from landscape.errors import LossError
from landscape.problem.data import describe


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    chunk: int = 1024,
) -> Tensor:
    """Return −log softmax(hidden weightᵀ + bias)[target] of each token, twice differentiable.

    The logits of ``chunk`` tokens are made at a time, and made again in the backward pass and in a
    product of the Hessian: none are kept, where plain cross entropy keeps about four numbers for
    each token and entry of the vocabulary in the graph of a product.

    Args:
        hidden: what the last layer takes, shape (…, E).
        weight: of that layer, shape (V, E).
        target: entries of the vocabulary, whole numbers of shape (…).
        bias: shape (V,).
        ignore_index: target of the tokens whose loss is zero.
        chunk: tokens at a time.

    Returns:
        The losses, shape (…). Of a batch, ``losses.sum(), (target != ignore_index).sum()`` is what
        `Problem` takes from ``batch_loss``.

    Raises:
        LossError: if the shapes do not go together, or the targets are no whole numbers.

    Cost: the products with ``weight`` of a forward pass once more in each backward pass.

    >>> hidden, weight = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    >>> losses = chunked_cross_entropy(hidden, weight, torch.tensor([0, -100]))
    >>> losses.double().round(decimals=4).tolist()
    [0.5514, 0.0]
    """
    whole("chunk", chunk)
    shapes = hidden.shape[:-1] == target.shape and hidden.shape[-1:] == weight.shape[1:]
    if target.is_floating_point() or weight.ndim != 2 or not shapes:
        msg = (
            f"got hidden states of {describe(hidden)}, a weight of {describe(weight)} and targets "
            f"of {describe(target)}; expected shapes (…, E), (V, E) and (…), and int64 targets"
        )
        raise LossError(msg)
    dtype = torch.promote_types(hidden.dtype, weight.dtype)  # as autocast leaves them
    flat = hidden.reshape(-1, hidden.shape[-1]).to(dtype), weight.to(dtype), bias
    losses: Tensor = _Losses.apply(*flat, target.reshape(-1), ignore_index, chunk)  # type: ignore[no-untyped-call]
    return losses.view(target.shape)


def _chunk(
    given: tuple[Tensor | None, ...], target: Tensor, ignore_index: int
) -> tuple[list[Tensor], Tensor]:
    """Return new leaves for hidden states, weight and bias, and the losses made of them."""
    hidden, weight, bias = (None if t is None else t.detach().requires_grad_() for t in given)
    assert hidden is not None
    assert weight is not None
    with torch.autocast(hidden.device.type, enabled=False):
        logits = F.linear(hidden, weight, bias)
        losses = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")
    return [t for t in (hidden, weight, bias) if t is not None], losses


class _Losses(torch.autograd.Function):
    """The losses, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Any, target: Tensor, ignored: int, size: int
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, target)
        ctx.settings = ignored, size
        pieces = zip(torch.split(hidden, size), torch.split(target, size), strict=True)
        return torch.cat([_chunk((h, weight, bias), t, ignored)[1] for h, t in pieces])

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> Any:
        found = _Gradients.apply(slopes, *ctx.saved_tensors, *ctx.settings)  # type: ignore[no-untyped-call]
        return (*found, None, None, None) if len(found) > 2 else (*found, None, None, None, None)


class _Gradients(torch.autograd.Function):
    """The gradients of Σ slope · loss by hidden states, weight and bias, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, slopes: Tensor, *given: Any) -> Any:
        ctx.save_for_backward(slopes, *given[:4])
        ctx.settings = given[4:]
        return _in_chunks(slopes, *given)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *along: Tensor) -> Any:
        found = _in_chunks(*ctx.saved_tensors, *ctx.settings, along=along)
        bias = (None,) if len(found) < 4 else ()
        return found[-1], *found[:-1], *bias, None, None, None


def _in_chunks(
    slopes: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    ignored: int,
    size: int,
    *,
    along: tuple[Tensor, ...] | None = None,
) -> tuple[Tensor, ...]:
    """Return gradients; with ``along``, those of their inner product with it, and by the slopes."""
    sums = [torch.zeros_like(t) for t in (weight, bias) if t is not None]
    rows: list[list[Tensor]] = []
    for first in range(0, len(hidden), size):
        part = slice(first, first + size)
        with torch.enable_grad():
            leaves, losses = _chunk((hidden[part], weight, bias), target[part], ignored)
            slope = slopes[part].detach().requires_grad_()
            found = torch.autograd.grad(losses, leaves, slope, create_graph=along is not None)
            if along is not None:
                cotangents = (along[0][part], *along[1:])
                found = torch.autograd.grad(found, [*leaves, slope], cotangents)
        for total, piece in zip(sums, found[1:], strict=False):
            total.add_(piece)
        rows.append([found[0], *found[1 + len(sums) :]])
    if not rows:
        rows = [[hidden * 0.0, *([slopes * 0.0] if along is not None else [])]]
    by_row = [torch.cat(column) for column in zip(*rows, strict=True)]
    return (by_row[0], *sums, *by_row[1:])
