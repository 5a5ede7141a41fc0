"""SAM against computations by hand, and every promise of its docstring."""

from __future__ import annotations

import copy
import io
import math
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from landscape.errors import InvalidArgumentError, LandscapeError
from landscape.optim import SAM, frozen_statistics

BASES = {
    "SGD": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-2}),
    "Adam": (torch.optim.Adam, {"lr": 0.01, "amsgrad": True}),
    "AdamW": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "NAdam": (torch.optim.NAdam, {"lr": 0.01}),
    "RAdam": (torch.optim.RAdam, {"lr": 0.01}),
    "Adamax": (torch.optim.Adamax, {"lr": 0.01}),
    "RMSprop": (torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.5, "centered": True}),
    "Adagrad": (torch.optim.Adagrad, {"lr": 0.05}),
    "ASGD": (torch.optim.ASGD, {"lr": 0.05}),
    "Rprop": (torch.optim.Rprop, {"lr": 0.01}),
}
every_base = pytest.mark.parametrize("base", list(BASES))


# -- helpers -------------------------------------------------------------------------------------


class Net(nn.Module):
    """Two layers with BatchNorm and dropout between them."""

    def __init__(self, *, norm: nn.Module | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4) if norm is None else norm
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.dropout(torch.tanh(self.norm(self.first(x)))))


class HandWrittenNorm(nn.Module):
    """Replaces its buffer instead of writing into it, and is no subclass of torch's BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.running_mean = 0.9 * self.running_mean + 0.1 * x.mean(0).detach()
        return x - x.mean(0)


def make_net(seed: int = 0, **kwargs) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(**kwargs)


def make_batches(n: int = 10) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(6, 3, generator=g), torch.randint(2, (6,), generator=g)) for _ in range(n)]


def closure_of(optimizer, model, batch, losses=None):
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        if losses is not None:
            losses.append(loss)
        return loss

    return closure


def run(optimizer, model, batches) -> None:
    for batch in batches:
        optimizer.step(closure_of(optimizer, model, batch))


def backward(model, batch) -> torch.Tensor:
    loss = F.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    return loss


def bits(tensors) -> list[bytes]:
    return [t.detach().contiguous().numpy().tobytes() for t in tensors]


def state_bits(module: nn.Module) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in module.state_dict().items()}


def test_bits_tell_minus_zero_and_the_last_place_apart():
    one = torch.tensor([1.0, 0.0])
    assert bits([one]) == bits([one.clone()])
    assert bits([one]) != bits([torch.tensor([1.0, -0.0])])
    assert bits([one]) != bits([torch.tensor([np.nextafter(np.float32(1), 2), 0.0])])


# -- against a hand computation ------------------------------------------------------------------


def test_one_step_on_a_quadratic_is_the_formula():
    a = np.array([[3.0, 1.0, 0.5], [1.0, 2.0, -0.25], [0.5, -0.25, 1.0]])
    w0 = np.array([1.0, -2.0, 0.5])
    rho, lr, decay = 0.3, 0.1, 0.05
    g = a @ w0
    expected = w0 - lr * (a @ (w0 + rho * g / np.sqrt(g @ g)) + decay * w0)

    # In two groups: the norm is that of the whole gradient.
    u, v = (nn.Parameter(torch.tensor(part)) for part in (w0[:1], w0[1:]))
    optimizer = SAM(
        [{"params": [u]}, {"params": [v]}], torch.optim.SGD, rho, lr=lr, weight_decay=decay
    )
    matrix = torch.tensor(a)

    def closure():
        optimizer.zero_grad()
        w = torch.cat([u, v])
        loss = 0.5 * w @ matrix @ w
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert loss.item() == pytest.approx(0.5 * w0 @ a @ w0, rel=1e-15)
    np.testing.assert_allclose(torch.cat([u, v]).detach().numpy(), expected, rtol=1e-15)


def numpy_sam(parts, x, y, *, rhos, steps, base):
    """Sharpness-aware descent for mean ‖y − W₂ tanh(W₁x)‖², its gradient worked out by hand."""
    w1, w2 = (part.copy() for part in parts)

    def gradients(w1, w2):
        h = np.tanh(x @ w1.T)
        r = 2.0 * (h @ w2.T - y) / y.size
        return ((r @ w2) * (1 - h**2)).T @ x, r.T @ h

    memory = {}
    for t in range(1, steps + 1):
        g1, g2 = gradients(w1, w2)
        norm = np.sqrt((g1**2).sum() + (g2**2).sum())
        at_top = gradients(w1 + rhos[0] * g1 / norm, w2 + rhos[1] * g2 / norm)
        w1, w2 = (
            w - base(memory.setdefault(i, {}), t, g, w)
            for i, (w, g) in enumerate(zip((w1, w2), at_top, strict=True))
        )
    return w1, w2


def numpy_momentum(memory, t, g, w):
    g = g + 0.01 * w
    memory["v"] = g if t == 1 else 0.9 * memory["v"] + g
    return 0.1 * memory["v"]


def numpy_adam(memory, t, g, w):
    memory["m"] = 0.9 * memory.get("m", 0.0) + 0.1 * g
    memory["v"] = 0.999 * memory.get("v", 0.0) + 0.001 * g**2
    m, v = memory["m"] / (1 - 0.9**t), memory["v"] / (1 - 0.999**t)
    return 0.01 * m / (np.sqrt(v) + 1e-8)


@pytest.mark.parametrize(
    ("base", "kwargs", "by_hand"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}, numpy_momentum),
        (torch.optim.Adam, {"lr": 0.01}, numpy_adam),
    ],
)
@pytest.mark.parametrize("rhos", [(0.1, 0.1), (0.2, 0.05), (0.1, 0.0)])
def test_a_hundred_steps_follow_numpy(base, kwargs, by_hand, rhos):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)), rng.normal(size=(20, 2))
    start = rng.normal(size=(4, 3)), rng.normal(size=(2, 4))
    expected = numpy_sam(start, x, y, rhos=rhos, steps=100, base=by_hand)

    params = [nn.Parameter(torch.tensor(w)) for w in start]
    optimizer = SAM(
        [{"params": [params[0]], "rho": rhos[0]}, {"params": [params[1]], "rho": rhos[1]}],
        base,
        **kwargs,
    )
    inputs, targets = torch.tensor(x), torch.tensor(y)

    def closure():
        optimizer.zero_grad()
        loss = F.mse_loss(torch.tanh(inputs @ params[0].T) @ params[1].T, targets)
        loss.backward()
        return loss

    for _ in range(100):
        optimizer.step(closure)
    for ours, theirs, first in zip(params, expected, start, strict=True):
        assert np.abs(theirs - first).max() > 0.1
        np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-9, atol=1e-11)


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=4),
    rho=st.floats(1e-3, 10.0),
    seed=st.integers(0, 2**31),
)
def test_epsilon_is_rho_times_the_unit_gradient(shapes, rho, seed):
    g = torch.Generator().manual_seed(seed)
    shapes = [*shapes, [2]]
    params = [nn.Parameter(torch.randn(s, generator=g, dtype=torch.float64)) for s in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=g, dtype=torch.float64)
    flat = torch.cat([p.grad.reshape(-1) for p in params])
    before = torch.cat([p.detach().reshape(-1) for p in params])
    SAM(params, torch.optim.SGD, rho, lr=0.1).first_step()
    epsilon = torch.cat([p.detach().reshape(-1) for p in params]) - before
    torch.testing.assert_close(epsilon, rho * flat / flat.norm(), rtol=1e-9, atol=1e-13)


def test_maximising_climbs_down_first():
    def final(**kwargs) -> float:
        w = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        optimizer = SAM([w], torch.optim.SGD, rho=0.5, lr=0.1, **kwargs)
        sign = -1 if kwargs else 1

        def closure():
            optimizer.zero_grad()
            loss = sign * (w**2 + 0.1 * w**3)
            loss.backward()
            return loss

        optimizer.step(closure)
        return w.item()

    assert final(maximize=True) == final()


# -- the seed's snippet --------------------------------------------------------------------------


def test_the_published_loop_runs_as_written():
    YourModel = lambda: make_net()  # noqa: E731
    loss_function = lambda output, prediction: F.cross_entropy(prediction, output)  # noqa: E731
    data = make_batches(5)

    model = YourModel()
    base_optimizer = torch.optim.SGD  # define an optimizer for the "sharpness-aware" update
    optimizer = SAM(model.parameters(), base_optimizer, lr=0.1, momentum=0.9)

    for input, output in data:
        # first forward-backward pass
        loss = loss_function(output, model(input))  # use this loss for any training statistics
        loss.backward()
        optimizer.first_step(zero_grad=True)

        # second forward-backward pass
        loss_function(output, model(input)).backward()  # make sure to do a full forward pass
        optimizer.second_step(zero_grad=True)

    assert all(p.grad is None for p in model.parameters())
    assert {group["rho"] for group in optimizer.param_groups} == {0.05}
    expected = make_net()
    again = SAM(expected.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    run(again, expected, data)
    assert bits(model.parameters()) == bits(expected.parameters())
    assert bits(model.parameters()) != bits(make_net().parameters())


# -- rho = 0, exact restore, gradients that are zero or missing ----------------------------------


@every_base
def test_rho_zero_is_the_base_optimizer_bit_for_bit(base):
    cls, kwargs = BASES[base]
    plain, ours = make_net(dropout=0.3), make_net(dropout=0.3)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        run(cls(plain.parameters(), **kwargs), plain, make_batches())
        after_plain = torch.get_rng_state()
        torch.manual_seed(7)
        run(SAM(ours.parameters(), cls, 0.0, model=ours, **kwargs), ours, make_batches())
        assert torch.equal(torch.get_rng_state(), after_plain)
    assert state_bits(ours) == state_bits(plain)
    assert state_bits(ours) != state_bits(make_net())


def test_rho_zero_adds_nothing_even_to_minus_zero_or_with_infinite_gradients():
    w = nn.Parameter(torch.tensor([-0.0, 1.0]))
    optimizer = SAM([w], torch.optim.SGD, 0.0, lr=0.1)
    w.grad = torch.tensor([0.0, math.inf])
    before = bits([w])
    optimizer.first_step()
    assert bits([w]) == before


@pytest.mark.parametrize("by_hand", [True, False])
def test_weights_come_back_bit_for_bit_in_the_same_storage(by_hand):
    model, batch = make_net(), make_batches(1)[0]
    optimizer = SAM(model.parameters(), torch.optim.SGD, 0.3, lr=0.0)
    before, where = bits(model.parameters()), [p.data_ptr() for p in model.parameters()]
    seen = []
    if by_hand:
        backward(model, batch)
        optimizer.first_step(zero_grad=True)
        seen = bits(model.parameters())
        backward(model, batch)
        optimizer.second_step()
    else:

        def closure():
            seen[:] = bits(model.parameters())
            return closure_of(optimizer, model, batch)()

        optimizer.step(closure)
    assert seen != before
    assert bits(model.parameters()) == before
    assert [p.data_ptr() for p in model.parameters()] == where


def test_subtracting_epsilon_again_would_not_have_been_exact():
    w = make_net().first.weight.detach()
    epsilon = 0.3 * torch.randn(w.shape, generator=torch.Generator().manual_seed(0))
    assert bits([(w + epsilon) - epsilon]) != bits([w])


def test_a_parameter_without_gradient_in_the_second_pass_is_restored():
    u, v = (nn.Parameter(torch.tensor([1.1, -0.3])) for _ in range(2))
    optimizer = SAM([u, v], torch.optim.SGD, 0.1, lr=0.5)
    start = bits([v])
    (u.sum() + (v**2).sum()).backward()
    optimizer.first_step(zero_grad=True)
    assert bits([v]) != start
    u.sum().backward()
    assert v.grad is None
    optimizer.second_step()
    assert bits([v]) == start
    torch.testing.assert_close(u.detach(), torch.tensor([0.6, -0.8]))


def test_a_parameter_without_gradient_in_the_first_pass_stays_but_may_be_updated():
    u, v = (nn.Parameter(torch.tensor(1.0)) for _ in range(2))
    optimizer = SAM([u, v], torch.optim.SGD, 0.1, lr=0.5)
    u.backward()
    optimizer.first_step(zero_grad=True)
    assert v.item() == 1.0
    (u + v).backward()
    optimizer.second_step()
    assert (u.item(), v.item()) == (0.5, 0.5)


def test_zero_gradient_gives_no_nan():
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = SAM([w], torch.optim.SGD, 0.5, lr=0.1)

    seen = []

    def closure():
        optimizer.zero_grad()
        seen.append(w.tolist())
        loss = (0.0 * w).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert [*seen, w.tolist()] == [[1.0, 2.0]] * 3


@pytest.mark.parametrize("size", [1e-15, 1e15])
def test_the_radius_does_not_depend_on_the_size_of_the_gradient(size):
    w = nn.Parameter(torch.zeros(4))
    w.grad = torch.full((4,), size)
    SAM([w], torch.optim.SGD, 0.5, lr=0.1).first_step()
    assert w.detach().norm().item() == pytest.approx(0.5, rel=1e-6)


def test_parameters_of_several_dtypes_share_one_norm():
    params = [
        nn.Parameter(torch.zeros(1, dtype=d))
        for d in (torch.float64, torch.float32, torch.bfloat16, torch.complex64)
    ]
    for p in params:
        p.grad = torch.full_like(p, 1.0)
    SAM(params, torch.optim.SGD, 1.0, lr=0.1).first_step()
    assert [p.item() for p in params] == [0.5] * 4


def test_half_precision_gradients_do_not_overflow_the_norm():
    w = nn.Parameter(torch.zeros(16, dtype=torch.float16))
    w.grad = torch.full_like(w, 6e4)
    SAM([w], torch.optim.SGD, 1.0, lr=0.1).first_step()
    assert w.tolist() == [0.25] * 16


# -- the closure ---------------------------------------------------------------------------------


def test_step_calls_the_closure_at_w_first_and_returns_that_loss():
    model, batch = make_net(), make_batches(1)[0]
    optimizer = SAM(model.parameters(), torch.optim.SGD, 0.3, lr=0.1)
    losses, weights = [], []

    def closure():
        weights.append(bits(model.parameters()))
        assert torch.is_grad_enabled()
        return closure_of(optimizer, model, batch, losses)()

    start = bits(model.parameters())
    with torch.no_grad():
        returned = optimizer.step(closure)
    assert len(losses) == 2
    assert returned is losses[0]
    assert losses[1] > losses[0]
    assert weights[0] == start != weights[1]


def test_gradients_left_over_from_before_do_not_count():
    model, other, batches = make_net(), make_net(), make_batches(2)
    optimizer = SAM(model.parameters(), torch.optim.SGD, 0.3, lr=0.1)
    again = SAM(other.parameters(), torch.optim.SGD, 0.3, lr=0.1)
    backward(other, batches[1])
    run(optimizer, model, batches[:1])
    other.norm.reset_running_stats()
    run(again, other, batches[:1])
    assert state_bits(model) == state_bits(other)


def test_a_closure_that_does_not_clear_gradients_sees_them_cleared_between_the_passes():
    w = nn.Parameter(torch.tensor(1.0))
    optimizer = SAM([w], torch.optim.SGD, 0.5, lr=0.1)

    def closure():
        loss = w**2
        loss.backward()
        return loss

    optimizer.step(closure)
    assert w.item() == pytest.approx(0.7)


def test_both_passes_draw_the_same_dropout_masks():
    masks = []
    model = make_net(dropout=0.5)
    model.dropout.register_forward_hook(lambda m, i, o: masks.append(o == 0))
    run(SAM(model.parameters(), torch.optim.SGD, 0.1, lr=0.1), model, make_batches(2))
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_in_the_second_pass_puts_everything_back(error):
    model, batches = make_net(), make_batches(3)
    optimizer = SAM(model.parameters(), torch.optim.SGD, 0.3, model=model, lr=0.1, momentum=0.9)
    run(optimizer, model, batches[:1])
    calls, after_first = [], {}

    def failing():
        loss = closure_of(optimizer, model, batches[1])()
        calls.append(loss)
        if len(calls) == 2:
            raise error
        after_first.update(state_bits(model))
        return loss

    with pytest.raises(error):
        optimizer.step(failing)
    assert len(calls) == 2
    assert state_bits(model) == after_first

    twin, other = make_net(), None
    other = SAM(twin.parameters(), torch.optim.SGD, 0.3, model=twin, lr=0.1, momentum=0.9)
    run(other, twin, batches[:1])
    twin(batches[1][0])  # the statistics of the first pass did count
    run(optimizer, model, batches[2:])
    run(other, twin, batches[2:])
    assert state_bits(model) == state_bits(twin)


def test_a_failure_while_climbing_puts_everything_back(monkeypatch):
    model, batch = make_net(), make_batches(1)[0]
    optimizer = SAM(
        [{"params": model.first.parameters()}, {"params": model.last.parameters()}],
        torch.optim.SGD,
        0.3,
        model=model,
        lr=0.1,
    )
    backward(model, batch)
    before, real = state_bits(model), torch._foreach_add_

    def fails_afterwards(*args):
        real(*args)
        raise MemoryError

    monkeypatch.setattr(torch, "_foreach_add_", fails_afterwards)
    with pytest.raises(MemoryError):
        optimizer.first_step()
    assert state_bits(model) == before
    monkeypatch.undo()
    optimizer.first_step()
    assert state_bits(model) != before


def test_restore_drops_a_step_of_the_loop_by_hand():
    model, batches = make_net(), make_batches(2)
    optimizer = SAM(model.parameters(), torch.optim.SGD, 0.3, model=model, lr=0.1)
    optimizer.restore()
    backward(model, batches[0])
    before = state_bits(model)
    optimizer.first_step(zero_grad=True)
    backward(model, batches[0])
    assert state_bits(model) != before
    optimizer.restore()
    assert state_bits(model) == before
    run(optimizer, model, batches)


# -- state dict, resuming, schedulers ------------------------------------------------------------


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every_base
def test_training_resumes_bit_for_bit(base):
    cls, kwargs = BASES[base]
    batches = make_batches(12)
    whole = make_net()
    run(SAM(whole.parameters(), cls, 0.1, model=whole, **kwargs), whole, batches)

    part = make_net()
    optimizer = SAM(part.parameters(), cls, 0.1, model=part, **kwargs)
    run(optimizer, part, batches[:5])
    files = saved_and_loaded((part.state_dict(), optimizer.state_dict()))

    resumed = make_net(seed=99)
    optimizer = SAM(resumed.parameters(), cls, 0.7, model=resumed, lr=1.0)
    resumed.load_state_dict(files[0])
    optimizer.load_state_dict(files[1])
    run(optimizer, resumed, batches[5:])
    assert state_bits(resumed) == state_bits(whole)


def test_the_state_dict_is_that_of_the_base_optimizer_and_holds_no_copies():
    model = make_net()
    optimizer = SAM(model.parameters(), torch.optim.SGD, 0.1, lr=0.1, momentum=0.9)
    run(optimizer, model, make_batches(2))
    state = optimizer.state_dict()
    n = len(list(model.parameters()))
    assert sorted(state["state"]) == list(range(n))
    assert all(set(entry) == {"momentum_buffer"} for entry in state["state"].values())
    assert state["param_groups"][0]["rho"] == 0.1
    assert optimizer.base_optimizer.state_dict()["state"].keys() == state["state"].keys()
    assert optimizer._climb.saved is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o)), None])
def test_both_optimizers_share_groups_and_state(copied):
    model = make_net()
    optimizer = SAM(model.parameters(), torch.optim.Adam, 0.1, model=model, lr=0.1)
    run(optimizer, model, make_batches(2))
    if copied is None:
        optimizer.load_state_dict(optimizer.state_dict())
    else:
        optimizer = copied(optimizer)
        model = optimizer.model
    base = optimizer.base_optimizer
    assert optimizer.state is base.state
    assert optimizer.param_groups is base.param_groups
    assert len(base.state) == len(list(model.parameters()))
    before = bits(model.parameters())
    run(optimizer, model, make_batches(1))
    assert bits(model.parameters()) != before


def test_a_state_dict_of_the_plain_base_optimizer_can_be_taken_over():
    model = make_net()
    plain = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    run(plain, model, make_batches(2))
    optimizer = SAM(model.parameters(), torch.optim.SGD, 0.2, lr=0.1, momentum=0.5)
    optimizer.load_state_dict(plain.state_dict())
    (group,) = optimizer.param_groups
    assert (group["lr"], group["momentum"], group["rho"]) == (0.3, 0.9, 0.2)
    run(optimizer, model, make_batches(1))


@pytest.mark.parametrize("on_base", [True, False])
@pytest.mark.parametrize("by_hand", [True, False])
def test_a_scheduler_works_on_either_optimizer(on_base, by_hand):
    w = nn.Parameter(torch.tensor(10.0, dtype=torch.float64))
    optimizer = SAM([w], torch.optim.SGD, 0.0, lr=1.0)
    chosen = optimizer.base_optimizer if on_base else optimizer
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = torch.optim.lr_scheduler.StepLR(chosen, step_size=1, gamma=0.5)
        for _ in range(3):
            if by_hand:
                w.backward()
                optimizer.first_step(zero_grad=True)
                w.backward()
                optimizer.second_step(zero_grad=True)
            else:
                optimizer.step(lambda: (optimizer.zero_grad(), w.backward())[1])
            scheduler.step()
    assert w.item() == 10.0 - 1.0 - 0.5 - 0.25
    assert optimizer.param_groups[0]["lr"] == chosen.param_groups[0]["lr"] == 0.125


def test_a_scheduler_finds_the_defaults_of_the_base_optimizer():
    model = make_net()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=10)
    assert optimizer.param_groups[0]["momentum"] == 0.95


def test_a_group_added_later_takes_part():
    u, v = (nn.Parameter(torch.tensor(1.0, dtype=torch.float64)) for _ in range(2))
    optimizer = SAM([u], torch.optim.SGD, 0.1, lr=0.5, momentum=0.9)
    given_group = {"params": [v], "rho": 0.2, "lr": 0.25}
    optimizer.add_param_group(given_group)
    assert given_group == {"params": [v], "rho": 0.2, "lr": 0.25}
    (u**2 + v**2).backward()
    optimizer.first_step(zero_grad=True)
    np.testing.assert_allclose([u.item(), v.item()], [1 + 0.1 / 2**0.5, 1 + 0.2 / 2**0.5])
    (u**2 + v**2).backward()
    optimizer.second_step()
    np.testing.assert_allclose(
        [u.item(), v.item()], [1 - (1 + 0.1 / 2**0.5), 1 - 0.5 * (1 + 0.2 / 2**0.5)], atol=1e-15
    )
    with pytest.raises(InvalidArgumentError, match="rho"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "rho": -1.0})
    assert len(optimizer.param_groups) == 2


@pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 6),
    reason="optimizers take named parameters from torch 2.6 on",
)
def test_named_parameters_are_accepted():
    model = make_net()
    optimizer = SAM(model.named_parameters(), torch.optim.SGD, lr=0.1)
    run(optimizer, model, make_batches(1))


def test_zero_grad_clears_or_zeroes():
    model, batch = make_net(), make_batches(1)[0]
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    backward(model, batch)
    optimizer.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in model.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


RESUME_ELSEWHERE = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
from test_optim import BASES, SAM, make_batches, make_net, run
torch.set_num_threads(1)
weights, state = torch.load(sys.argv[2], weights_only=True)
model = make_net(seed=99)
optimizer = SAM(model.parameters(), BASES[sys.argv[3]][0], 0.7, model=model, lr=1.0)
model.load_state_dict(weights)
optimizer.load_state_dict(state)
run(optimizer, model, make_batches(12)[5:])
torch.save((model.state_dict(), optimizer.state_dict()), sys.argv[4])
"""


@pytest.mark.parametrize("base", ["Adam"])
def test_training_resumes_bit_for_bit_in_another_process(base, tmp_path):
    cls, kwargs = BASES[base]
    model = make_net()
    optimizer = SAM(model.parameters(), cls, 0.1, model=model, **kwargs)
    run(optimizer, model, make_batches(12)[:5])
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "half.pt")
    run(optimizer, model, make_batches(12)[5:])
    files = [str(tmp_path / name) for name in ("half.pt", "end.pt")]
    here = str(Path(__file__).parent)
    subprocess.run(
        [sys.executable, "-c", RESUME_ELSEWHERE, here, files[0], base, files[1]], check=True
    )
    weights, state = torch.load(files[1], weights_only=True)
    assert {k: v.numpy().tobytes() for k, v in weights.items()} == state_bits(model)
    for ours, theirs in zip(
        optimizer.state_dict()["state"].values(), state["state"].values(), strict=True
    ):
        assert set(ours) == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
        assert bits(ours.values()) == bits(theirs[key] for key in ours)
    assert state["param_groups"][0]["rho"] == 0.1


# -- running statistics --------------------------------------------------------------------------


def folded(shape: tuple[int, ...], norm: nn.Module) -> nn.Module:
    """Let a norm see the four features as channels with an extent."""
    return nn.Sequential(nn.Unflatten(1, shape), norm, nn.Flatten())


def spectral_norm_at_its_start() -> nn.Module:
    """A layer whose power iteration has converged would have nothing left to change."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    layer.parametrizations.weight[0]._u.copy_(torch.eye(4)[0])
    return layer


NORMALISERS = {
    "BatchNorm": lambda: nn.BatchNorm1d(4),
    "BatchNorm2d": lambda: folded((2, 2, 1), nn.BatchNorm2d(2)),
    "BatchNorm3d": lambda: folded((2, 2, 1, 1), nn.BatchNorm3d(2)),
    "momentum=None": lambda: nn.BatchNorm1d(4, momentum=None),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(4),
    "InstanceNorm": lambda: folded((2, 2), nn.InstanceNorm1d(2, track_running_stats=True)),
    "InstanceNorm2d": lambda: folded((2, 2, 1), nn.InstanceNorm2d(2, track_running_stats=True)),
    "InstanceNorm3d": lambda: folded((2, 2, 1, 1), nn.InstanceNorm3d(2, track_running_stats=True)),
    "spectral norm": spectral_norm_at_its_start,
    "hand-written": HandWrittenNorm,
}
every_normaliser = pytest.mark.parametrize("norm", list(NORMALISERS))


@every_normaliser
@pytest.mark.parametrize("way", ["step", "by hand", "context"])
def test_only_the_first_pass_counts_in_the_running_statistics(norm, way):
    model, batches, changed = make_net(norm=NORMALISERS[norm]()), make_batches(3), set()
    own = {name: id(b) for name, b in model.named_buffers()}
    known = None if way == "context" else model
    optimizer = SAM(model.parameters(), torch.optim.SGD, 0.5, model=known, lr=0.1)
    for batch in batches:
        reference = copy.deepcopy(model)
        before = state_bits(model)
        reference(batch[0])
        expected = {name: bits([b]) for name, b in reference.named_buffers()}
        changed.update(name for name in expected if before[name] != expected[name][0])
        if way == "step":
            optimizer.step(closure_of(optimizer, model, batch))
        else:
            backward(model, batch)
            optimizer.first_step(zero_grad=True)
            if way == "context":
                with frozen_statistics(model):
                    backward(model, batch)
            else:
                backward(model, batch)
            optimizer.second_step(zero_grad=True)
        assert {name: bits([b]) for name, b in model.named_buffers()} == expected
    assert changed
    if norm != "hand-written":
        assert {name: id(b) for name, b in model.named_buffers()} == own


def test_without_model_or_context_the_second_pass_counts_too():
    model = make_net()
    run(SAM(model.parameters(), torch.optim.SGD, 0.5, lr=0.1), model, make_batches(3))
    assert model.norm.num_batches_tracked == 6


@pytest.mark.parametrize("known", [True, False])
def test_the_second_pass_still_normalises_with_the_statistics_of_its_batch(known):
    model, batch = make_net(), make_batches(1)[0]
    model.norm.running_mean += 5.0
    outputs = []
    model.norm.register_forward_hook(lambda m, i, o: outputs.append(o.detach()))
    optimizer = SAM(
        model.parameters(), torch.optim.SGD, 0.5, model=model if known else None, lr=0.1
    )
    optimizer.step(closure_of(optimizer, model, batch))
    bias = make_net().norm.bias
    assert torch.allclose(outputs[0].mean(0), bias, atol=1e-6)
    assert outputs[1].mean(0).abs().max() < 0.5  # far from the −5 of the running mean
    assert model.training
    assert model.norm.momentum == 0.1


@every_normaliser
def test_frozen_statistics_come_back_after_an_exception_and_may_be_nested(norm):
    model, batch = make_net(norm=NORMALISERS[norm]()), make_batches(1)[0]
    before = state_bits(model)
    with pytest.raises(ZeroDivisionError), frozen_statistics(model):  # noqa: PT012
        model(batch[0])
        with frozen_statistics(model):
            model(batch[0])
        assert state_bits(model) != before
        raise ZeroDivisionError
    assert state_bits(model) == before
    model(batch[0])
    assert state_bits(model) != before


def test_backward_may_come_after_the_frozen_forward():
    model, batch = make_net(), make_batches(1)[0]
    with frozen_statistics(model):
        loss = F.cross_entropy(model(batch[0]), batch[1])
    loss.backward()
    inside = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    backward(model, batch)
    assert bits(inside) == bits(p.grad for p in model.parameters())


def test_a_buffer_under_two_names_stays_one():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    model[1].running_mean = model[0].running_mean
    with frozen_statistics(model):
        assert model[1].running_mean is model[0].running_mean
        model(make_batches(1)[0][0])
    assert model[1].running_mean is model[0].running_mean
    assert not model[0].running_mean.any()


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [-0.1, math.nan, math.inf, "0.05", None])
def test_rho_must_be_a_number_of_at_least_zero(rho):
    w = [nn.Parameter(torch.zeros(1))]
    with pytest.raises(
        InvalidArgumentError, match=r"rho, the radius .* finite number of at least 0, got"
    ):
        SAM(w, torch.optim.SGD, rho, lr=0.1)
    with pytest.raises(InvalidArgumentError, match=r"rho, the radius"):
        SAM([{"params": w, "rho": rho}], torch.optim.SGD, lr=0.1)


def test_rho_written_into_a_group_is_checked_at_the_step():
    w = nn.Parameter(torch.ones(1))
    optimizer = SAM([w], torch.optim.SGD, lr=0.1)
    optimizer.param_groups[0]["rho"] = math.nan
    w.grad = torch.ones(1)
    with pytest.raises(InvalidArgumentError, match=r"rho, the radius .* nan"):
        optimizer.first_step()
    assert w.item() == 1.0


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (
            torch.optim.SGD([torch.zeros(1)], lr=0.1),
            r"must be a class .* got an object of type SGD",
        ),
        (nn.Linear, "must be a class of optimizer"),
        ("sgd", "must be a class of optimizer"),
        (torch.optim.LBFGS, "LBFGS evaluates the loss by itself"),
        (torch.optim.Adadelta, "Adadelta has a setting rho of its own"),
    ],
)
def test_the_base_optimizer_must_be_a_class_that_fits(base, message):
    with pytest.raises(InvalidArgumentError, match=message):
        SAM([nn.Parameter(torch.zeros(1))], base, lr=0.1)


@pytest.mark.parametrize("params", [[], iter(())])
def test_there_must_be_parameters(params):
    with pytest.raises(InvalidArgumentError, match="empty parameter list"):
        SAM(params, torch.optim.SGD, lr=0.1)


def test_one_tensor_is_no_list_of_parameters():
    with pytest.raises(InvalidArgumentError, match="put it into a list"):
        SAM(nn.Parameter(torch.zeros(2)), torch.optim.SGD, lr=0.1)


def test_model_must_be_a_module():
    with pytest.raises(InvalidArgumentError, match=r"must be a torch.nn.Module, got list"):
        SAM([nn.Parameter(torch.zeros(2))], torch.optim.SGD, model=[Net()], lr=0.1)


def test_second_step_needs_a_first():
    model, batch = make_net(), make_batches(1)[0]
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    backward(model, batch)
    with pytest.raises(LandscapeError, match=r"second_step\(\) was called before first_step"):
        optimizer.second_step()
    run(optimizer, model, [batch])
    with pytest.raises(LandscapeError, match=r"second_step\(\) was called before first_step"):
        optimizer.second_step()


def test_first_step_twice_is_refused_and_second_step_still_works():
    model, batch = make_net(), make_batches(1)[0]
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.0)
    before = bits(model.parameters())
    backward(model, batch)
    optimizer.first_step()
    with pytest.raises(LandscapeError, match=r"first_step\(\) was called twice"):
        optimizer.first_step()
    optimizer.second_step()
    assert bits(model.parameters()) == before


def test_step_needs_a_closure():
    optimizer = SAM([nn.Parameter(torch.zeros(2))], torch.optim.SGD, lr=0.1)
    with pytest.raises(InvalidArgumentError, match=r"step\(\) needs a closure"):
        optimizer.step()


def test_a_step_without_any_gradient_is_refused():
    optimizer = SAM([nn.Parameter(torch.zeros(2))], torch.optim.SGD, lr=0.1)
    with pytest.raises(LandscapeError, match=r"no parameter has a gradient: call backward\(\)"):
        optimizer.first_step()


def test_sparse_gradients_are_refused():
    embedding, linear = nn.Embedding(5, 2, sparse=True), nn.Linear(2, 1)
    params = [*linear.parameters(), *embedding.parameters()]
    optimizer = SAM(params, torch.optim.SGD, lr=0.1)
    linear(embedding(torch.tensor([1, 2]))).sum().backward()
    before = bits(params)
    with pytest.raises(LandscapeError, match=r"dense gradients, got a sparse one; .* sparse=False"):
        optimizer.first_step()
    assert bits(params) == before


# -- GPU -----------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_parameters_on_two_devices_share_one_norm_and_one_dropout_mask():
    u, v = (nn.Parameter(torch.ones(4, device=device)) for device in ("cpu", "cuda"))
    optimizer = SAM([u, v], torch.optim.SGD, 1.0, lr=0.0)
    seen, masks = [], []

    def closure():
        optimizer.zero_grad()
        seen.append((u.tolist(), v.tolist()))
        masks.append(torch.rand(8, device="cuda"))
        loss = u.sum() + v.cpu().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    top = 1.0 + 1.0 / 8**0.5
    np.testing.assert_allclose(seen[1], np.full((2, 4), top), rtol=1e-6)
    assert torch.equal(*masks)
    assert u.tolist() == v.tolist() == [1.0] * 4
