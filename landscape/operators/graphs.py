"""Autograd graphs that are kept: how large they are, and how to build them twice differentiable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

ONCE = "torch::autograd::Error"
"""The node that torch puts behind what once_differentiable returns."""


def graph_bytes(*tensors: Tensor) -> int:
    """Measure the memory of all tensors that the graphs of differentiable tensors have saved.

    Args:
        *tensors: the outputs of the graphs.

    Returns:
        Bytes, each storage counted once.
    """
    sizes: dict[int, int] = {}
    for node in nodes(*tensors):
        for name in dir(node):
            if name.startswith("_saved_") or name == "saved_tensors":
                saved = getattr(node, name)
                for item in saved if isinstance(saved, (tuple, list)) else (saved,):
                    if isinstance(item, torch.Tensor):
                        storage = item.untyped_storage()
                        sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def nodes(*tensors: Tensor) -> Iterator[Any]:
    """Walk through the graphs of differentiable tensors.

    Args:
        *tensors: the outputs of the graphs.

    Yields:
        Each node once.
    """
    seen: set[object] = set()
    todo: list[Any] = [tensor.grad_fn for tensor in tensors]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        todo.extend(parent for parent, _ in node.next_functions)


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Compute with kernels that have a second derivative, and with gradients on.

    The fused attention kernels have none, nor have cuDNN's recurrent layers; the plain ones do.

    Args:
        model: what is going to run.

    Yields:
        Nothing.
    """
    recurrent = any(isinstance(part, nn.RNNBase) for part in model.modules())
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _without_cudnn(recurrent):
        yield


@contextmanager
def _without_cudnn(wanted: bool) -> Iterator[None]:
    # Not torch.backends.cudnn.flags: it reads all other settings too, which can fail.
    before = torch.backends.cudnn.enabled
    try:
        torch.backends.cudnn.enabled = before and not wanted
        yield
    finally:
        torch.backends.cudnn.enabled = before
