"""Curvature of the data set's loss as a linear operator: a matvec over flat vectors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from landscape.evaluate import BatchGradient, Evaluator
from landscape.sums import VectorSum, final_divisor

GRAPH_BYTES = 2 * 2**30


class Hessian:
    """The Hessian of the data set's loss at one weight vector.

    H = ∇² (Σ sum / Σ weight): the sums over batches are divided once, so that H does not depend
    on the batching. Products are exact (reverse over reverse). The gradient's graph of each batch
    is kept between products as long as the graphs fit into ``graph_bytes``; a kept graph makes a
    product about twice as fast. The others are built anew for each product.

    Attributes:
        n: number of rows and columns.
        dtype: of the vectors.
        device: of the vectors.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        *,
        at: Tensor | None = None,
        graph_bytes: int = GRAPH_BYTES,
    ) -> None:
        """Set up the operator; graphs are built at the first product.

        Args:
            evaluator: an entered evaluator.
            at: weights of shape (n,); None: the origin.
            graph_bytes: memory for graphs that are kept between products.
        """
        self._evaluator = evaluator
        self._at = evaluator.origin if at is None else at
        self._room = graph_bytes
        self._kept: dict[int, BatchGradient] = {}
        self.n = evaluator.problem.space.n
        self.dtype = self._at.dtype
        self.device = self._at.device

    def matvec(self, vector: Tensor) -> Tensor:
        """Multiply with a vector.

        Args:
            vector: shape (n,).

        Returns:
            Hv, shape (n,). Cost: one HVP.
        """
        batches = self._evaluator.problem.batches
        total, weight = VectorSum(batches.n_batches), 0.0
        for graph, kept in self._graphs():
            total.add(graph.hvp(vector, retain=kept))
            weight += graph.weight
        self._evaluator.passes["hvps"] += 1
        divisor = final_divisor(weight, plain_sum=self._evaluator.problem.loss.sums)
        return (total.value / divisor).to(vector.dtype)

    def _graphs(self) -> Iterator[tuple[BatchGradient, bool]]:
        """Give each batch's gradient with its graph, and whether it is kept."""
        for i, batch in enumerate(self._evaluator.problem.batches):
            if i in self._kept:
                yield self._kept[i], True
                continue
            graph = self._evaluator.batch_gradient_graph(self._at, batch, i)
            size = graph_bytes(graph.gradient) if self._room > 0 else 0
            self._room -= size
            if self._room > 0:
                self._kept[i] = graph
            yield graph, i in self._kept


def graph_bytes(tensor: Tensor) -> int:
    """Measure the memory of all tensors that a differentiable tensor's graph has saved.

    Args:
        tensor: the output of the graph.

    Returns:
        Bytes, each storage counted once.
    """
    sizes: dict[int, int] = {}
    seen: set[object] = set()
    todo = [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo.extend(parent for parent, _ in node.next_functions)
        for name in dir(node):
            if name.startswith("_saved_") or name == "saved_tensors":
                saved = getattr(node, name)
                for item in saved if isinstance(saved, (tuple, list)) else (saved,):
                    if isinstance(item, torch.Tensor):
                        storage = item.untyped_storage()
                        sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())
