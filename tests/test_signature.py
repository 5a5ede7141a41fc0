"""A measurement is given back only to a problem that computes the same, wherever a number hides."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import case_named
from torch import Tensor, nn

from landscape.compare._differences import differences
from landscape.errors import MisleadingWarning, ProblemError
from landscape.evaluate import measure_signature, provenance_of
from landscape.loss import evaluation
from landscape.problem import Problem, load_task
from landscape.results import Signature
from landscape.study import Study
from landscape.surface._path import path
from landscape.surface._surface import line, surface
from landscape.surface._trajectory import trajectory

X = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
Y = torch.randint(3, (30,), generator=torch.Generator().manual_seed(1))
NINE = [x / 4 for x in range(-4, 5)]
SCALE = 1.0
Make = Callable[[float], Problem]


class Net(nn.Module):
    """Logits times a number that is found in another place by each subclass."""

    def __init__(self, c: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 3)
        self.keep(c)

    def keep(self, c: float) -> None:
        """Put the number where it hides."""

    def scale(self) -> Any:
        return 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale()


class InCache(Net):
    def keep(self, c: float) -> None:
        self.scale_cache = torch.full((3,), c)

    def scale(self) -> Tensor:
        return self.scale_cache


class InFile(Net):
    def keep(self, c: float) -> None:
        Path("scale.json").write_text(json.dumps(c))

    def scale(self) -> Any:
        return json.loads(Path("scale.json").read_text())


class Imported(Net):
    def keep(self, c: float) -> None:
        sys.modules["scale_of_this_test"] = types.ModuleType("scale_of_this_test")
        sys.modules["scale_of_this_test"].SCALE = c

    def scale(self) -> Any:
        import scale_of_this_test

        return scale_of_this_test.SCALE


class InClosure(Net):
    def keep(self, c: float) -> None:
        self.__dict__["scale"] = lambda: c


class InGlobal(Net):
    def keep(self, c: float) -> None:
        globals()["SCALE"] = c

    def scale(self) -> float:
        return SCALE


class InEnvironment(Net):
    def keep(self, c: float) -> None:
        os.environ["SCALE_OF_THIS_TEST"] = str(c)

    def scale(self) -> float:
        return float(os.environ["SCALE_OF_THIS_TEST"])


class InHook(Net):
    def keep(self, c: float) -> None:
        self.layer.register_forward_hook(lambda module, inputs, output: c * output)


class InBuffer(Net):
    def keep(self, c: float) -> None:
        self.register_buffer("factor", torch.tensor(c), persistent=False)

    def scale(self) -> Tensor:
        return self.factor


def of_subclass(c: float) -> Problem:
    kind = type("Net", (Net,), {"scale": lambda self: c})
    return Problem(kind(), nn.CrossEntropyLoss(), (X, Y))


def of_loss(c: float) -> Problem:
    return Problem(Net(), lambda o, t: c * nn.functional.cross_entropy(o, t), (X, Y))


def of_batch_loss(c: float) -> Problem:
    def batch_loss(model: nn.Module, batch: Any) -> Tensor:
        return c * nn.functional.cross_entropy(model(batch[0]), batch[1])

    return Problem(Net(), batch_loss=batch_loss, data=(X, Y))


def of_smoothing(c: float) -> Problem:
    return Problem(Net(), nn.CrossEntropyLoss(label_smoothing=c / 10), (X, Y))


def of_metric(c: float) -> Problem:
    metrics = {"size": lambda o, t: c * o.abs().mean()}
    return Problem(Net(), nn.CrossEntropyLoss(), (X, Y), metrics=metrics)


def of_model(kind: type[Net]) -> Make:
    return lambda c: Problem(kind(c), nn.CrossEntropyLoss(), (X, Y))


MODELS = (InCache, InFile, Imported, InClosure, InGlobal, InEnvironment, InHook, InBuffer)
PLACES: dict[str, Make] = {kind.__name__: of_model(kind) for kind in MODELS} | {
    make.__name__: make for make in (of_subclass, of_loss, of_batch_loss, of_smoothing, of_metric)
}


def by_hand(problem: Problem) -> tuple[float, ...]:
    with torch.no_grad():
        terms, arguments = problem.loss(problem.model, (X, Y))
        metrics = [float(metric(*arguments)) for metric in problem.metrics.values()]
    return float(terms.total) / float(terms.weight), *metrics


@pytest.mark.parametrize("place", PLACES)
def test_two_computations_alternate_in_one_study(place: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCALE_OF_THIS_TEST", "1")
    with Study("study.db") as study:
        for c in (1.0, 3.0, 1.0, 3.0):
            problem = PLACES[place](c)
            found = evaluation(problem, study=study)
            values = (found.loss, *found.metrics.values())
            assert values == pytest.approx(by_hand(problem), rel=1e-6)
        assert len(study.entries()) == 2
    sys.modules.pop("scale_of_this_test", None)


def test_a_number_that_changes_under_a_problem_is_seen(tmp_path: Path) -> None:
    problem = of_model(InGlobal)(1.0)
    with Study(tmp_path / "study.db") as study:
        first = evaluation(problem, study=study)
        globals()["SCALE"] = 2.0
        second = evaluation(problem, study=study)
        globals()["SCALE"] = 1.0
        again = evaluation(problem, study=study)
    assert (first.loss, second.loss) == pytest.approx((again.loss, 1.24), abs=1)
    assert first == again
    assert second.loss != first.loss


class Twisted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, c: float) -> Tensor:
        ctx.c = c
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.c * gradient, None


def test_derivatives_count_where_the_losses_agree(tmp_path: Path) -> None:
    def make(c: float) -> Problem:
        class Net(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return Twisted.apply(super().forward(x), c)

        torch.manual_seed(0)
        return Problem(Net(3, 3), nn.CrossEntropyLoss(), (X, Y))

    with Study(tmp_path / "study.db") as study:
        one = evaluation(make(1.0), study=study)
        with pytest.warns(MisleadingWarning, match="not the slope of the loss"):
            other = evaluation(make(1.001), study=study)
    assert one.loss == other.loss
    assert one.gradient_norm > 0
    assert math.isnan(other.gradient_norm)


def test_points_of_another_computation_are_never_mixed(tmp_path: Path) -> None:
    calls = 0

    def make(c: float, stop_at: float = math.inf) -> Problem:
        def loss(output: Tensor, target: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls >= stop_at:
                raise KeyboardInterrupt
            return c * nn.functional.cross_entropy(output, target, reduction="none")

        torch.manual_seed(0)
        return Problem(nn.Linear(3, 3), loss, (X, Y))

    alone = {c: line(make(c), x=NINE).loss for c in (1.0, 2.0)}
    with Study(tmp_path / "study.db") as study:
        for c in (1.0, 2.0):
            calls = 0
            line(make(c), x=NINE, study=None)
            whole, calls = calls, 0
            with pytest.raises(KeyboardInterrupt):
                line(make(c, stop_at=0.8 * whole), x=NINE, study=study)
        (one, other) = study.entries()
        assert 0 < one.points_done < 9
        assert 0 < other.points_done < 9
        for c in (1.0, 2.0):
            found = line(make(c), x=NINE, study=study)
            assert found.loss.tolist() == alone[c].tolist()
        assert [entry.status for entry in study.entries()] == ["complete"] * 2


def test_a_second_problem_is_measured_again_when_it_computes_something_else(
    tmp_path: Path,
) -> None:
    def held_out(c: float) -> Problem:
        return Problem(InHook(c), nn.CrossEntropyLoss(), (X[:20], Y[:20]), split="test")

    def other(c: float) -> Problem:
        model = InHook(c)
        model.layer.weight.data += 0.1
        return Problem(model, nn.CrossEntropyLoss(), (X, Y))

    problem = of_model(Net)(1.0)
    measures: list[Callable[[float, Study], Any]] = [
        lambda c, study: line(problem, x=NINE[::4], held_out=held_out(c), study=study).metrics[
            "test loss"
        ],
        lambda c, study: (
            path(problem, other(1.0), n=3, held_out=held_out(c), study=study).held_out_loss
        ),
        lambda c, study: differences(problem, other(c), full=False, study=study).other,
    ]
    with Study(tmp_path / "study.db") as study:
        for measure in measures:
            first, second, again = (measure(c, study).tolist() for c in (1.0, 3.0, 1.0))
            assert first == again != second


def test_models_of_one_class_from_two_folders_are_one_computation(tmp_path: Path) -> None:
    source = (
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Linear):\n    pass\n"
        "def model():\n    return Net(3, 3)\n"
        "def loss(o, t):\n    return nn.functional.cross_entropy(o, t, reduction='none')\n"
        "def data(split):\n    g = torch.Generator().manual_seed(0)\n"
        "    return torch.randn(30, 3, generator=g), torch.arange(30) % 3\n"
    )
    problems = []
    for folder, comment in (("one", ""), ("two", "# another file\n")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "task.py").write_text(comment + source)
        problems.append(load_task(str(tmp_path / folder / "task.py")).problem(split="train"))
    assert problems[0].model.__class__ is not problems[1].model.__class__
    with Study(tmp_path / "study.db") as study:
        first, second = (evaluation(problem, study=study) for problem in problems)
        assert len(study.entries()) == 1
        assert first == second
        problems[1].model.weight.data += 0.1
        found = differences(problems[1], problems[0], full=False, study=study)
    assert found.names[0] == "loss"


def test_a_run_lies_in_the_surface_of_its_computation_only(tmp_path: Path) -> None:
    from landscape.surface import random_plane

    one, other = (of_model(InHook)(c) for c in (1.0, 2.0))
    with Study(tmp_path / "study.db") as study:
        over = surface(one, random_plane(one, seed=0), n=3, study=study)
        runs = [
            trajectory(p, random_plane(p, seed=0), [p.model], study=study) for p in (one, other)
        ]
    assert [run.lies_in(over) for run in runs] == [True, False]


# -- the signature itself ------------------------------------------------------------------------


def test_the_signature_is_what_it_says() -> None:
    problem = case_named("mlp").build(0, "float64")
    found = measure_signature(problem)
    batch = next(iter(problem.batches))
    n = min(64, len(batch[0]))
    x, y = batch[0][:n], batch[1][:n]
    w = problem.weights
    d = torch.randn(len(w), generator=torch.Generator().manual_seed(0)).double()
    step = 0.01 * w.norm() * d / d.norm()

    def loss(vector: Tensor) -> Tensor:
        parts = problem.space.unflatten(vector)
        output = torch.func.functional_call(problem.model, parts, (x,))
        return problem.loss.of_output(output, y, (x, y)).total / n

    expected = [float(loss(w + t * step)) for t in (0, 1, 30)]
    assert found.losses == pytest.approx(expected, rel=1e-9)
    leaf = w.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    assert found.slope == pytest.approx(float(gradient @ step), rel=1e-9)


def test_at_most_64_examples_are_evaluated() -> None:
    sizes = []

    def loss(output: Tensor, target: Tensor) -> Tensor:
        sizes.append(len(output))
        return nn.functional.cross_entropy(output, target, reduction="none")

    problem = Problem(nn.Linear(3, 3), loss, (X.repeat(10, 1), Y.repeat(10)))
    evaluation(problem)  # which checks the loss
    sizes.clear()
    assert measure_signature(problem).losses[0] > 0
    assert sizes == [64] * 4


BASE = Signature(losses=(1.0, 2.0, math.nan), slope=1e-3, metrics={"accuracy": 0.5})


@pytest.mark.parametrize(
    ("changes", "float32", "float64"),
    [
        ({}, True, True),
        ({"losses": (1.0 + 5e-6, 2.0, math.nan)}, True, False),
        ({"losses": (1.0 + 2e-5, 2.0, math.nan)}, False, False),
        ({"losses": (1.0, 2.0, 3.0)}, False, False),
        ({"losses": (math.nan, 2.0, math.nan)}, False, False),
        ({"slope": 1.0001e-3}, True, False),  # far below the rounding of the losses
        ({"slope": 1.001e-3}, False, False),
        ({"slope": math.nan}, False, False),
        ({"metrics": {"accuracy": 0.51}}, False, False),
        ({"metrics": {}}, False, False),
    ],
)
def test_signatures_agree_to_the_rounding_of_the_dtype(
    changes: dict[str, Any], float32: bool, float64: bool
) -> None:
    other = dataclasses.replace(BASE, **changes)
    for one, two in ((BASE, other), (other, BASE)):
        assert one.agrees(two, "float32") is float32
        assert one.agrees(two, "float64") is float64


def test_a_signature_that_agrees_gets_the_identity_of_the_first(tmp_path: Path) -> None:
    problem = of_model(Net)(1.0)
    at = provenance_of(problem)
    assert at.signature is not None
    moved = dataclasses.replace(
        at.signature, losses=tuple(loss * (1 + 1e-6) for loss in at.signature.losses)
    )
    rounded = dataclasses.replace(at, signature=moved, problem_fingerprint=moved.identity)
    with Study(tmp_path / "study.db") as study:
        found = evaluation(problem, study=study)
        elsewhere = dataclasses.replace(rounded, checkpoint_hash="other")
        assert study.identify(elsewhere).problem_fingerprint == moved.identity
        assert study.identify(rounded).problem_fingerprint == at.problem_fingerprint
        assert study.find("loss", rounded, found.settings) == found
        study.save(dataclasses.replace(found, provenance=rounded))
        assert len(study.entries()) == 1
    assert moved.identity != at.problem_fingerprint


def test_a_batch_that_cannot_be_cut_is_evaluated_whole(tmp_path: Path) -> None:
    sizes = []

    def make(c: float) -> Problem:
        class Net(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                sizes.append(len(x))
                return c * super().forward(x.view(-1, 100, 3)).flatten(0, 1)

        torch.manual_seed(0)
        return Problem(Net(3, 3), nn.CrossEntropyLoss(), (X.repeat(10, 1), Y.repeat(10)))

    one, other = make(1.0), make(2.0)
    with Study(tmp_path / "study.db") as study:
        losses = [evaluation(problem, study=study).loss for problem in (one, other, one, other)]
    assert losses[:2] == losses[2:]
    assert losses[0] != losses[1]
    assert 300 in sizes  # the whole, for a part cannot be viewed so


def test_a_first_batch_without_weight_is_passed_over(tmp_path: Path) -> None:
    def make(c: float) -> Problem:
        model = InHook(c)
        batches = [(X, torch.full_like(Y, -100)), (X, Y)]
        return Problem(model, nn.CrossEntropyLoss(), batches)

    one, other = (measure_signature(make(c)) for c in (1.0, 2.0))
    assert math.isfinite(one.losses[0])
    assert one == measure_signature(make(1.0))
    assert not one.agrees(other, "float32")


def test_a_signature_that_tells_nothing_agrees_with_none() -> None:
    nothing = Signature(losses=(math.nan,) * 3, slope=math.nan, metrics={})
    assert not nothing.agrees(nothing, "float32")
    assert nothing.identity != nothing.identity


def test_a_loss_that_refuses_far_weights_has_a_signature() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        if float(output.abs().max()) > 3:
            msg = "too far"
            raise ValueError(msg)
        return nn.functional.cross_entropy(output, target, reduction="none")

    model = nn.Linear(3, 3)
    with torch.no_grad():
        model.weight.copy_(2 * torch.eye(3))
        model.bias.zero_()
    near = Problem(model, loss, (X.clamp(-1.45, 1.45), Y))
    losses = measure_signature(near).losses
    assert [math.isfinite(loss) for loss in losses] == [True, True, False]
    with pytest.raises(ProblemError, match="too far"):
        evaluation(Problem(model, loss, (10 * X, Y)))
