"""Normalisations, the table of what each tensor received, and planes that are not random."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_directions import Everything, make_problem
from test_operators_pieces import wide
from torch import nn

from landscape.curvature._eigenpairs import top_eigenpairs
from landscape.errors import InvalidArgumentError
from landscape.problem import Problem
from landscape.problem._filters import filter_norms_of
from landscape.sharpness._worst_case import sharpness
from landscape.surface import (
    Plane,
    eigenvector_plane,
    given_direction,
    orthogonalised,
    plane_through,
    principal_plane,
    project,
    random_direction,
    random_plane,
    worst_case_plane,
)
from landscape.surface._surface import surface


def named(problem: Problem, vector: torch.Tensor) -> dict[str, torch.Tensor]:
    return problem.space.unflatten(vector)


# Normalisations


def test_layerwise_each_tensor_has_the_norm_of_its_weights() -> None:
    problem = make_problem(Everything(), dtype="float64")
    direction = named(problem, random_direction(problem, normalisation="layer").vector)
    weights = named(problem, problem.weights)
    gaussian = named(problem, random_direction(problem, normalisation="none").vector)
    for name in ("conv.weight", "linear.weight", "gpt2.weight", "embedding.weight"):
        assert direction[name].norm() == pytest.approx(float(weights[name].norm()))
        cosine = nn.functional.cosine_similarity(
            direction[name].flatten(), gaussian[name].flatten(), dim=0
        )
        assert float(cosine) == pytest.approx(1.0)
    for name in ("conv.bias", "norm.weight", "layer_norm.weight"):
        assert not direction[name].any()


@pytest.mark.parametrize("vectors", [False, True])
def test_globally_the_whole_has_the_norm_of_the_weights_that_move(vectors: bool) -> None:
    problem = make_problem(Everything(), dtype="float64")
    found = random_direction(problem, normalisation="global", vectors=vectors)
    moved = found.vector != 0
    assert found.norm == pytest.approx(float(problem.weights[moved].norm()))
    assert bool(moved.all()) == vectors
    gaussian = random_direction(problem, normalisation="none").vector
    ratio = found.vector[moved] / gaussian[moved]
    assert torch.allclose(ratio, ratio[0].expand_as(ratio))


def test_biases_and_gains_move_when_asked_for() -> None:
    problem = make_problem(Everything(), dtype="float64")
    found = random_direction(problem, vectors=True)
    plain = named(problem, random_direction(problem).vector)
    weights = named(problem, problem.weights)
    for name, part in named(problem, found.vector).items():
        if "bias" in name or "norm" in name:
            assert part.norm() == pytest.approx(float(weights[name].norm()))
        else:
            assert torch.equal(part, plain[name])
    assert "biases and gains too" in found.description


class Tokens(nn.Module):
    """What a vision transformer holds itself, beside an attention layer with extra keys."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 5, 4))
        self.cls = nn.Parameter(torch.randn(1, 1, 4))
        self.table = nn.Parameter(torch.randn(3, 4))
        self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
        self.one = nn.Conv2d(3, 1, 2)  # one output: one filter, whatever its leading axis


def test_each_tensor_says_what_it_received() -> None:
    problem = make_problem(Tokens(), dtype="float64")
    found = random_direction(problem)
    assert dict(found.treatment) == {
        "position": "5 filters of 4",
        "cls": "1 filter of 4",
        "table": "3 filters of 4",
        "attention.in_proj_weight": "12 filters of 4",
        "attention.in_proj_bias": "zero: a bias, gain or shift",
        "attention.bias_k": "zero: a bias, gain or shift",
        "attention.bias_v": "zero: a bias, gain or shift",
        "attention.out_proj.weight": "4 filters of 4",
        "attention.out_proj.bias": "zero: a bias, gain or shift",
        "one.weight": "1 filter of 12",
        "one.bias": "zero: a bias, gain or shift",
    }
    direction, weights = named(problem, found.vector), named(problem, problem.weights)
    for i in range(5):
        ours, theirs = direction["position"][0, i], weights["position"][0, i]
        assert ours.norm() == pytest.approx(float(theirs.norm()))
    assert direction["cls"].norm() == pytest.approx(float(weights["cls"].norm()))
    norms = named(problem, filter_norms_of(problem))
    assert torch.allclose(norms["position"][0, 2], weights["position"][0, 2].norm().expand(4))


@pytest.mark.parametrize("metric", ["euclidean", "filter"])
def test_the_axes_are_orthogonal_in_the_metric_asked_for(metric: str) -> None:
    problem = make_problem(Everything(), dtype="float64")
    plane = random_plane(problem, 3, orthogonal=metric)
    free = random_plane(problem, 3)
    x, y = plane.x.vector, plane.y.vector
    norms = filter_norms_of(problem)
    weight = torch.ones_like(x) if metric == "euclidean" else 1 / norms.square()
    scale = float((weight * x * x).sum().sqrt() * (weight * y * y).sum().sqrt())
    assert abs(float((weight * x * y).sum())) < 1e-12 * scale
    assert plane.y.norm == pytest.approx(free.y.norm)
    assert torch.equal(x, free.x.vector)
    assert plane.description.endswith(f"orthogonal ({metric})")
    if metric == "euclidean":
        assert abs(plane.cosine) < 1e-12 < abs(free.cosine)


# Planes


def test_the_plane_of_eigenvectors() -> None:
    problem = wide()
    pairs = top_eigenpairs(problem, 2, tol=1e-10)
    plane = eigenvector_plane(problem, pairs)
    assert np.allclose(plane.x.vector.numpy(), pairs.vectors[0])
    assert abs(plane.cosine) < 1e-12
    h = 1e-3
    found = surface(problem, plane, x=[-h, 0, h], y=[-h, 0, h], progress=False)
    # The slice's own curvature along each axis is the eigenvalue.
    for line, value in ((found.loss[:, 1], pairs.values[0]), (found.loss[1], pairs.values[1])):
        curvature = (line[0] - 2 * line[1] + line[2]) / h**2
        assert curvature == pytest.approx(value, rel=1e-4)
    with pytest.raises(InvalidArgumentError, match="there are 1: measure with k=2"):
        eigenvector_plane(problem, top_eigenpairs(problem, 1))


def test_a_plane_takes_eigenvectors_of_its_own_parameters_and_scale() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    data = torch.randn(6, 4, dtype=torch.float64)
    problem = Problem(model, nn.MSELoss(), (data, data))
    first, last = (problem.only(layer) for layer in ("0", "2"))
    pairs = top_eigenpairs(first, 2, data_groups=0)
    assert eigenvector_plane(first, pairs).x.norm == pytest.approx(1.0)
    with pytest.raises(InvalidArgumentError, match=r"of the parameters 0, and .* explores 2"):
        eigenvector_plane(last, pairs)
    scaled = top_eigenpairs(problem, 2, scale="elementwise", data_groups=0)
    with pytest.raises(InvalidArgumentError, match=r"are of THT, rescaled elementwise, .* Tv are"):
        eigenvector_plane(problem, scaled)


def test_the_plane_of_the_worst_case_holds_the_maximum() -> None:
    problem = wide()
    found = sharpness(problem, 0.3)
    plane = worst_case_plane(problem, found, random_direction(problem, 1))
    assert (plane.x.norm, plane.y.norm) == (pytest.approx(1.0), pytest.approx(1.0))
    assert abs(plane.cosine) < 1e-12
    measured = surface(problem, plane, x=[0.0, found.norm], y=[0.0, 0.1], progress=False)
    assert measured.loss[1, 0] - measured.loss[0, 0] == pytest.approx(found.value, rel=1e-9)


def shifted(problem: Problem, seed: int, size: float = 0.1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + size * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in problem.model.state_dict().items()
    }


def test_the_plane_through_three_checkpoints_goes_through_them() -> None:
    problem = wide()
    second, third = shifted(problem, 1), shifted(problem, 2)
    plane = plane_through(problem, second, third)
    measured = surface(problem, plane, x=[0.0, 1.0], y=[0.0, 1.0], progress=False)
    for state, at in ((second, (1, 0)), (third, (0, 1))):
        alone = surface(problem.at(state), x=[0.0, 1.0], y=[0.0, 1.0], progress=False)
        assert measured.loss[at] == pytest.approx(alone.origin_loss, rel=1e-12)
    line = {k: v + 0.5 * (second[k] - v) for k, v in problem.model.state_dict().items()}
    with pytest.raises(InvalidArgumentError, match=r"parallel \(cosine \+1.000000\)"):
        plane_through(problem, second, line)
    with pytest.raises(InvalidArgumentError, match="norm 0"):
        plane_through(problem, problem.model.state_dict(), third)


@pytest.mark.parametrize("n", [2, 7, 19])
def test_the_principal_plane_is_that_of_a_dense_svd(n: int) -> None:
    problem = wide()
    run = [shifted(problem, seed, 0.02 * (seed + 1)) for seed in range(n)]
    found = principal_plane(problem, run)
    origin = problem.weights.numpy()
    matrix = np.array([problem.at(state).weights.numpy() - origin for state in run])
    _, sigma, vt = np.linalg.svd(matrix, full_matrices=False)
    for k, axis in enumerate((found.plane.x, found.plane.y)):
        assert abs(float(axis.vector.numpy() @ vt[k])) == pytest.approx(1.0, abs=1e-9)
    assert found.explained == pytest.approx(sigma[:2] ** 2 / (sigma**2).sum())
    axes = np.array([found.plane.x.vector.numpy(), found.plane.y.vector.numpy()])
    assert found.trajectory.coordinates == pytest.approx(matrix @ axes.T, abs=1e-10)
    rest = matrix - (matrix @ axes.T) @ axes
    assert found.trajectory.off_plane == pytest.approx(np.linalg.norm(rest, axis=1), abs=1e-8)
    assert f"of a run of {n + 1} checkpoints" in found.plane.description
    with_the_origin = principal_plane(problem, [*run, problem.model.state_dict()])
    assert f"of a run of {n + 1} checkpoints" in with_the_origin.plane.description


def test_a_run_is_read_without_holding_it(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = wide()
    run = [shifted(problem, seed) for seed in range(20)]
    at, alive = Problem.at, [0]

    def counted(self: Problem, checkpoint: object, **options: object) -> Problem:
        alive[0] += 1
        return at(self, checkpoint, **options)

    monkeypatch.setattr(Problem, "at", counted)
    principal_plane(problem, run)
    assert alive[0] <= 20 * (20 / 8 + 3)


def test_projection_on_axes_that_are_not_orthogonal() -> None:
    problem = wide()
    plane = random_plane(problem, 0)
    skew = Plane(
        plane.x, given_direction(problem, plane.y.vector + 2 * plane.x.vector), "a skew plane"
    )
    target = problem.weights + 0.3 * skew.x.vector - 0.7 * skew.y.vector
    state = problem.space.unflatten(target)
    found = project(problem, skew, [state])
    assert found.coordinates[0] == pytest.approx([0.3, -0.7])
    assert found.off_plane[0] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: principal_plane(p, [p.model.state_dict()]), "at least two checkpoints"),
        (lambda p: random_plane(p, orthogonal="riemann"), "unknown metric 'riemann'"),
        (lambda p: random_direction(p, normalisation="row"), "filter, layer, global, none"),
        (
            lambda p: orthogonalised(p, Plane(random_direction(p), random_direction(p), "")),
            "the axes of the plane are parallel",
        ),
        (
            lambda p: surface(p, Plane(random_direction(p), random_direction(p), "")),
            "span only a line",
        ),
    ],
)
def test_refused_planes(call: object, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        call(wide())  # type: ignore[operator]


def test_a_run_on_a_line_spans_no_plane() -> None:
    problem = wide()
    there = shifted(problem, 0)
    own = problem.model.state_dict()
    run = [{k: own[k] + s * (there[k] - own[k]) for k in own} for s in (0.25, 0.5, 1.0)]
    with pytest.raises(InvalidArgumentError, match="lie on a line"):
        principal_plane(problem, run)
