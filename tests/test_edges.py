"""Edges of stability against bisection with torch's own optimizers on quadratics."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from landscape.errors import InvalidArgumentError
from landscape.optim import SAM, edge_of_stability, next_update, preconditioner

MOMENTS = ("exp_avg_sq", "square_avg", "max_exp_avg_sq", "grad_avg")
STEPS = 240

Make = Callable[[list[nn.Parameter]], Optimizer]

PLAIN: dict[str, Make] = {
    "descent": lambda w: SGD(w, lr=0.1),
    "decay": lambda w: SGD(w, lr=0.1, weight_decay=3.0),
    "momentum": lambda w: SGD(w, lr=0.1, momentum=0.9),
    "momentum and decay": lambda w: SGD(w, lr=0.1, momentum=0.5, weight_decay=2.0),
    "dampening": lambda w: SGD(w, lr=0.1, momentum=0.8, dampening=0.3),
    "dampening alone": lambda w: SGD(w, lr=0.1, dampening=0.3),
    "Nesterov": lambda w: SGD(w, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1.0),
    "USAM": lambda w: SAM(w, SGD, rho=0.1, normalised=False, lr=0.1),
    "USAM, momentum, decay": lambda w: SAM(
        w, SGD, rho=0.05, normalised=False, lr=0.1, momentum=0.5, weight_decay=1.0
    ),
}
PRECONDITIONED: dict[str, Make] = {
    "Adam": lambda w: Adam(w, lr=0.1),
    "Adam, other momentum": lambda w: Adam(w, lr=0.05, betas=(0.5, 0.99)),
    "Adam, coupled decay": lambda w: Adam(w, lr=0.1, weight_decay=20.0),
    "AMSGrad": lambda w: Adam(w, lr=0.1, amsgrad=True),
    "AdamW": lambda w: AdamW(w, lr=0.1, weight_decay=0.5),
    "RMSprop": lambda w: RMSprop(w, lr=0.1),
    "RMSprop, momentum, centred": lambda w: RMSprop(w, lr=0.1, momentum=0.7, centered=True),
}


def grows(optimizer: Optimizer, w: nn.Parameter, curvature: float) -> bool:
    """Whether w grows on L = λw²/2 while the second moments stay as they are."""
    with torch.no_grad():
        w.fill_(1e-9)
    held = {
        name: value.clone() for name, value in optimizer.state.get(w, {}).items() if name in MOMENTS
    }
    sizes, group = [], optimizer.param_groups[0]
    rate = group.get("alpha") or group.get("betas", (0, 1))[1]  # by which a step shrinks them

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = curvature * w.square().sum() / 2
        loss.backward()
        return loss

    for _ in range(STEPS):
        for name, value in held.items():
            optimizer.state[w][name].copy_(value if name.startswith("max") else value / rate)
        optimizer.step(closure)
        sizes.append(abs(float(w.detach())))
        if sizes[-1] > 1e-5:  # before the moments feel it
            return True
    return max(sizes[-40:]) > max(sizes[STEPS // 2 : STEPS // 2 + 40])


def bisected(make: Callable[[], tuple[Optimizer, nn.Parameter]], low: float, high: float) -> float:
    while high > low * (1 + 2e-4):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if grows(*make(), middle) else (middle, high)
    return (low * high) ** 0.5


def scalar() -> nn.Parameter:
    return nn.Parameter(torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize("name", PLAIN)
def test_the_edge_is_where_a_quadratic_begins_to_diverge(name: str) -> None:
    def make() -> tuple[Optimizer, nn.Parameter]:
        w = scalar()
        return PLAIN[name]([w]), w

    edge = edge_of_stability(make()[0])
    assert (edge.preconditioned, edge.decay) == (False, 0.0)
    assert bisected(make, edge.value / 4, 4 * edge.value) == pytest.approx(edge.value, rel=1e-3)


@pytest.mark.parametrize("name", PRECONDITIONED)
def test_the_edge_of_a_preconditioned_optimizer(name: str) -> None:
    """With second moments of any size, the edge is that of (λ + decay)/P."""

    def make() -> tuple[Optimizer, nn.Parameter]:
        w = scalar()
        optimizer = PRECONDITIONED[name]([w])
        w.grad = torch.full_like(w, 3.0)
        optimizer.step()
        state = optimizer.state[w]
        for moment in ("exp_avg", "grad_avg", "momentum_buffer"):
            if moment in state:
                state[moment].zero_()
        state["step"].fill_(1e7)  # no bias is left to correct
        return optimizer, w

    optimizer, w = make()
    edge, scale = edge_of_stability(optimizer), float(preconditioner(optimizer)[w])
    assert edge.preconditioned
    assert scale != pytest.approx(1.0, rel=0.01)
    expected = edge.value * scale - edge.decay
    assert bisected(make, expected / 4, 4 * expected) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("norm", [0.3, 5.0])
def test_the_edge_of_normalised_sam_at_a_gradient_norm(norm: float) -> None:
    """A linear term of another weight keeps the norm of the gradient while w is small."""

    def diverges(curvature: float) -> bool:
        w, other = scalar(), scalar()
        with torch.no_grad():
            w.fill_(1e-9)
        optimizer = SAM([w, other], SGD, rho=0.2, lr=0.1)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = (curvature * w**2 / 2 + norm * other).sum()
            loss.backward()
            return loss

        sizes = [(optimizer.step(closure), abs(float(w.detach())))[1] for _ in range(120)]
        return max(sizes[-20:]) > max(sizes[60:80])

    optimizer = SAM([scalar()], SGD, rho=0.2, lr=0.1)
    edge = edge_of_stability(optimizer, gradient_norm=norm).value
    assert not diverges(0.999 * edge)
    assert diverges(1.001 * edge)
    assert edge < 20.0  # that of descent alone
    with pytest.raises(InvalidArgumentError, match="needs gradient_norm > 0"):
        edge_of_stability(optimizer)


def test_published_numbers() -> None:
    w = [scalar()]
    assert edge_of_stability(Adam(w, lr=1.0)).value == pytest.approx(38.0)
    assert edge_of_stability(AdamW(w, lr=0.1, weight_decay=0.05)).value == pytest.approx(379.05)
    assert edge_of_stability(SAM(w, SGD, rho=0.0, lr=0.1), gradient_norm=1.0).value == 20.0


@pytest.mark.parametrize("kind", [Adam, AdamW, RMSprop, Adagrad])
@pytest.mark.parametrize("n_steps", [1, 4])
def test_a_step_without_momentum_is_the_gradient_over_p(kind: Any, n_steps: int) -> None:
    """P is what the step divides by: with the momentum of one gradient alone, bias corrected."""
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(5, dtype=torch.float64))
    options = {"betas": (0.0, 0.9)} if kind in (Adam, AdamW) else {}
    optimizer = kind([w], lr=0.1, weight_decay=0.0, **options)
    for _ in range(n_steps):
        w.grad = torch.randn_like(w)
        before = w.detach().clone()
        optimizer.step()
    step = before - w.detach()
    torch.testing.assert_close(
        step, 0.1 * w.grad / preconditioner(optimizer)[w], rtol=1e-12, atol=0
    )


def test_groups_of_other_learning_rates_share_one_edge() -> None:
    a, b = scalar(), scalar()
    optimizer = SGD([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.02}])
    edge = edge_of_stability(optimizer)
    assert (edge.value, edge.preconditioned) == (pytest.approx(20.0), True)
    found = preconditioner(optimizer)
    assert (float(found[a]), float(found[b])) == pytest.approx(
        (1.0, 5.0)
    )  # λ_b/5 at the edge: 2/0.02


def test_of_groups_the_decay_with_the_lowest_edge_counts() -> None:
    groups = [{"params": [scalar()], "weight_decay": decay} for decay in (0.0, 5.0, 1.0)]
    assert edge_of_stability(Adam(groups, lr=0.1)).decay == 5.0
    assert edge_of_stability(SGD(groups, lr=0.1)).value == pytest.approx(15.0)
    slow = [{"params": [scalar()], "lr": 0.1}, {"params": [scalar()], "lr": 0.01}]
    decayed = edge_of_stability(AdamW(slow, weight_decay=0.5)).value  # γ of the fast group counts
    assert decayed == pytest.approx(380 - 0.5 * 19)


@pytest.mark.parametrize("name", [*PLAIN, *PRECONDITIONED])
def test_the_next_update_is_the_one_that_follows_and_moves_nothing(name: str) -> None:
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(4, dtype=torch.float64))
    optimizer = (PLAIN | PRECONDITIONED)[name]([w])
    base = getattr(optimizer, "base_optimizer", optimizer)
    for _ in range(3):
        w.grad = torch.randn_like(w)
        base.step()
    w.grad = torch.randn_like(w)
    before, state = w.detach().clone(), copy.deepcopy(optimizer.state_dict())
    update = next_update(optimizer)[w]
    assert torch.equal(before, w)
    assert str(state) == str(optimizer.state_dict())
    base.step()
    torch.testing.assert_close(before + update, w.detach(), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda w: torch.optim.NAdam(w),
            "no edge of stability is known of NAdam; known: SGD, Adam",
        ),
        (lambda w: SGD(w, lr=0.1, maximize=True), "maximises"),
        (lambda w: SAM(w, Adam, lr=0.1), "the edge of SAM is known for"),
        (lambda w: SAM(w, SGD, lr=0.1, adaptive="elementwise"), "the edge of SAM is known for"),
        (
            lambda w: SGD([{"params": w, "momentum": 0.5}, {"params": [scalar()]}], lr=0.1),
            "different momentum",
        ),
    ],
)
def test_optimizers_without_a_known_edge_are_named(make: Make, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        edge_of_stability(make([scalar()]), gradient_norm=1.0)


def test_what_has_no_update_is_named() -> None:
    w = scalar()
    with pytest.raises(InvalidArgumentError, match=r"call loss\.backward\(\)"):
        next_update(SGD([w], lr=0.1))
    for kind in (Adam, Adagrad, RMSprop):
        with pytest.raises(InvalidArgumentError, match="let it take a step first"):
            preconditioner(kind([w]))
    with pytest.raises(InvalidArgumentError, match="the learning rate is 0"):
        edge_of_stability(SGD([w], lr=0.0))
    w.grad = torch.ones_like(w)
    with pytest.raises(InvalidArgumentError, match="LBFGS takes a closure"):
        next_update(torch.optim.LBFGS([w]))
