"""Models of which each process holds a part of every parameter give the numbers of one process."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from cases import case_named
from test_processes import assert_alike, torchrun, values_in
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import landscape as ls
from landscape.errors import InvalidArgumentError, LossError, ProblemError
from landscape.evaluate import Engine, Evaluator
from landscape.linalg.krylov import dot, fill_with_normal
from landscape.operators import EmpiricalFisher, GaussNewton, Hessian
from landscape.operators._checkpointing import repeated_blocks
from landscape.processes import Spread, sharing
from landscape.randomness import drawn, random_unit_vector, seeded

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")

# Tied, frozen and idle parameters, BatchNorm with its own statistics and the batch's, an LSTM.
LIKE_ONE = ("frozen", "unused", "tied", "batch_norm_train", "lstm", "ignore_index", "plain_sum")
MEASURED = ("transformer", "conv_batch_norm_eval")
EXACT = torch.float64


class Block(nn.Module):
    """A transformer block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.project, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(self.norms[0](x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mix(mixed.movedim(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Transformer(nn.Module):
    """A language model whose output weight is that of the embedding."""

    def __init__(self, width: int = 4, vocabulary: int = 5, n_blocks: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(n_blocks)))
        self.scale = nn.Parameter(torch.tensor(1.3))  # of which one process alone has a part

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.scale * self.blocks(self.embedding(tokens))
        return F.linear(hidden, self.embedding.weight).movedim(-1, 1)


class Checkpointed(Transformer):
    """Whose owner checkpoints the blocks."""

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        for block in self.blocks:
            hidden = checkpoint(block, hidden, use_reentrant=False)
        return F.linear(self.scale * hidden, self.embedding.weight).movedim(-1, 1)


def transformer(model: nn.Module | None = None) -> ls.Problem:
    torch.manual_seed(0)
    fresh, tokens = Transformer(n_blocks=2).double(), torch.randint(5, (11, 6))
    data = tokens[:, :-1], tokens[:, 1:]
    return ls.Problem(model or fresh, nn.CrossEntropyLoss(), data, batch_size=4)


def problem_of(name: str) -> ls.Problem:
    return transformer() if name == "transformer" else case_named(name).build(5)


def numbers_of(problem: ls.Problem) -> dict[str, Any]:
    """Loss, gradient and products, as whole vectors."""
    spread = problem.space.spread
    v = torch.randn(problem.space.n, generator=seeded(0), dtype=EXACT)
    part = v if spread is None else spread.part(v)

    def whole(vector: Tensor) -> Tensor:
        return vector if spread is None else spread.whole(vector)

    with Evaluator(problem) as evaluator:
        loss, gradient = evaluator.loss(keep=True), evaluator.gradient()[1]
        operator = Hessian(evaluator)
        operator.record_parts()
        found: dict[str, Any] = {
            "loss": [loss.value, *loss.metrics.values()],
            "gradient": whole(gradient),
            "product": whole(operator.matvec(part)),
            "again": whole(operator.matvec(part)),  # from graphs that were kept
            "groups": operator.project_parts(part[None]),
            "forms": operator.quadratic_forms(part[None], n_groups=4)[0],
            "points": [p.value for p in Engine(evaluator).losses([evaluator.origin] * 2)],
        }
        if repeated_blocks(problem.model):
            checkpointed = Hessian(evaluator, products="checkpointed")
            found["product of blocks"] = whole(checkpointed.matvec(part))
        if loss.examples is not None:
            found["examples"] = loss.examples[0]
            found["fisher"] = whole(EmpiricalFisher(evaluator).matvec(part))
    return found


def measured(problem: ls.Problem) -> dict[str, Any]:
    pairs = ls.top_eigenpairs(problem, k=1, tol=1e-2, failure_probability=0.5)
    trace = ls.trace(problem, max_matvecs=24)
    sharp = ls.sharpness(problem, rho=0.05, tol=1e-2, max_gradients=20, adaptive="filterwise")
    density = ls.spectral_density(problem, outliers=1, steps=4, n_probes=2)
    planes = [
        ls.random_plane(problem, orthogonal="filter"),
        ls.worst_case_plane(
            problem, sharp, ls.random_direction(problem, normalisation="global", vectors=True)
        ),
    ]
    surfaces = [ls.surface(problem, plane, n=2, weight_decay=0.1) for plane in planes]
    line = ls.line(problem, pairs.vectors[0], n=3)
    v = np.random.default_rng(0).normal(size=problem.space.n)
    split = problem.space.spread is not None
    assert pairs.provenance.processes == ("parameters over 2 processes" if split else "")
    return {
        "eigenvalues": [*pairs.values, pairs.upper_bound],
        "residual errors": pairs.residuals,
        "data errors": pairs.data_errors,
        "vector": np.abs(pairs.vectors @ v),
        "trace": [trace.value, trace.low],
        "sharpness": [sharp.value, sharp.one_step],
        "rise errors": sharp.value_se,
        "epsilon": sharp.epsilon @ v,
        "density": [*density.atoms, density.mean, density.mean_square],
        "surfaces": [[s.loss, s.loss_se, s.metrics["penalty"]] for s in surfaces],
        "norms": [[*s.direction_norms, s.cosine] for s in surfaces],
        "line": line.loss,
        "errors of the line": line.metrics["rise_se"],
    }


def work(rank: int, n: int, folder: str) -> None:
    torch.set_num_threads(1)
    if n > 1:
        dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=n)
    found = {}
    with sharing("parameters") if n > 1 else nullcontext():
        for name in (*LIKE_ONE, *MEASURED):
            problem = problem_of(name)
            kinds = [type(part) for part in problem.model.modules()]
            before = copy.deepcopy(problem.model.state_dict())
            numbers = numbers_of(problem)
            if name in MEASURED and n < 3:
                numbers |= measured(problem)
            for key, tensor in problem.model.state_dict().items():
                assert torch.equal(tensor, before[key]), key
            assert [type(part) for part in problem.model.modules()] == kinds
            found[name] = {k: np.asarray(v, dtype=np.float64) for k, v in numbers.items()}
        if n == 2:
            assert_alike_in_threads(found["tied"])
    torch.save(found, f"{folder}/{rank}")
    if n > 1:
        dist.destroy_process_group()


def assert_alike_in_threads(expected: dict[str, Any]) -> None:
    """Backward passes in threads of their own, as those of CUDA are, which know no context."""
    plain = torch.autograd.grad

    def threaded(*args: Any, **options: Any) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(plain, *args, **options).result()

    torch.autograd.grad = threaded
    try:
        numbers = numbers_of(problem_of("tied"))
    finally:
        torch.autograd.grad = plain
    for key in ("gradient", "product"):
        np.testing.assert_array_equal(np.asarray(numbers[key]), expected[key])


def on(n: int, folder: Path, body: Callable[..., None] = work) -> list[Any]:
    folder.mkdir()
    if n == 1:
        body(0, 1, str(folder))
    else:
        mp.spawn(body, args=(n, str(folder)), nprocs=n)
    return [torch.load(folder / str(rank), weights_only=False) for rank in range(n)]


@pytest.mark.slow
def test_split_parameters_give_the_numbers_of_one_process(tmp_path: Path) -> None:
    (alone,) = on(1, tmp_path / "1")
    for n in (2, 3):
        first, *others = on(n, tmp_path / str(n))
        for case, expected in alone.items():
            expected = {k: v for k, v in expected.items() if k in first[case]}
            assert len(expected) > 7 or n == 3
            assert_alike(first[case], expected)
            for other in others:  # the same bits: all take the same way through a search
                for name, value in first[case].items():
                    np.testing.assert_array_equal(other[case][name], value, err_msg=name)


def wrapped(rank: int, n: int, folder: str) -> None:
    """Models of FSDP2 and DDP, refusals, and limits of torch that this goes around."""
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=n)
    plain = transformer()
    expected, expected_plane = numbers_of(plain), ls.random_plane(plain)
    model = copy.deepcopy(plain.model)
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model, ignored_params={model.scale})
    # FSDP2 has no forward mode, and no second derivative: if this fails, it has them now.
    tokens, shards = torch.randint(5, (2, 4), generator=seeded(0)), dict(model.named_parameters())
    with pytest.raises(NotImplementedError, match="sharding strategy"):
        torch.func.jvp(
            lambda each: torch.func.functional_call(model, each, (tokens,)),
            (shards,),
            ({name: torch.ones_like(shard) for name, shard in shards.items()},),
        )
    model(tokens).square().mean().backward(create_graph=True)
    assert not any(p.grad.requires_grad for p in model.blocks.parameters())
    model.zero_grad()
    with pytest.raises(ProblemError, match="is a shard"):
        transformer(model)
    with sharing("parameters"):
        problem = transformer(model)
        assert_alike_all(numbers_of(problem), expected)
        assert problem.checkpoint_hash == plain.checkpoint_hash
        assert len(model.blocks[0]._forward_pre_hooks) == 1
        with pytest.raises(ProblemError, match="load the checkpoint into the model"):
            problem.at(plain)
        assert_alike_all(
            numbers_of(transformer(DistributedDataParallel(copy.deepcopy(plain.model)))), expected
        )
        assert ls.random_plane(plain).x.settings() == expected_plane.x.settings()
        owned = transformer(Checkpointed(n_blocks=2).double())
        owned.model.load_state_dict(plain.model.state_dict())
        spread, v = owned.space.spread, torch.randn(plain.space.n, generator=seeded(0), dtype=EXACT)
        with Evaluator(owned) as evaluator:
            operator = Hessian(evaluator)  # by blocks it would compute anew what is computed anew
            product = spread.whole(operator.matvec(spread.part(v)))
        assert "differences" not in operator.describe(), operator.describe()
        torch.testing.assert_close(product, expected["product"])
        with pytest.raises(ProblemError, match="a measurement of average takes whole vectors"):
            ls.average_sharpness(plain, sigma=0.1)
        with pytest.raises(ProblemError, match="principal plane takes whole vectors"):
            ls.principal_plane(plain, [plain, plain])
        with pytest.raises(InvalidArgumentError, match="only p = 2"):
            ls.sharpness(plain, p=1)
        with pytest.raises(InvalidArgumentError, match="layers=True"):
            ls.trace(plain, layers=True)
        with Evaluator(plain) as evaluator, pytest.raises(LossError, match="Gauss-Newton"):
            GaussNewton(evaluator)
        with pytest.raises(LossError, match="elsewhere than as an attribute of its"):
            ls.evaluation(penalised())
        idle = nn.Sequential(nn.Embedding(5, 2, max_norm=1.0), nn.Flatten(), nn.Linear(4, 2))
        data = torch.zeros(4, 2, dtype=torch.long), torch.zeros(4, dtype=torch.long)
        with pytest.raises(ProblemError, match=r"0 \(Embedding\) cannot be split"):
            ls.evaluation(ls.Problem(idle, nn.CrossEntropyLoss(), data))
    torch.save({}, f"{folder}/{rank}")
    dist.destroy_process_group()


def penalised() -> ls.Problem:
    """A loss with a penalty on all parameters, of which a process sees parts."""
    model = case_named("tied").parts().model

    def batch_loss(model: nn.Module, batch: Any) -> Tensor:
        penalty = sum(p.square().sum() for p in model.parameters())
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none") + penalty

    data = torch.randn(6, 3, dtype=EXACT), torch.zeros(6, dtype=torch.long)
    return ls.Problem(model, data=data, batch_loss=batch_loss)


def assert_alike_all(found: dict[str, Any], expected: dict[str, Any]) -> None:
    arrays = [{k: np.asarray(v, np.float64) for k, v in each.items()} for each in (found, expected)]
    assert_alike(*arrays)


@pytest.mark.slow
def test_wrapped_models_are_taken_over_and_what_cannot_be_split_is_refused(tmp_path: Path) -> None:
    on(2, tmp_path / "2", wrapped)


@pytest.mark.slow
def test_a_command_splits_parameters_under_torchrun(here: Path, run: Any) -> None:
    task = ("eigs", "a.pt", "--problem", "task.py", "--dtype", "float64", "-q", "--json")
    together = torchrun(*task, "--shard", "parameters", "--study", "together.db")
    assert together.returncode == 0, together.stderr
    alone = run(*task, "--study", "alone.db")
    found, expected = values_in(together.stdout), values_in(alone.out)
    assert len(found) == len(expected) > 5
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert '"parameters over 2 processes"' in together.stdout
    assert run(*task, "--study", "together.db").out == together.stdout
    refused = run(*task, "--shard", "parameters")
    assert refused.code == 2
    assert "start the command by torchrun" in refused.err


def test_a_spread_vector_is_drawn_and_found_as_a_whole_one() -> None:
    sizes = (2**20 + 37, 1, 5, 7, 12)
    n = sum(sizes)
    whole = torch.randn(n, generator=seeded(1), dtype=EXACT)
    chunked = fill_with_normal(torch.empty(n, dtype=EXACT), seeded(1))
    covered = 0
    for rank in range(3):
        spread = Spread(rank, 3, sizes)
        covered += spread.length
        generator = seeded(1)

        def draw(m: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(m, generator=generator, dtype=EXACT)

        assert torch.equal(drawn(n, draw, spread), spread.part(whole))
        empty = torch.empty(spread.length, dtype=EXACT)
        assert torch.equal(fill_with_normal(empty, seeded(1), spread), spread.part(chunked))
        held = {i: spread.place(i) for i in (0, n // 2, 2**20 + 37, n - 1)}
        assert all(at is None or spread.part(whole)[at] == whole[i] for i, at in held.items())
        assert torch.equal(whole, torch.randn(n, generator=seeded(1), dtype=EXACT))
    assert covered == n
    assert dot(random_unit_vector(9, seed=0), random_unit_vector(9, seed=0)) == pytest.approx(1.0)
