"""What SAM refuses: each message says what was got, what was expected and what to do next."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from landscape.errors import InvalidArgumentError, LandscapeError
from landscape.optim import SAM

SGD = torch.optim.SGD


def weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor([1.0, -2.0]))]


def holds(error: pytest.ExceptionInfo[LandscapeError], *parts: str) -> bool:
    """Say whether the message has all the parts, in any order."""
    return all(part in str(error.value) for part in parts)


def test_holds_fails_where_a_part_is_missing():
    with pytest.raises(LandscapeError) as error:
        raise LandscapeError("got 1, expected 2")
    assert holds(error, "got 1", "expected 2")
    assert not holds(error, "got 1", "what to do")


# -- the radius ----------------------------------------------------------------------------------

BAD_RHOS = [-0.1, -1, math.nan, math.inf, "0.05", None, True, torch.tensor(0.1)]


@pytest.mark.parametrize("rho", BAD_RHOS, ids=repr)
@pytest.mark.parametrize("place", ["argument", "group", "group added later", "group at the step"])
def test_a_bad_rho_is_refused_wherever_it_is_written(rho, place):
    (w,) = weights()
    with pytest.raises(InvalidArgumentError) as error:  # noqa: PT012
        if place == "argument":
            SAM([w], SGD, rho, lr=0.1)
        elif place == "group":
            SAM([{"params": [w], "rho": rho}], SGD, lr=0.1)
        optimizer = SAM([w], SGD, lr=0.1)
        if place == "group added later":
            optimizer.add_param_group({"params": weights(), "rho": rho})
        optimizer.param_groups[0]["rho"] = rho
        w.grad = torch.ones(2)
        optimizer.first_step()
    assert holds(
        error, f"got {rho!r}", "finite number of at least 0", "0 leaves the base optimizer alone"
    )
    assert w.tolist() == [1.0, -2.0]


@pytest.mark.parametrize("rho", [0, 1, 0.5, np.float32(0.5), np.int64(1)])
def test_any_real_number_will_do_for_rho(rho):
    assert SAM(weights(), SGD, rho, lr=0.1).param_groups[0]["rho"] == float(rho)


# -- the base optimizer --------------------------------------------------------------------------


def test_an_instance_for_the_base_optimizer_is_refused():
    (w,) = weights()
    base = SGD([w], lr=0.1)
    with pytest.raises(InvalidArgumentError) as error:
        SAM([w], base)
    assert holds(error, "got an object of type SGD", "must be a class", "SAM(params, torch.optim")
    assert len(base.param_groups) == 1
    assert not base.state


@pytest.mark.parametrize(
    ("base", "parts"),
    [
        (torch.optim.LBFGS, ("LBFGS evaluates the loss by itself", "use SGD, Adam")),
        (torch.optim.SparseAdam, ("SparseAdam takes sparse gradients only", "use Adam")),
        (torch.optim.Adadelta, ("Adadelta has a setting rho", "use another base optimizer")),
        (SAM, ("SAM has a setting rho", "use another base optimizer")),
    ],
)
def test_optimizers_that_cannot_be_the_base_are_refused(base, parts):
    with pytest.raises(InvalidArgumentError) as error:
        SAM(weights(), base)
    assert holds(error, *parts)


# -- the parameters ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params", [[], (), iter(()), {}.values(), [{"params": []}], [{"params": []}, {"params": []}]]
)
def test_no_parameters_are_refused(params):
    with pytest.raises(InvalidArgumentError) as error:
        SAM(params, SGD, lr=0.1)
    assert holds(error, "got an empty parameter list", "at least one", "model.parameters() used up")


def test_a_used_up_iterator_is_an_empty_list():
    params = nn.Linear(2, 2).parameters()
    SAM(params, SGD, lr=0.1)
    with pytest.raises(InvalidArgumentError, match="empty parameter list"):
        SAM(params, SGD, lr=0.1)


def test_an_empty_group_beside_another_is_nothing_wrong():
    (w,) = weights()
    optimizer = SAM([{"params": []}, {"params": [w]}], SGD, lr=0.1)
    w.grad = torch.tensor([3.0, 4.0])
    optimizer.first_step()
    torch.testing.assert_close(w.detach(), torch.tensor([1.03, -1.96]))


@pytest.mark.parametrize("make", [lambda: nn.Linear(2, 2), lambda: nn.Sequential(nn.Linear(2, 2))])
def test_a_model_is_no_list_of_parameters(make):
    model = make()
    with pytest.raises(InvalidArgumentError) as error:
        SAM(model, SGD, lr=0.1)
    assert holds(error, f"got {type(model).__name__}", "iterable", "give model.parameters()")


@pytest.mark.parametrize("params", [None, 3])
def test_what_cannot_be_gone_through_is_no_list_of_parameters(params):
    with pytest.raises(InvalidArgumentError) as error:
        SAM(params, SGD, lr=0.1)
    assert holds(error, f"got {type(params).__name__}", "iterable", "give model.parameters()")


# -- the order of the calls ----------------------------------------------------------------------


def test_second_step_before_first_step_is_refused_and_moves_nothing():
    (w,) = weights()
    optimizer = SAM([w], SGD, lr=0.1, momentum=0.9)
    w.grad = torch.ones(2)
    with pytest.raises(LandscapeError) as error:
        optimizer.second_step()
    assert holds(error, "second_step() was called before first_step()", "call backward()")
    assert w.tolist() == [1.0, -2.0]
    assert not optimizer.state
    assert w.grad.tolist() == [1.0, 1.0]


def test_a_closure_after_a_first_step_that_keeps_the_gradients_at_w_is_refused():
    (w,) = weights()
    optimizer = SAM([w], SGD, lr=0.1)
    w.grad = torch.ones(2)
    optimizer.first_step()
    with pytest.raises(LandscapeError) as error:
        optimizer.step(lambda: (w**2).sum().backward())
    assert holds(error, "added its gradients to those that were there", "zero_grad()")
    assert w.tolist() == [1.0, -2.0]


@pytest.mark.parametrize("closure", [3, torch.tensor(1.0)])
def test_a_loss_is_no_closure(closure):
    optimizer = SAM(weights(), SGD, lr=0.1)
    with pytest.raises(InvalidArgumentError) as error:
        optimizer.step(closure)
    assert holds(error, f"got {type(closure).__name__}", "closure", "calls backward()")


# -- sparse gradients ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{}, {"p": 1}, {"p": 3}, {"p": math.inf}, {"adaptive": "elementwise"}, {"normalised": False},
     {"gsam_alpha": 0.1}, {"decay": "inside", "weight_decay": 0.1}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("with_closure", [True, False])
def test_sparse_gradients_are_refused_and_nothing_moves(settings, with_closure):
    model = nn.Sequential(nn.Embedding(5, 2, sparse=True), nn.BatchNorm1d(2), nn.Linear(2, 1))
    optimizer = SAM(model.parameters(), SGD, lr=0.1, model=model, **settings)
    before = [p.detach().clone() for p in model.parameters()]
    buffers = [id(b) for b in model.buffers()]

    def closure():
        optimizer.zero_grad()
        model(torch.tensor([1, 2])).sum().backward()

    with pytest.raises(LandscapeError) as error:  # noqa: PT012
        if with_closure:
            optimizer.step(closure)
        closure()
        optimizer.first_step()
    assert holds(error, "got a sparse one", "needs dense gradients", "build the embedding with")
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), before, strict=True))
    assert [id(b) for b in model.buffers()] == buffers


# -- the other settings --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"p": 0.5}, ("must be at least 1 (inf is allowed)", "got 0.5", "2 is")),
        ({"p": "2"}, ("must be at least 1", "got '2'", "2 is")),
        ({"p": None}, ("must be at least 1", "got None", "2 is")),
        ({"eta": "0"}, ("eta must be a finite number of at least 0", "got '0'")),
        ({"eta": None}, ("eta must be a finite number of at least 0", "got None")),
        ({"adaptive": True}, ("'True'", "known: none, elementwise, filterwise")),
        ({"adaptive": None}, ("'None'", "known: none, elementwise, filterwise")),
        ({"decay": None}, ("'None'", "known: outside, inside")),
        ({"n_steps": True}, ("whole number of at least 1", "got True")),
        ({"n_steps": 1.5}, ("whole number of at least 1", "got 1.5")),
        ({"gsam_alpha": True}, ("finite number of at least 0", "got True", "0 is SAM")),
    ],
    ids=str,
)
def test_settings_of_the_wrong_kind_are_refused(settings, parts):
    with pytest.raises(InvalidArgumentError) as error:
        SAM(weights(), SGD, lr=0.1, **settings)
    assert holds(error, *parts)


@pytest.mark.parametrize("loss_scale", [0.0, -1.0, math.inf, math.nan, "1", None, True])
def test_a_loss_scale_that_cannot_be_divided_by_is_refused(loss_scale):
    (w,) = weights()
    optimizer = SAM([w], SGD, lr=0.1)
    w.grad = torch.ones(2)
    with pytest.raises(InvalidArgumentError) as error:
        optimizer.first_step(loss_scale=loss_scale)
    assert holds(error, f"got {loss_scale!r}", "finite number > 0", "give scaler.get_scale()")
    assert w.tolist() == [1.0, -2.0]
