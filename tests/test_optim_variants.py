"""The variants of SAM, each against a plain computation that shares no code with it."""

from __future__ import annotations

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional as F

from landscape.errors import InvalidArgumentError, LandscapeError
from landscape.optim import SAM

A = np.array([[3.0, 1.0, 0.5], [1.0, 2.0, -0.25], [0.5, -0.25, 1.0]])
W0 = np.array([1.0, -2.0, 0.5])
LR = 0.1


def loss_gradient(w):
    # L = wᵀAw/2 + Σ w⁴/4: not quadratic, so that the second point matters.
    return A @ w + w**3


def torch_loss(u, v):
    w = torch.cat([u, v])
    return 0.5 * w @ torch.tensor(A) @ w + (w**4).sum() / 4


def train(steps=1, *, rho=0.3, base=torch.optim.SGD, **kwargs):
    u, v = (nn.Parameter(torch.tensor(part)) for part in (W0[:1], W0[1:]))
    optimizer = SAM([u, v], base, rho, **{"lr": LR, **kwargs})

    def closure():
        optimizer.zero_grad()
        loss = torch_loss(u, v)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return torch.cat([u, v]).detach().numpy()


def dual(g, p):
    if p == 1:
        return np.eye(len(g))[np.abs(g).argmax()] * np.sign(g)
    if math.isinf(p):
        return np.sign(g)
    q = p / (p - 1)
    return np.sign(g) * np.abs(g) ** (q - 1) / (np.abs(g) ** q).sum() ** (1 / p)


def plain(
    steps=1, *, rho=0.3, p=2, adaptive="none", eta=0.01, normalised=True, n_steps=1, alpha=0.0,
    decay=0.0, lr=LR,
):  # fmt: skip
    w = W0.copy()
    gradient = lambda w: loss_gradient(w) + decay * w  # noqa: E731
    for _ in range(steps):
        # Two parameters of one dimension each: filter-wise is element-wise there.
        t = np.ones(3) if adaptive == "none" else np.abs(w) + eta
        epsilon = np.zeros(3)
        for _ in range(n_steps):
            g = t * gradient(w + epsilon)
            epsilon = epsilon + rho / n_steps * t * (dual(g, p) if normalised else g)
        g, top = gradient(w), gradient(w + epsilon)
        top = top - alpha * (g - (g @ top) / (top @ top) * top)
        w = w - lr * top
    return w


VARIANTS = {
    **{f"p={p}": {"p": p} for p in (1.0, 1.5, 2.0, 3.0, math.inf)},
    **{f"asam p={p}": {"p": p, "adaptive": "elementwise"} for p in (1.0, 2.0, 3.0, math.inf)},
    "asam eta": {"adaptive": "elementwise", "eta": 0.5},
    "filterwise": {"adaptive": "filterwise"},
    "unnormalised": {"normalised": False, "rho": 0.02},
    "unnormalised asam": {"normalised": False, "rho": 0.02, "adaptive": "elementwise"},
    "three inner steps": {"n_steps": 3},
    "three inner steps p=inf": {"n_steps": 3, "p": math.inf},
    "asam two inner steps": {"n_steps": 2, "adaptive": "elementwise"},
    "gsam": {"gsam_alpha": 0.4},
    "gsam two inner steps": {"gsam_alpha": 0.4, "n_steps": 2},
}


@pytest.mark.parametrize("name", list(VARIANTS))
@pytest.mark.parametrize("steps", [1, 100])
def test_the_weights_follow_a_plain_implementation(name, steps):
    ours = dict(VARIANTS[name])
    theirs = {("alpha" if k == "gsam_alpha" else k): v for k, v in ours.items()}
    lr = LR if steps == 1 else 0.01
    expected = plain(steps, **theirs, lr=lr)
    assert np.abs(expected - W0).max() > 0.1
    np.testing.assert_allclose(train(steps, **ours, lr=lr), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "p=2.0"])
def test_each_variant_differs_from_plain_sam(name):
    assert np.abs(train(**VARIANTS[name]) - train()).max() > 1e-4


@pytest.mark.parametrize("name", list(VARIANTS))
def test_every_variant_gives_no_nan_where_the_gradient_is_zero(name):
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = SAM([w], torch.optim.SGD, **{"rho": 0.3, "lr": 0.1, **VARIANTS[name]})
    seen = []

    def closure():
        optimizer.zero_grad()
        seen.append(w.tolist())
        (0.0 * w).sum().backward()

    optimizer.step(closure)
    assert all(s == [1.0, 2.0] for s in [*seen, w.tolist()])


@pytest.mark.parametrize("name", list(VARIANTS))
def test_every_variant_resumes_bit_for_bit(name):
    settings = {"rho": 0.3, "lr": 0.05, "momentum": 0.9, **VARIANTS[name]}

    def run(model, optimizer, steps):
        for _ in range(steps):
            optimizer.step(closure_for(optimizer, model, *batch()))

    whole, part, resumed = net(), net(), net()
    run(whole, SAM(whole.parameters(), torch.optim.SGD, **settings), 6)
    before = SAM(part.parameters(), torch.optim.SGD, **settings)
    run(part, before, 3)
    after = SAM(resumed.parameters(), torch.optim.SGD, **settings)
    resumed.load_state_dict(part.state_dict())
    after.load_state_dict(before.state_dict())
    run(resumed, after, 3)
    assert torch.equal(flat(resumed), flat(whole))
    assert not torch.equal(flat(part), flat(whole))


def test_filterwise_stretches_each_filter_by_its_norm():
    w = nn.Parameter(torch.tensor([[[3.0], [4.0]], [[0.0], [1.0]]], dtype=torch.float64))
    b = nn.Parameter(torch.tensor([-2.0], dtype=torch.float64))
    before = torch.cat([w.detach().reshape(-1), b.detach()])
    g = torch.tensor([1.0, -2.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    w.grad, b.grad = g[:4].reshape(w.shape).clone(), g[4:].clone()
    SAM([w, b], torch.optim.SGD, 0.7, lr=0.1, adaptive="filterwise", eta=0.1).first_step()
    t = torch.tensor([5.1, 5.1, 1.1, 1.1, 2.1], dtype=torch.float64)
    epsilon = torch.cat([w.detach().reshape(-1), b.detach()]) - before
    torch.testing.assert_close(epsilon, 0.7 * t**2 * g / (t * g).norm(), rtol=1e-12, atol=0)


def filter_factors(w):
    # T of a matrix is the norm of its rows, that of a vector the size of its entries.
    return np.sqrt((w**2).sum(1, keepdims=True)) * np.ones_like(w) if w.ndim > 1 else np.abs(w)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("steps", [1, 100])
def test_filterwise_follows_a_plain_implementation(p, steps):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3)), rng.normal(size=(12, 2))
    start = [rng.normal(size=(2, 3)), rng.normal(size=2)]
    # Slow enough that it does not arrive: jumping about a minimum multiplies rounding errors.
    rho, lr, eta = 0.1, 0.05 if steps == 1 else 0.005, 0.01

    def gradients(w, b):
        r = 4 * (x @ w.T + b - y) ** 3 / y.size
        return [r.T @ x, r.sum(0)]

    def joint(parts):
        return np.concatenate([part.reshape(-1) for part in parts])

    expected = [part.copy() for part in start]
    for _ in range(steps):
        t = joint([filter_factors(part) + eta for part in expected])
        epsilon = rho * t * dual(t * joint(gradients(*expected)), p)
        top = gradients(expected[0] + epsilon[:6].reshape(2, 3), expected[1] + epsilon[6:])
        expected = [part - lr * g for part, g in zip(expected, top, strict=True)]

    ours = [nn.Parameter(torch.tensor(part)) for part in start]
    optimizer = SAM(ours, torch.optim.SGD, rho, p=p, adaptive="filterwise", eta=eta, lr=lr)

    def closure():
        optimizer.zero_grad()
        residual = torch.tensor(x) @ ours[0].T + ours[1] - torch.tensor(y)
        (residual**4).mean().backward()

    for _ in range(steps):
        optimizer.step(closure)
    for tensor, array, first in zip(ours, expected, start, strict=True):
        assert np.abs(array - first).max() > 0.01
        np.testing.assert_allclose(tensor.detach().numpy(), array, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in VARIANTS if "gsam" not in n])
def test_radius_zero_is_the_base_optimizer_bit_for_bit_in_every_variant(name):
    plain_model, model = net(), net()
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
    base = torch.optim.SGD(plain_model.parameters(), **settings)
    optimizer = SAM(
        model.parameters(), torch.optim.SGD, **{**settings, **VARIANTS[name], "rho": 0.0}
    )
    for _ in range(5):
        base.step(closure_for(base, plain_model, *batch()))
        optimizer.step(closure_for(optimizer, model, *batch()))
    assert torch.equal(flat(model), flat(plain_model))
    assert not torch.equal(flat(model), flat(net()))


@pytest.mark.parametrize("name", list(VARIANTS))
def test_the_layout_in_memory_changes_nothing(name):
    finals = []
    for layout in (torch.contiguous_format, torch.channels_last):
        g = torch.Generator().manual_seed(0)
        w = torch.randn(3, 4, 2, 2, generator=g, dtype=torch.float64)
        scales = torch.randn(w.shape, generator=g, dtype=torch.float64)
        w = nn.Parameter(w.to(memory_format=layout))
        optimizer = SAM([w], torch.optim.SGD, **{"rho": 0.3, "lr": 0.05, **VARIANTS[name]})

        def closure(w=w, scales=scales, optimizer=optimizer):
            optimizer.zero_grad()
            (scales * w**2 + w**4).sum().backward()

        for _ in range(3):
            optimizer.step(closure)
        assert w.is_contiguous(memory_format=layout)
        finals.append(w.detach().contiguous())
    torch.testing.assert_close(*finals, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", list(VARIANTS))
@pytest.mark.parametrize("missing_at_w", [True, False])
def test_a_parameter_without_gradient_in_one_pass_comes_back_in_every_variant(name, missing_at_w):
    """u is in the loss of all passes, v only in that of the first or only in that of the last."""
    u, v = (nn.Parameter(torch.tensor([1.5, -0.25], dtype=torch.float64)) for _ in range(2))
    settings = {"rho": 0.3, "lr": 0.5, **VARIANTS[name]}
    optimizer = SAM([u, v], torch.optim.SGD, **settings)
    passes, n = [], settings.get("n_steps", 1) + 1

    def closure():
        optimizer.zero_grad()
        passes.append(v.detach().clone())
        in_loss = len(passes) == (n if missing_at_w else 1)
        ((u**2).sum() + (2 * (v**2).sum() if in_loss else 0.0)).backward()
        assert (v.grad is not None) == in_loss

    optimizer.step(closure)
    assert len(passes) == n
    start = torch.tensor([1.5, -0.25], dtype=torch.float64)
    if missing_at_w:
        # It never climbs; the base optimizer steps with its gradient, which is 4v.
        assert all(torch.equal(seen, start) for seen in passes)
        assert torch.equal(v.detach(), start - 0.5 * 4 * start)
    else:
        assert not torch.equal(passes[-1], start)
        assert torch.equal(v.detach(), start)
    assert not torch.equal(u.detach(), start)


@pytest.mark.parametrize("maximize", [False, True])
def test_decay_inside_is_a_penalty_in_the_loss(maximize):
    sign = -1 if maximize else 1

    def final(decay, penalty):
        u = nn.Parameter(torch.tensor(W0))
        optimizer = SAM(
            [u], torch.optim.SGD, 0.3, lr=LR, momentum=0.9, decay="inside", weight_decay=decay,
            maximize=maximize,
        )  # fmt: skip

        def closure():
            optimizer.zero_grad()
            (sign * torch_loss(u[:1], u[1:]) + sign * penalty / 2 * (u**2).sum()).backward()

        for _ in range(3):
            optimizer.step(closure)
        return u.detach().numpy()

    np.testing.assert_allclose(final(0.2, 0.0), final(0.0, 0.2), rtol=1e-12)
    np.testing.assert_allclose(
        train(weight_decay=0.2, decay="inside"), plain(decay=0.2), rtol=1e-12
    )
    assert np.abs(train(weight_decay=0.2) - plain(decay=0.2)).max() > 1e-3


@pytest.mark.parametrize("n_steps", [1, 2])
def test_gsam_takes_the_decay_inside_for_a_part_of_the_loss(n_steps):
    settings = {"n_steps": n_steps, "lr": 0.01}
    ours = train(20, gsam_alpha=0.4, weight_decay=0.5, decay="inside", **settings)
    expected = plain(20, alpha=0.4, decay=0.5, **settings)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    assert np.abs(expected - plain(20, alpha=0.4, **settings)).max() > 1e-3


def net(dropout=0.0):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(3, 5), nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, 2)
        ).double()


def batch(n=8):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 3, generator=g, dtype=torch.float64)
    return x, torch.randint(2, (n,), generator=g)


def closure_for(optimizer, model, x, y, *, factor=1.0):
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        (factor * loss).backward()
        return loss.detach()

    return closure


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def test_m_sam_averages_the_gradients_of_its_micro_batches():
    x, y = batch()
    parts = [slice(0, 5), slice(5, 8)]
    model = net()
    expected = torch.zeros_like(flat(model))
    for part in parts:
        alone = net()
        optimizer = SAM(alone.parameters(), torch.optim.SGD, 0.2, lr=1.0)
        optimizer.step(closure_for(optimizer, alone, x[part], y[part]))
        expected += (part.stop - part.start) / 8 * (flat(alone) - flat(net()))
    optimizer = SAM(model.parameters(), torch.optim.SGD, 0.2, lr=1.0)
    closures = [closure_for(optimizer, model, x[part], y[part]) for part in parts]
    losses = optimizer.step_micro_batches(closures, weights=[5, 3])
    assert torch.stack(losses).tolist() == [F.cross_entropy(net()(x[p]), y[p]) for p in parts]
    torch.testing.assert_close(flat(model) - flat(net()), expected, rtol=1e-10, atol=1e-14)
    whole = net()
    one = SAM(whole.parameters(), torch.optim.SGD, 0.2, lr=1.0)
    one.step(closure_for(one, whole, x, y))
    assert not torch.allclose(flat(model), flat(whole), rtol=1e-4)


def test_accumulated_micro_batches_are_one_batch():
    (x, y), model, whole = batch(), net(), net()
    one = SAM(whole.parameters(), torch.optim.SGD, 0.2, lr=0.5)
    one.step(closure_for(one, whole, x, y))
    optimizer = SAM(model.parameters(), torch.optim.SGD, 0.2, lr=0.5)
    for finish in (optimizer.first_step, optimizer.second_step):
        for part in (slice(0, 3), slice(3, 8)):
            (F.cross_entropy(model(x[part]), y[part], reduction="sum") / 8).backward()
        finish(zero_grad=True)
    torch.testing.assert_close(flat(model), flat(whole), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("replay", [True, False])
def test_replay_of_the_dropout_masks_can_be_switched_off(replay):
    model, masks = net(dropout=0.5), []
    model[2].register_forward_hook(lambda m, i, o: masks.append(o == 0))
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, n_steps=2, replay_rng=replay)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        optimizer.step(closure_for(optimizer, model, *batch()))
    assert len(masks) == 3
    assert torch.equal(masks[0], masks[1]) is replay
    assert torch.equal(masks[0], masks[2]) is replay


CLIPPED = {"sam": {}, "p=inf": {"p": math.inf}, "unnormalised": {"normalised": False, "rho": 0.05}}


@pytest.mark.parametrize("name", list(CLIPPED))
@pytest.mark.parametrize("way", ["by hand", "closure"])
def test_clipping_is_that_of_the_last_gradient(name, way):
    """Inside of a closure both passes clip, which only unnormalised SAM can notice."""
    settings = {"rho": 0.3, **CLIPPED[name]}
    most = 0.5
    clip = lambda g: g * min(1.0, most / (np.linalg.norm(g) + 1e-6))  # noqa: E731
    g = loss_gradient(W0)
    unnormalised = not settings.get("normalised", True)
    if unnormalised and way == "closure":
        g = clip(g)
    epsilon = settings["rho"] * (g if unnormalised else dual(g, settings.get("p", 2)))
    top = loss_gradient(W0 + epsilon)
    assert np.linalg.norm(top) > 2 * most
    expected = W0 - LR * clip(top)

    w = nn.Parameter(torch.tensor(W0))
    optimizer = SAM([w], torch.optim.SGD, lr=LR, **settings)

    def closure():
        optimizer.zero_grad()
        torch_loss(w[:1], w[1:]).backward()
        nn.utils.clip_grad_norm_([w], most)

    if way == "closure":
        optimizer.step(closure)
    else:
        torch_loss(w[:1], w[1:]).backward()
        optimizer.first_step(zero_grad=True)
        torch_loss(w[:1], w[1:]).backward()
        nn.utils.clip_grad_norm_([w], most)
        optimizer.second_step()
    np.testing.assert_allclose(w.detach().numpy(), expected, rtol=1e-12)


class Wrapped:
    """Drives an optimizer as accelerate does: by its state dict, zero_grad and step(closure)."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        # It moves the state to its device, and hands it back.
        optimizer.load_state_dict(optimizer.state_dict())

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def zero_grad(self):
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, closure=None):
        self.optimizer.step(closure)


@pytest.mark.parametrize("order", ["accelerate", "lightning"])
def test_a_trainer_that_only_calls_step_with_a_closure_trains_alike(order):
    (x, y), expected, model = batch(), net(dropout=0.5), net(dropout=0.5)
    settings = {"lr": 0.05, "momentum": 0.9}
    bare = SAM(expected.parameters(), torch.optim.SGD, 0.2, model=expected, **settings)
    wrapped = Wrapped(SAM(model.parameters(), torch.optim.SGD, 0.2, model=model, **settings))
    schedules = [
        torch.optim.lr_scheduler.StepLR(o, step_size=2, gamma=0.5)
        for o in (bare, wrapped.optimizer)
    ]

    def closure():
        # Lightning clears the gradients between the forward and the backward pass.
        if order == "accelerate":
            wrapped.zero_grad()
        loss = F.cross_entropy(model(x), y)
        if order == "lightning":
            wrapped.zero_grad()
        loss.backward()
        return loss

    for step, schedule in zip(
        (
            lambda: bare.step(closure_for(bare, expected, x, y)),
            lambda: wrapped.step(closure=closure),
        ),
        schedules,
        strict=True,
    ):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            for _ in range(5):
                step()
                schedule.step()
    assert torch.equal(flat(model), flat(expected))
    assert wrapped.param_groups[0]["lr"] == 0.0125
    assert wrapped.param_groups is wrapped.optimizer.base_optimizer.param_groups


SCALED = {"sam": {}, "unnormalised": {"normalised": False}, "gsam": {"gsam_alpha": 0.4},
          "decay inside": {"decay": "inside", "weight_decay": 0.1}}  # fmt: skip


@pytest.mark.parametrize("name", list(SCALED))
def test_a_grad_scaler_changes_nothing(name):
    (x, y), model, bare = batch(), net().float(), net().float()
    x = x.float()
    one = SAM(bare.parameters(), torch.optim.SGD, 0.2, lr=0.5, **SCALED[name])
    one.step(closure_for(one, bare, x, y))
    optimizer = SAM(model.parameters(), torch.optim.SGD, 0.2, lr=0.5, **SCALED[name])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(F.cross_entropy(model(x), y)).backward()
    optimizer.first_step(zero_grad=True, loss_scale=scaler.get_scale())
    scaler.scale(F.cross_entropy(model(x), y)).backward()
    scaler.step(optimizer)
    optimizer.restore()
    torch.testing.assert_close(flat(model), flat(bare), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("overflow_at", [0, 1])
def test_an_overflow_in_either_pass_leaves_the_step_out(overflow_at):
    (x, y), model = batch(), net().float()
    before = flat(model)
    optimizer = SAM(model.parameters(), torch.optim.SGD, 0.2, lr=0.5, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for i in range(2):
        scaler.scale(F.cross_entropy(model(x.float()), y)).backward()
        if i == overflow_at:
            model[0].weight.grad[0, 0] = math.inf
        if i == 0:
            optimizer.first_step(zero_grad=True, loss_scale=scaler.get_scale())
    scaler.step(optimizer)
    optimizer.restore()
    scaler.update()
    assert torch.equal(flat(model), before)
    assert scaler.get_scale() == 512.0
    assert not optimizer.state


def test_bfloat16_autocast_trains_close_to_float32():
    x, y = batch(32)
    finals = []
    for enabled in (False, True):
        model = net().float()
        optimizer = SAM(model.parameters(), torch.optim.SGD, 0.1, lr=0.5)

        def closure(model=model, optimizer=optimizer, enabled=enabled):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                loss = F.cross_entropy(model(x.float()), y)
            loss.backward()

        for _ in range(5):
            optimizer.step(closure)
        finals.append(flat(model))
    moved = (finals[0] - flat(net().float())).norm()
    # bfloat16 keeps 8 bits: an error of 2⁻⁸ per operation, a few operations deep.
    assert 0 < (finals[1] - finals[0]).norm() < 0.05 * moved


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize("n_steps", [1, 2])
def test_one_autocast_around_all_passes_is_one_around_each(by_hand, n_steps):
    """Autocast keeps the weights that it has cast; after a climb they would be those of w."""
    finals = []
    for around_all in (False, True):
        (x, y), model = batch(32), net().float()
        x = x.float()
        optimizer = SAM(model.parameters(), torch.optim.SGD, 0.5, lr=0.5, n_steps=n_steps)

        def closure(model=model, optimizer=optimizer, around_all=around_all, x=x, y=y):
            optimizer.zero_grad()
            with nullcontext() if around_all else torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(x), y)
            loss.backward()

        with torch.autocast("cpu", torch.bfloat16) if around_all else nullcontext():
            for _ in range(3):
                if by_hand:
                    for _ in range(n_steps):
                        closure()
                        optimizer.first_step()
                    closure()
                    optimizer.second_step()
                else:
                    optimizer.step(closure)
        finals.append(flat(model))
    assert torch.equal(*finals)


def ddp_worker(rank, folder, sync):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(net())
    x, y = batch()
    own = slice(4 * rank, 4 * rank + 4)
    optimizer = SAM(
        model.parameters(), torch.optim.SGD, 0.2, lr=0.5, model=model, sync_perturbation=sync
    )
    for _ in range(3):
        optimizer.step(closure_for(optimizer, model, x[own], y[own]))
    torch.save(flat(model), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def ddp_norm_worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(normed())
    optimizer = SAM(model.parameters(), torch.optim.SGD, 0.2, lr=0.5, model=model)
    x, y = batch()
    own = slice(4 * rank, 4 * rank + 4)
    for _ in range(3):
        optimizer.step(closure_for(optimizer, model, x[own], y[own]))
    if rank == 0:
        torch.save(model.module.state_dict(), f"{folder}/state.pt")
    dist.destroy_process_group()


def normed():
    return nn.Sequential(nn.BatchNorm1d(3).double(), *net())


@pytest.mark.slow
def test_two_processes_count_each_batch_once_in_the_running_statistics(tmp_path):
    """The first layer normalises the inputs, so that its statistics hang on no weight."""
    mp.spawn(ddp_norm_worker, (str(tmp_path),), nprocs=2)
    state = torch.load(tmp_path / "state.pt")
    x = batch()[0][:4]
    left = 0.9**3
    assert state["0.num_batches_tracked"] == 3
    torch.testing.assert_close(state["0.running_mean"], (1 - left) * x.mean(0))
    torch.testing.assert_close(state["0.running_var"], left + (1 - left) * x.var(0))


@pytest.mark.slow
@pytest.mark.parametrize("sync", [True, False])
def test_two_processes_do_what_one_does(tmp_path, sync):
    mp.spawn(ddp_worker, (str(tmp_path), sync), nprocs=2)
    both = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert torch.equal(*both)
    (x, y), model = batch(), net()
    optimizer = SAM(model.parameters(), torch.optim.SGD, 0.2, lr=0.5)
    halves = [closure_for(optimizer, model, x[h], y[h]) for h in (slice(0, 4), slice(4, 8))]
    for _ in range(3):
        if sync:
            optimizer.step(closure_for(optimizer, model, x, y))
        else:
            optimizer.step_micro_batches(halves)
    torch.testing.assert_close(both[0], flat(model), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"p": 0.5}, "p, the norm .* must be at least 1"),
        ({"p": math.nan}, "p, the norm .* must be at least 1"),
        ({"adaptive": "elementwize"}, "unknown adaptive neighbourhood .elementwize."),
        ({"eta": -1.0}, "eta must be a finite number"),
        ({"normalised": False, "p": 1}, "unnormalised SAM is defined for p = 2"),
        ({"n_steps": 0}, "n_steps.* whole number of at least 1, got 0"),
        ({"gsam_alpha": -0.1}, "gsam_alpha must be"),
        ({"decay": "both"}, "unknown place of the weight decay"),
        ({"sync_perturbation": False}, "DistributedDataParallel"),
        ({"base": torch.optim.AdamW, "decay": "inside"}, "AdamW decays the weights apart"),
    ],
)
def test_bad_settings_are_refused(kwargs, message):
    with pytest.raises(InvalidArgumentError, match=message):
        train(**kwargs)


def test_second_step_needs_all_inner_steps():
    w = nn.Parameter(torch.ones(2))
    optimizer = SAM([w], torch.optim.SGD, lr=0.1, n_steps=2)
    w.grad = torch.ones(2)
    optimizer.first_step()
    with pytest.raises(LandscapeError, match="had been called 2 times"):
        optimizer.second_step()
    with pytest.raises(InvalidArgumentError, match="loss_scale must be a finite number > 0"):
        optimizer.first_step(loss_scale=0.0)
    with pytest.raises(InvalidArgumentError, match="got no closure"):
        optimizer.step_micro_batches([])
    with pytest.raises(InvalidArgumentError, match="weights must be 1 numbers"):
        optimizer.step_micro_batches([lambda: None], weights=[1.0, 2.0])
