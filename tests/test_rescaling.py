"""Rescalings that a network's outputs do not see."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from landscape.doctor._rescaling import Filters, Pair, find_rescalings, rescaled
from landscape.tasks.networks import ResNet


def seeded(make, *, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().to(dtype).eval()
        for part in model.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                nn.init.normal_(part.weight, 1.0, 0.3)
                nn.init.normal_(part.bias)
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2.0)
    return model


def inputs(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def runner(model, x):
    def outputs(state):
        with torch.no_grad():
            return functional_call(model, dict(state), (x,))

    return outputs


def mlp(activation=nn.ReLU):
    return nn.Sequential(
        nn.Linear(3, 5), activation(), nn.Linear(5, 4), activation(), nn.Linear(4, 2)
    )


def own_state(model):
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def apply(model, found):
    changed = copy.deepcopy(model)
    changed.load_state_dict(rescaled(own_state(model), found))
    return changed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_relu_network_is_the_same_function_to_the_bit(dtype):
    model, x = seeded(mlp, dtype=dtype), inputs(16, 3, dtype=dtype)
    found = find_rescalings(model, runner(model, x))
    assert [(pair.first, pair.second) for pair in found] == [("0", "2"), ("2", "4")]
    fresh = inputs(200, 3, dtype=dtype).flip(0)  # inputs that the search has not seen
    changed = apply(model, found)
    assert torch.equal(changed(fresh), model(fresh))  # powers of two round nothing
    assert not torch.equal(changed[0].weight, model[0].weight)
    assert {pair.factor for pair in found} <= {0.25, 0.5, 2.0, 4.0}


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.Sigmoid, nn.Softplus])
def test_what_is_not_homogeneous_is_left_alone(activation):
    model = seeded(lambda: mlp(activation))
    assert find_rescalings(model, runner(model, inputs(16, 3))) == []


def test_without_biases_a_homogeneous_power_is_not_mistaken_for_a_relu():
    """x² is homogeneous of degree 2: a and 1/a do not cancel."""

    class Square(nn.Module):
        def forward(self, x):
            return x.square()

    model = seeded(lambda: mlp(Square))
    assert find_rescalings(model, runner(model, inputs(16, 3))) == []


def test_filters_before_batch_norm_and_what_follows_it():
    def make():
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 2),
            nn.LeakyReLU(), nn.Flatten(), nn.Linear(12, 2),
        )  # fmt: skip

    model, x = seeded(make), inputs(8, 1, 8, 8)
    found = find_rescalings(model, runner(model, x))
    assert [type(each) for each in found] == [Filters, Pair, Pair]
    assert (found[0].layer, found[0].norm) == ("0", "1")
    assert [(pair.first, pair.second) for pair in found[1:]] == [("1", "4"), ("4", "7")]
    changed, fresh = apply(model, found), inputs(50, 1, 8, 8)
    torch.testing.assert_close(changed(fresh), model(fresh), rtol=1e-12, atol=1e-12)
    shown = changed[1].running_var + changed[1].eps
    factors = torch.tensor(found[0].factors, dtype=torch.float64)
    torch.testing.assert_close(shown, factors**2 * (model[1].running_var + model[1].eps))
    assert len(set(found[0].factors)) > 1


def test_a_variance_that_would_fall_below_zero_stays():
    state = {
        "c.weight": torch.ones(2, 1, 1, 1),
        "n.running_mean": torch.ones(2),
        "n.running_var": torch.tensor([0.0, 3.0]),
    }
    changed = rescaled(state, [Filters("c", "n", (0.25, 0.25), 1.0)])
    assert changed["n.running_var"].tolist() == [0.0, 3.0]  # 0.25² · 4 − 1 < 0 for both
    assert changed["c.weight"].flatten().tolist() == [1.0, 1.0]
    changed = rescaled(state, [Filters("c", "n", (0.25, 2.0), 1.0)])
    assert changed["n.running_var"].tolist() == [0.0, 15.0]
    assert changed["c.weight"].flatten().tolist() == [1.0, 2.0]
    assert changed["n.running_mean"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_residual_network_in_the_order_in_which_it_runs(batch_norm):
    model = seeded(lambda: ResNet((4, 8), batch_norm=batch_norm))
    found = find_rescalings(model, runner(model, inputs(8, 1, 8, 8)))
    pairs = [(each.first, each.second) for each in found if isinstance(each, Pair)]
    filters = [each.layer for each in found if isinstance(each, Filters)]
    first = "1" if batch_norm else "0"
    assert pairs == [
        (f"blocks.{i}.conv1.{first}", f"blocks.{i}.conv2.0") for i in range(2)
    ]  # and nothing across a shortcut
    assert len(filters) == (6 if batch_norm else 0)
    changed, fresh = apply(model, found), inputs(20, 1, 8, 8)
    torch.testing.assert_close(changed(fresh), model(fresh), rtol=1e-11, atol=1e-11)


def test_layers_that_the_outputs_do_not_see_and_tied_ones_are_left_out():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
            self.b.weight = self.a.weight
            self.idle, self.last = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            self.last(torch.relu(self.idle(x)))  # computed, and thrown away
            return self.c(torch.relu(self.b(torch.relu(self.a(x)))))

    model = seeded(Model)
    assert find_rescalings(model, runner(model, inputs(16, 3))) == []


def test_the_model_is_only_read_and_the_seed_decides():
    model, x = seeded(lambda: ResNet((4, 8))), inputs(8, 1, 8, 8)
    before = copy.deepcopy(model.state_dict())
    one, two, other = (find_rescalings(model, runner(model, x), seed=s) for s in (3, 3, 4))
    assert one == two != other
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(part._forward_hooks for part in model.modules())


def test_hooks_are_gone_after_an_error():
    model = seeded(mlp)

    def fails(state):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        find_rescalings(model, fails)
    assert not any(part._forward_hooks for part in model.modules())


def test_in_words():
    assert str(Pair("0", "2", 4.0)) == "0 times 4, 2 divided by it"
    words = "filters of c times 0.25 to 2, statistics of n too"
    assert str(Filters("c", "n", (0.25, 2.0), 1e-5)) == words
