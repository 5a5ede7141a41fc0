"""Cross entropy in chunks has the value, gradient and Hessian products of torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import landscape as ls
from landscape.errors import LossError
from landscape.evaluate import Evaluator
from landscape.operators import Hessian


def inputs(*, bias: bool) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(0)
    shapes = [(3, 5, 4), (11, 4), *([(11,)] if bias else [])]
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    target = torch.randint(11, (3, 5))
    target[1, 2:] = -100
    return tensors, target


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 15, 1000])
def test_values_gradients_and_products_are_those_of_plain_cross_entropy(
    bias: bool, chunk: int
) -> None:
    tensors, target = inputs(bias=bias)
    directions = [torch.randn_like(t) for t in tensors]

    def plain(hidden: Tensor, weight: Tensor, b: Tensor | None = None) -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight, b).movedim(-1, 1), target, reduction="none")

    def chunked(hidden: Tensor, weight: Tensor, b: Tensor | None = None) -> Tensor:
        return ls.chunked_cross_entropy(hidden, weight, target, bias=b, chunk=chunk)

    found = []
    for losses in (plain, chunked):
        each = losses(*tensors)
        total = each.square().sum()  # slopes that depend on the tensors, unlike those of a sum
        gradients = torch.autograd.grad(total, tensors, create_graph=True)
        products = torch.autograd.grad(gradients, tensors, directions)
        found.append([each, *gradients, *products])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradgradcheck(chunked, tensors)


class Head(nn.Module):
    """An embedding, and hidden states beside the weight that is tied to it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mix = nn.Embedding(7, 3), nn.Linear(3, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.tanh(self.mix(self.embedding(tokens)))


def test_a_problem_with_it_has_the_hessian_of_the_plain_loss() -> None:
    torch.manual_seed(1)
    model, tokens = Head().double(), torch.randint(7, (6, 5))

    def chunked(model: Any, batch: Any) -> Any:
        weight = model.embedding.weight
        losses = ls.chunked_cross_entropy(model(batch[:, :-1]), weight, batch[:, 1:], chunk=3)
        return losses.sum(1), torch.full((len(batch),), 4.0)

    def plain(model: Any, batch: Any) -> Any:
        logits = F.linear(model(batch[:, :-1]), model.embedding.weight).movedim(-1, 1)
        losses = F.cross_entropy(logits, batch[:, 1:], reduction="none")
        return losses.sum(1), torch.full((len(batch),), 4.0)

    matrices = []
    for batch_loss in (plain, chunked):
        problem = ls.Problem(model, data=[tokens[:4], tokens[4:]], batch_loss=batch_loss)
        with Evaluator(problem) as evaluator:
            operator = Hessian(evaluator)
            matrices.append(operator.dense())
            assert operator.describe().startswith("double backward")
    torch.testing.assert_close(*matrices, rtol=1e-12, atol=1e-12)


def test_logits_never_stand_whole() -> None:
    """What a product keeps grows with the hidden states, not with tokens times vocabulary."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor.detach()

    hidden, weight = (torch.randn(shape, requires_grad=True) for shape in ((256, 4), (500, 4)))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        losses = ls.chunked_cross_entropy(hidden, weight, torch.zeros(256).long(), chunk=16)
        torch.autograd.grad(losses.sum(), [hidden, weight], create_graph=True)
    assert max(kept.values()) <= 16 * 500 < 256 * 500
    assert sum(kept.values()) < 256 * 500


def test_shapes_that_do_not_go_together_are_refused() -> None:
    hidden, weight = torch.randn(2, 3), torch.randn(5, 4)
    with pytest.raises(LossError, match=r"expected shapes \(…, E\), \(V, E\) and \(…\)"):
        ls.chunked_cross_entropy(hidden, weight, torch.zeros(2).long())
    with pytest.raises(LossError, match="int64 targets"):
        ls.chunked_cross_entropy(hidden, torch.randn(5, 3), torch.zeros(2))


def test_under_autocast_it_is_computed_in_full() -> None:
    (hidden, weight), target = inputs(bias=False)
    hidden, weight = (t.detach().float().requires_grad_() for t in (hidden, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = ls.chunked_cross_entropy(hidden, weight, target, chunk=4)
    found = torch.autograd.grad(losses.sum(), (hidden, weight))
    plain = F.cross_entropy(F.linear(hidden, weight).movedim(-1, 1), target, reduction="none")
    expected = torch.autograd.grad(plain.sum(), (hidden, weight))
    torch.testing.assert_close(found, expected)


def test_a_batch_without_tokens_has_no_gradient() -> None:
    (_, weight), _ = inputs(bias=False)
    hidden = torch.zeros(0, 4, dtype=torch.float64, requires_grad=True)
    losses = ls.chunked_cross_entropy(hidden, weight, torch.zeros(0, dtype=torch.long))
    by_hidden, by_weight = torch.autograd.grad(losses.sum(), (hidden, weight))
    assert by_hidden.shape == (0, 4)
    assert not by_weight.any()
