"""Memory of autograd graphs that are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from landscape.evaluate import graph_nodes


def graph_bytes(*tensors: Tensor) -> int:
    """Measure the memory of all tensors that the graphs of some outputs have saved."""
    sizes: dict[int, int] = {}
    for node in graph_nodes(*tensors):
        for name in dir(node):
            if name.startswith("_saved_") or name == "saved_tensors":
                saved = getattr(node, name)
                for item in saved if isinstance(saved, (tuple, list)) else (saved,):
                    if isinstance(item, Tensor) and item.layout == torch.strided:
                        storage = item.untyped_storage()
                        sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())
