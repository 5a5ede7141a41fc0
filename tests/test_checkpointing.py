"""Products whose blocks are computed anew are those of double backward, and take less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import landscape as ls
from landscape.errors import LossError
from landscape.evaluate import DoubleBackward, Evaluator, graph_bytes
from landscape.operators import Hessian
from landscape.operators._checkpointing import CheckpointedBackward, Checkpoints, repeated_blocks

WIDTH, WORDS = 4, 6


class Block(nn.Module):
    """Takes tensors in several ways, and returns them with what is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.down = nn.Linear(3 * WIDTH, WIDTH)
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor, state: dict[str, Any], *, mask: Tensor) -> tuple[Any, ...]:
        y = self.down(torch.tanh(self.up(self.norm(x)))) * mask
        return x + self.gain * y, {"sum": state["sum"] + y.square(), "depth": state["depth"] + 1}


class Model(nn.Module):
    def __init__(self, block: type[nn.Module] = Block, n: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(block() for _ in range(n))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.embedding(words)
        state, mask = {"sum": torch.zeros_like(x), "depth": 0}, (words > 0)[..., None]
        for block in self.blocks:
            x, state = block(x, state, mask=mask)
        assert state["depth"] == len(self.blocks)
        return self.head(x + 0.1 * state["sum"]).movedim(-1, 1)


def problem_of(model: nn.Module | None = None, **options: Any) -> ls.Problem:
    torch.manual_seed(0)
    words = torch.randint(WORDS, (7, 5))
    model = (model or Model()).double()
    return ls.Problem(model, nn.CrossEntropyLoss(), (words, words.flip(1)), **options)


def products(problem: ls.Problem, way: str) -> Tensor:
    with Evaluator(problem) as evaluator:
        operator = Hessian(evaluator, products=way)
        vectors = torch.randn(2, operator.n, generator=torch.manual_seed(1), dtype=torch.float64)
        found = operator.matmat(vectors)
    assert ("3 blocks checkpointed" in operator.describe()) == (way == "checkpointed")
    return found


@pytest.mark.parametrize("batch_size", [7, 3])
@pytest.mark.parametrize("frozen", [(), ("embedding.weight", "blocks.1.gain")])
def test_products_are_those_of_double_backward(batch_size: int, frozen: tuple[str]) -> None:
    model = Model()
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    problem = problem_of(model, batch_size=batch_size)
    expected = products(problem, "double-backward")
    found = products(problem, "checkpointed")
    assert float((found - expected).abs().max()) <= 1e-13 * float(expected.abs().max())
    assert all("forward" not in vars(block) for block in model.blocks)


def test_dropout_draws_the_same_masks() -> None:
    class Dropping(Block):
        def forward(self, x: Tensor, state: dict[str, Any], *, mask: Tensor) -> tuple[Any, ...]:
            return super().forward(nn.functional.dropout(x, 0.3, self.training), state, mask=mask)

    problem = problem_of(Model(Dropping), batch_size=7, mode="train")
    expected = products(problem, "double-backward")
    found = products(problem, "checkpointed")
    assert float((found - expected).abs().max()) <= 1e-13 * float(expected.abs().max())


@pytest.mark.filterwarnings("ignore:.*computes in bfloat16")
def test_a_network_in_half_precision_is_cast_as_before() -> None:
    seen = set()

    class Noting(nn.Tanh):
        def forward(self, x: Tensor) -> Tensor:
            seen.add(x.dtype)
            return super().forward(x)

    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            parts = [nn.Sequential(nn.Linear(8, 8), Noting()) for _ in range(2)]
            self.blocks, self.head = nn.Sequential(*parts), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.head(self.blocks(x)).float()

    torch.manual_seed(0)
    problem = ls.Problem(Cast(), nn.CrossEntropyLoss(), (torch.randn(6, 8), torch.arange(6) % 3))
    with Evaluator(problem) as evaluator:
        v = torch.randn(problem.space.n, generator=torch.manual_seed(1))
        found = [
            Hessian(evaluator, products=way).matvec(v)
            for way in ("double-backward", "checkpointed")
        ]
    torch.testing.assert_close(*found, rtol=0.0, atol=2e-2 * float(v.norm()))
    assert torch.float32 not in seen


def test_what_is_measured_says_how_and_agrees() -> None:
    problem = problem_of()
    expected = ls.top_eigenpairs(problem, 2, tol=1e-8)
    found = ls.top_eigenpairs(problem, 2, tol=1e-8, products="checkpointed")
    assert found.values == pytest.approx(expected.values, rel=1e-12)
    assert found.products.startswith("double backward, 3 blocks checkpointed")
    density = ls.spectral_density(problem, outliers=1, n_probes=2, products="checkpointed")
    assert density.atoms == pytest.approx(expected.values[:1], rel=1e-4)


def test_the_graph_holds_the_inputs_of_the_blocks_alone() -> None:
    problem = problem_of(Model(n=8))
    with Evaluator(problem) as evaluator:
        where = evaluator, evaluator.origin, next(iter(problem.batches)), 0
        lean, full = CheckpointedBackward(*where, Checkpoints(problem)), DoubleBackward(*where)
        held = graph_bytes(*lean._outputs)
    assert 4 * held < full.n_bytes
    assert held < lean.n_bytes < full.n_bytes


def test_blocks_are_the_outermost_repeated_layers() -> None:
    inner = [nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Tanh())) for _ in range(2)]
    model = nn.Sequential(nn.Linear(2, 2), nn.ModuleDict({"a": nn.Sequential(*inner)}), nn.Tanh())
    assert list(repeated_blocks(model)) == ["1.a.0", "1.a.1"]
    assert not repeated_blocks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))


class Passing(Block):
    """Returns what it was given, what it holds, and what nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.ones(WIDTH))

    def forward(self, x: Tensor, state: dict[str, Any], *, mask: Tensor) -> tuple[Any, ...]:
        y, found = super().forward(x, state, mask=mask)
        given = {"twice": (x, x), "shift": self.shift, "unused": (x - x).norm()}
        return y + 0.1 * state.get("twice", (x,))[0] * self.shift, found | given


class Shared(nn.Module):
    """One block that is used at every depth, on inputs that are changed in place after it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Tanh(), nn.Linear(WORDS, WORDS))] * 3)

    def forward(self, words: Tensor) -> Tensor:
        x = nn.functional.one_hot(words, WORDS).to(self.blocks[0][1].weight)
        for block in self.blocks:
            x = block(x).add_(0.5)
        return x.movedim(-1, 1)


class Inside(Block):
    """Checkpoints a part of itself."""

    def forward(self, x: Tensor, state: dict[str, Any], *, mask: Tensor) -> tuple[Any, ...]:
        x = checkpoint(torch.tanh, x, use_reentrant=False)
        return super().forward(x, state, mask=mask)


@pytest.mark.parametrize("model", [lambda: Model(Passing), Shared, lambda: Model(Inside)])
def test_blocks_of_other_kinds(model: Any) -> None:
    problem = problem_of(model(), batch_size=7)
    before = {name: t.clone() for name, t in problem.model.state_dict().items()}
    v = torch.randn(problem.space.n, generator=torch.manual_seed(1), dtype=torch.float64)
    with Evaluator(problem) as evaluator:
        found = Hessian(evaluator, products="checkpointed").matvec(v)
        expected = Hessian(evaluator, products="double-backward").matvec(v)
    assert float((found - expected).abs().max()) <= 1e-13 * float(expected.abs().max())
    assert not any(buffer.requires_grad for buffer in problem.model.buffers())
    for name, tensor in problem.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_memory_cuts_the_batches() -> None:
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)) for _ in range(4)]
    data = torch.randn(512, 64), torch.arange(512) % 64
    problem = ls.Problem(nn.Sequential(*parts), nn.CrossEntropyLoss(), data, batch_size=512)
    with Evaluator(problem) as evaluator:
        few, many = (
            Hessian(evaluator, products="checkpointed", graph_bytes=n).size_that_fits(n)
            for n in (300_000, 600_000)
        )
        assert few is not None
        assert 1 < few < (many or 512)
        v = torch.ones(problem.space.n)
        operator = Hessian(evaluator, products="checkpointed", graph_bytes=1_200_000)
        operator.matvec(v)
    assert "cut into" in operator.describe()


class Auxiliary(Block):
    """Leaves a part of the loss beside the outputs."""

    def forward(self, x: Tensor, state: dict[str, Any], *, mask: Tensor) -> tuple[Any, ...]:
        y, found = super().forward(x, state, mask=mask)
        self.penalty = y.square().mean()
        return y, found


def with_penalties(model: Model, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    words, target = batch
    losses = nn.functional.cross_entropy(model(words), target, reduction="none").mean(1)
    penalties = torch.stack([block.penalty for block in model.blocks]).sum()
    weights = (words[:, 0] > 0).double()
    return weights * (losses + penalties), weights


def test_what_the_first_example_does_not_show_is_refused() -> None:
    torch.manual_seed(0)
    words = torch.randint(WORDS, (7, 5))
    words[:, 0] = (torch.arange(7) > 2).long()  # the first ones have no weight
    problem = ls.Problem(Model(Auxiliary).double(), data=(words, words), batch_loss=with_penalties)
    with pytest.raises(LossError, match="they give another gradient"):
        products(problem, "checkpointed")
    products(problem, "double-backward")  # is not blamed for it
    with pytest.raises(LossError, match="they give another gradient"):
        products(problem, "checkpointed")


class Cache:
    def __init__(self) -> None:
        self.seen: list[Tensor] = []


class Remembering(Block):
    """Adds what it has seen in the pass, as a cache of keys does."""

    def forward(self, x: Tensor, state: dict[str, Any], *, mask: Tensor) -> tuple[Any, ...]:
        x, found = super().forward(x, state, mask=mask)
        cache = state.get("cache") or Cache()
        cache.seen.append(x)
        return torch.stack(cache.seen).mean(0), found | {"cache": cache}


class Reading(Block):
    """Reads a parameter of another part."""

    other: list[nn.Module]

    def forward(self, x: Tensor, state: dict[str, Any], *, mask: Tensor) -> tuple[Any, ...]:
        x, found = super().forward(x, state, mask=mask)
        return x * self.other[0].weight.sum(), found


def test_what_cannot_be_computed_anew_is_refused() -> None:
    plain = Model(nn.Identity, n=0)
    with pytest.raises(LossError, match="has no blocks to checkpoint"):
        products(problem_of(plain), "checkpointed")
    with pytest.raises(LossError, match="Does one of them change what it is given"):
        products(problem_of(Model(Remembering)), "checkpointed")
    model = Model(Reading)
    Reading.other = [model.embedding]
    with pytest.raises(LossError, match=r"blocks\.2 reads parameters or results of other parts"):
        products(problem_of(model), "checkpointed")
