"""m-sharpness: subsets with their own ε, against closed forms example by example."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from torch import nn

from landscape.errors import (
    DataError,
    InvalidArgumentError,
    LossError,
    LossNotAdditiveWarning,
)
from landscape.evaluate import Evaluator, measure_signature
from landscape.problem import Problem
from landscape.problem.losses import normalised_logits
from landscape.sharpness import _m_sharpness as subsets
from landscape.sharpness._ascent import Point
from landscape.sharpness._auto_pgd import auto_pgd, checkpoints
from landscape.sharpness._ball import Ball
from landscape.sharpness._m_sharpness import m_sharpness
from landscape.sharpness._worst_case import sharpness
from landscape.study import Study

EXACT = {"tol": 1e-9, "max_gradients": 300}


def data(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    return x, torch.randn(n, 1, generator=generator, dtype=torch.float64)


def linear(loss: nn.Module, n: int = 12, *, batch_size: int = 5, binary: bool = False) -> Problem:
    x, y = data(n)
    model = nn.Linear(5, 1, bias=False).double()
    model.weight.data = torch.linspace(-1, 1, 5, dtype=torch.float64)[None]
    return Problem(
        model, loss, (x, (y > 0).double() if binary else y), batch_size=batch_size, name="linear"
    )


def classes(n: int = 20, *, dtype: str = "float64") -> Problem:
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    x, _ = data(n)
    labels = torch.randint(0, 3, (n,), generator=generator)
    return Problem(model, nn.CrossEntropyLoss(), (x, labels), dtype=dtype, batch_size=8)


# -- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("binary", [False, True])
def test_each_example_alone_is_exact_for_linear_models(p, binary):
    """Squared: ((|r| + ρ‖x‖_q)² − r²); logistic: softplus(−m + ρ‖x‖_q) − softplus(−m)."""
    loss = nn.BCEWithLogitsLoss() if binary else nn.MSELoss()
    problem = linear(loss, binary=binary)
    x, y = (torch.cat(part).numpy() for part in zip(*problem.batches, strict=True))
    out = x @ np.linspace(-1, 1, 5)
    q = {1.0: math.inf, math.inf: 1.0}.get(p) or p / (p - 1)
    reach = 0.3 * np.linalg.norm(x, q, axis=1)
    if binary:
        margin = np.where(y[:, 0] > 0, out, -out)
        exact = np.logaddexp(0, reach - margin) - np.logaddexp(0, -margin)
    else:
        residual = np.abs(out - y[:, 0])
        exact = (residual + reach) ** 2 - residual**2
    found = m_sharpness(problem, 0.3, m=1, p=p, **EXACT)
    assert found.values == pytest.approx(exact, rel=1e-6)
    assert found.value == pytest.approx(exact.mean(), rel=1e-6)
    assert (found.m, found.n_left_out, found.values.size) == (1, 0, 12)
    assert (found.values >= found.one_steps).all()


@pytest.mark.parametrize("batch_size", [1, 4, 5, 12])
def test_subsets_are_consecutive_examples_whatever_the_batches(batch_size):
    whole = linear(nn.MSELoss(), 14, batch_size=14)
    found = m_sharpness(linear(nn.MSELoss(), 14, batch_size=batch_size), 0.3, m=4, **EXACT)
    x, y = data(14)
    for i, value in enumerate(found.values):
        part = slice(4 * i, 4 * i + 4)
        alone = Problem(whole.model, nn.MSELoss(), (x[part], y[part]))
        expected = sharpness(alone, 0.3, **EXACT)
        assert value == pytest.approx(expected.value, rel=1e-8)
        assert found.losses[i] == pytest.approx(expected.loss, rel=1e-12)
    assert found.n_left_out == 2
    assert "2 at the end left out" in dict(found.rows())["subsets"]


def test_using_only_the_beginning_of_the_data_is_said():
    problem = linear(nn.MSELoss(), 14)
    found = m_sharpness(problem, 0.3, m=4, n_examples=9)
    assert found.values == pytest.approx(m_sharpness(problem, 0.3, m=4).values[:2], rel=1e-9)
    assert dict(found.rows())["subsets"] == ("2 of 4, the first 9 examples; 1 at the end left out")


def test_one_subset_of_all_is_the_sharpness_of_the_whole():
    problem = classes()
    found = m_sharpness(problem, 0.2, m=20, tol=1e-8)
    assert found.value == pytest.approx(sharpness(problem, 0.2, tol=1e-8).value, rel=1e-6)
    assert math.isnan(found.value_se)
    assert "95 %" not in found.rows()[0][1]


def test_mean_of_maxima_is_not_below_the_maximum_of_the_mean():
    problem = classes()
    whole = sharpness(problem, 0.3, tol=1e-8)
    parts = m_sharpness(problem, 0.3, m=5, tol=1e-8)
    assert parts.value >= whole.value
    assert m_sharpness(problem, 0.3, m=1, tol=1e-6).value >= parts.value


def test_the_interval_is_students_over_the_subsets():
    found = m_sharpness(classes(), 0.2, m=4)
    low, high = student.interval(
        0.95, 4, loc=found.values.mean(), scale=found.values.std(ddof=1) / math.sqrt(5)
    )
    assert found.interval == pytest.approx((low, high), rel=1e-9)
    assert found.n_converged == (found.gaps <= 1e-4).sum()


def test_the_interval_covers_the_mean_of_the_population():
    """Subsets redrawn 400 times from a known population of per-example values."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 8, 3))
    residual, reach = np.abs(x[..., 0] + 1.0), 0.3 * np.abs(x[..., 1])
    values = (residual + reach) ** 2 - residual**2
    big = rng.standard_normal((2_000_000, 2))
    residual, reach = np.abs(big[:, 0] + 1.0), 0.3 * np.abs(big[:, 1])
    truth = ((residual + reach) ** 2 - residual**2).mean()
    template = m_sharpness(linear(nn.MSELoss(), 8), 0.3, m=1)
    hits = 0
    for row in values:
        low, high = dataclasses.replace(template, values=row).interval
        hits += low <= truth <= high
    # Skewed values and eight of them: t intervals cover somewhat less than 95 %.
    assert 0.85 <= hits / 400 <= 0.98


# -- kept one by one -----------------------------------------------------------------------------


def test_a_kill_loses_at_most_one_subset(tmp_path, monkeypatch):
    path, problem = tmp_path / "study.db", classes()
    search = subsets._by_search
    made = []

    def breaks(*args):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(1)
        return search(*args)

    monkeypatch.setattr(subsets, "_by_search", breaks)
    with Study(path) as study, pytest.raises(KeyboardInterrupt):
        m_sharpness(problem, 0.2, m=4, study=study)
    monkeypatch.setattr(subsets, "_by_search", lambda *args: (made.append(1), search(*args))[1])
    with Study(path) as study:
        found = m_sharpness(problem, 0.2, m=4, study=study)
        assert len(made) == 5
        again = m_sharpness(problem, 0.2, m=4, study=study)
        assert again.values.tobytes() == found.values.tobytes()
        assert len(made) == 5
    monkeypatch.undo()
    assert m_sharpness(problem, 0.2, m=4).values.tobytes() == found.values.tobytes()


def test_the_model_is_left_as_it_was():
    problem = classes()
    digest = problem.checkpoint_hash
    m_sharpness(problem, 0.2, m=7)
    assert problem.checkpoint_hash == digest


# -- the published protocol ----------------------------------------------------------------------


def test_checkpoints_are_those_of_the_published_script():
    assert checkpoints(20) == (5, 9, 12, 15, 16, 18, 19, 20)


def by_hand(rise, slope, d, rho, n_steps):
    """Algorithm 1 of Croce and Hein (2020), p = 2, in plain NumPy."""

    def project(x):
        return x * min(1.0, rho / max(np.linalg.norm(x), 1e-300))

    def climb(x, eta):
        g = slope(x)
        return project(x + eta * g / np.linalg.norm(g))

    x0, eta, marks = np.zeros(d), 2 * rho, [0, *checkpoints(n_steps)]
    xs = [x0, climb(x0, eta)]
    fs = [rise(x) for x in xs]
    best = max(zip(fs, range(2), strict=True))
    top, top_x = best[0], xs[best[1]]
    etas, tops = {0: eta}, {0: fs[0]}
    x_last, x = xs[0], xs[1]
    for k in range(1, n_steps + 1):
        if k in marks:
            j = marks[marks.index(k) - 1]
            rises = sum(fs[i + 1] > fs[i] for i in range(j, k))
            etas[k], tops[k] = eta, top
            halved = j > 0 and etas[j] == etas[k] and tops[j] == tops[k]
            if rises < 0.75 * (k - j) or halved:
                eta, x = eta / 2, top_x
        if k == n_steps:
            break
        z = climb(x, eta)
        x, x_last = project(x + 0.75 * (z - x) + 0.25 * (x - x_last)), x
        fs.append(rise(x))
        if fs[-1] > top:
            top, top_x = fs[-1], x
    return top, fs[1:]


def test_auto_pgd_is_the_published_algorithm_step_by_step():
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    hessian = (basis * np.array([5.0, 4.5, 1, 0.2, -1, -8])) @ basis.T
    g = 0.2 * rng.standard_normal(6)

    def rise(x):
        return float(g @ x + 0.5 * x @ hessian @ x + np.sin(9 * x).sum())

    def slope(x):
        return g + hessian @ x + 9 * np.cos(9 * x)

    def objective(d):
        x = d.numpy()
        return rise(x), torch.from_numpy(slope(x))

    for rho in (0.1, 0.5, 2.0):
        zero = torch.zeros(6, dtype=torch.float64)
        centre = Point.of(Ball(rho), zero, 0.0, torch.from_numpy(slope(np.zeros(6))))
        best, rises = auto_pgd(objective, Ball(rho), centre)
        top, values = by_hand(rise, slope, 6, rho, 20)
        assert rises == pytest.approx(values, rel=1e-9)
        assert best.value == pytest.approx(top, rel=1e-12)
        assert len(rises) == 20


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_the_search_is_not_below_auto_pgd(p):
    problem = classes()
    published = m_sharpness(problem, 0.3, m=5, p=p, protocol="auto-pgd")
    ours = m_sharpness(problem, 0.3, m=5, p=p)
    assert (ours.values >= published.values * (1 - 1e-3)).all()
    assert published.gradients == 4 * 21
    assert published.one_steps == pytest.approx(ours.one_steps, rel=1e-9)
    assert (published.values >= published.one_steps).all()
    assert "Auto-PGD" in dict(published.rows())["found by"]


# -- subsets of the data, and normalised logits --------------------------------------------------


def test_a_problem_on_some_examples_has_these_and_no_others():
    problem = classes(20)
    part = problem.on_examples(6, 17)
    x, y = (torch.cat(pieces) for pieces in zip(*part.batches, strict=True))
    whole_x, whole_y = (torch.cat(pieces) for pieces in zip(*problem.batches, strict=True))
    assert torch.equal(x, whole_x[6:17])
    assert torch.equal(y, whole_y[6:17])
    assert part.batches.n_examples == 11
    assert part.batches.fingerprint != problem.batches.fingerprint
    assert part.loss.name == problem.loss.name
    for first, last in ((-1, 3), (3, 3), (0, 21)):
        with pytest.raises(InvalidArgumentError, match="the data have 0 to 20"):
            problem.on_examples(first, last)


def test_batches_that_cannot_be_cut_are_named():
    class Graphs:
        num_graphs = 4

    problem = Problem(
        nn.Linear(1, 1),
        batch_loss=lambda m, b: m.weight.sum() ** 2,
        data=[Graphs(), Graphs()],
        freeze_data=True,
    )
    assert problem.on_examples(4, 8).batches.n_examples == 4
    with pytest.raises(DataError, match="cannot be cut"):
        problem.on_examples(2, 6)


def test_normalised_logits_are_centred_and_of_length_one():
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = normalised_logits(z)
    assert found.sum(dim=1).abs().max() < 1e-12
    assert found.norm(dim=1).numpy() == pytest.approx(np.ones(6))
    assert normalised_logits(3 * z + 1) == pytest.approx(found, abs=1e-12)
    # The paper divides by the standard deviation: √K times as long.
    by_deviation = (z - z.mean(1, keepdim=True)) / z.std(1, correction=0, keepdim=True)
    assert by_deviation == pytest.approx(2.0 * found, abs=1e-12)
    assert not normalised_logits(torch.ones(2, 3)).any()


def test_the_loss_of_normalised_logits_does_not_see_their_scale():
    problem = classes()
    normal = problem.with_normalised_logits()
    x, y = (torch.cat(pieces) for pieces in zip(*problem.batches, strict=True))
    with torch.no_grad():
        logits = problem.model.double()(x)
    expected = float(nn.functional.cross_entropy(normalised_logits(logits), y))
    with Evaluator(normal) as evaluator:
        assert evaluator.loss().value == pytest.approx(expected, rel=1e-12)
    assert normal.loss.name == f"{problem.loss.name} of normalised logits"
    assert measure_signature(normal).identity != measure_signature(problem).identity
    assert sharpness(normal, 0.1).loss == pytest.approx(expected, rel=1e-12)
    before = sharpness(normal, 0.1, adaptive="filterwise").loss
    with torch.no_grad():
        problem.model[2].weight *= 7
        problem.model[2].bias *= 7
    assert sharpness(normal, 0.1, adaptive="filterwise").loss == pytest.approx(before, rel=1e-9)


def test_refuses_to_normalise_the_outputs_of_a_regression():
    with pytest.raises(LossError, match="MSELoss is none"):
        linear(nn.MSELoss()).with_normalised_logits()
    whole = Problem(nn.Linear(1, 1), batch_loss=lambda m, b: m.weight.sum(), data=data(2))
    with pytest.raises(LossError, match="batch_loss"):
        whole.with_normalised_logits()
    x, y = data(6)
    own = Problem(nn.Linear(5, 1).double(), lambda o, t: ((o - t) ** 2).mean(1), (x, y))
    normal = own.with_normalised_logits()
    with pytest.raises(LossError, match="classes alone"):
        sharpness(normal, 0.1)


# -- errors --------------------------------------------------------------------------------------


def test_refuses_subsets_that_there_are_not():
    problem = classes(20)
    for m in (0, -1, 21):
        with pytest.raises(
            InvalidArgumentError, match="m must be from 1 to the number of examples"
        ):
            m_sharpness(problem, 0.1, m=m)
    with pytest.raises(InvalidArgumentError, match=r"21 examples were asked for.*have 20"):
        m_sharpness(problem, 0.1, m=4, n_examples=21)
    with pytest.raises(InvalidArgumentError, match="unknown protocol 'pgd'"):
        m_sharpness(problem, 0.1, m=4, protocol="pgd")
    with pytest.raises(InvalidArgumentError, match=r"published for p = 2 and p = inf, got p = 3"):
        m_sharpness(problem, 0.1, m=4, p=3, protocol="auto-pgd")


def test_the_additivity_of_some_examples_says_nothing_about_the_others():
    def mean_over_tokens(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits.movedim(-1, 1), tokens)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    full = torch.arange(48).reshape(8, 6) % 5
    padded = torch.where(torch.arange(6) < 6 - torch.arange(8)[:, None] // 2, full, -100)
    problem = Problem(model, mean_over_tokens, [(full, full), (full, padded)])
    with Evaluator(problem.on_examples(0, 8)) as evaluator:
        evaluator.loss()
    with pytest.warns(LossNotAdditiveWarning, match="the loss of batch 1"), Evaluator(problem):
        pass
