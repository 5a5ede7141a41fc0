"""The linear model: closed forms against direct iteration, simulation, enumeration and SAM."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from landscape.cli import theory as verb
from landscape.errors import InvalidArgumentError, LandscapeError, NonFiniteError
from landscape.optim import SAM
from landscape.theory import (
    DESCENTS,
    DESIGNS,
    RISKS,
    SIGNALS,
    Modes,
    edge_of_stability,
    kernel_regression,
    least_squares,
    normalised_path,
    polynomial_kernel,
    random_design,
    rbf_kernel,
    risks,
    simulate,
    stability_limit,
    stochastic_sam,
    trade_off,
    two_cycle_amplitude,
)

SIGMA = 0.7
SHAPES = {
    "tall": ("gaussian", 12, 5),
    "wide": ("decaying", 6, 9),
    "deficient": ("deficient", 12, 6),
}


def designs():
    return pytest.mark.parametrize("shape", SHAPES)


def drawn(shape):
    name, n, d = SHAPES[shape]
    return random_design(name, n=n, d=d, seed=3)


def iterated(x, w0, *, eta, rho, iterations, risk):
    """Bias² and variance of SAM, iterated on the mean and on the matrix that takes ε to w."""
    n, d = x.shape
    hessian, metric = x.T @ x / n, x / np.sqrt(n) if risk == "in-sample" else np.eye(d)
    mean, spread = np.zeros(d), np.zeros((d, n))
    found = [(np.sum((metric @ w0) ** 2), 0.0)]
    for _ in range(iterations):
        gradient, pull = hessian @ (mean - w0), hessian @ spread - x.T / n
        mean = mean - eta * (gradient + rho * hessian @ gradient)
        spread = spread - eta * (pull + rho * hessian @ pull)
        bias, noise = metric @ (mean - w0), SIGMA * metric @ spread
        found.append((np.sum(bias**2), np.sum(noise**2)))
    return np.array(found).T


# --- least squares -----------------------------------------------------------------------------


@designs()
@pytest.mark.parametrize("risk", RISKS)
@pytest.mark.parametrize(("eta", "rho"), [(0.4, 0.0), (1.9, 0.0), (0.4, 1.0), (0.6, 2.0)])
def test_the_closed_form_is_the_iteration(shape, risk, eta, rho):
    x, w0 = drawn(shape)
    modes = least_squares(x, w0, noise=SIGMA, risk=risk)
    found = risks(modes, 50, eta=eta, rho=rho)
    bias2, variance = iterated(x, w0, eta=eta, rho=rho, iterations=50, risk=risk)
    np.testing.assert_allclose(found.bias2, bias2, rtol=1e-12, atol=1e-12 * bias2[0])
    np.testing.assert_allclose(found.variance, variance, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(found.risk, found.bias2 + found.variance)


@designs()
@pytest.mark.parametrize("risk", RISKS)
def test_ten_thousand_runs_agree_within_three_standard_errors(shape, risk):
    x, w0 = drawn(shape)
    at = list(range(1, 21))
    options = {"noise": SIGMA, "eta": 0.3, "rho": 1.5}
    found = simulate(x, w0, at=at, runs=10_000, risk=risk, seed=0, **options)
    modes = least_squares(x, w0, noise=SIGMA, risk=risk)
    exact = risks(modes, 20, eta=0.3, rho=1.5)
    assert found.runs == 10_000
    for name in ("bias2", "variance", "risk"):
        z = (getattr(found, name) - getattr(exact, name)[at]) / getattr(found, f"{name}_se")
        assert np.abs(z).max() < 3.0, (name, z)


def test_the_standard_errors_are_those_of_the_estimates():
    """Over many seeds the distance from the truth, in standard errors, is standard normal."""
    x, w0 = drawn("tall")
    exact = risks(least_squares(x, w0, noise=SIGMA), 10, eta=0.3, rho=1.0)
    z = []
    for seed in range(300):
        options = {"noise": SIGMA, "eta": 0.3, "rho": 1.0, "at": [10], "seed": seed}
        found = simulate(x, w0, runs=400, **options)
        names = ("bias2", "variance", "risk")
        gaps = [getattr(found, name)[0] - getattr(exact, name)[10] for name in names]
        z.append([gap / getattr(found, f"{n}_se")[0] for gap, n in zip(gaps, names, strict=True)])
    assert np.all(np.abs(np.mean(z, axis=0)) < 3.5 / np.sqrt(300))
    assert np.all(np.abs(np.std(z, axis=0) - 1.0) < 3.5 / np.sqrt(2 * 300))


def test_simulation_of_a_seed_is_one():
    x, w0 = random_design("gaussian", n=8, d=8, seed=5)
    options = {"noise": 1.0, "eta": 0.1, "at": [3], "runs": 8}
    first, again = (simulate(x, w0, seed=5, **options) for _ in range(2))
    assert first.risk.tolist() == again.risk.tolist()
    assert first.risk.tolist() != simulate(x, w0, seed=6, **options).risk.tolist()


def test_a_design_of_the_same_seed_is_not_the_noise():
    """Were the first noise the design itself, the variance would come out 2.75 times as large."""
    ratios = []
    for seed in range(400):
        x, w0 = random_design("gaussian", n=8, d=1, seed=seed)
        found = simulate(x, w0, noise=1.0, eta=0.5, at=[1], runs=4, seed=seed)
        exact = risks(least_squares(x, w0, noise=1.0), 1, eta=0.5)
        ratios.append(found.variance[0] / exact.variance[1])
    assert abs(np.mean(ratios) - 1.0) < 3.0 * np.std(ratios) / np.sqrt(len(ratios))


def test_a_small_curvature_loses_no_digits():
    modes = Modes(curvatures=[1.0, 1e-14], bias_weights=[0, 0], variance_weights=[0.0, 1e14])
    found = risks(modes, 1000, eta=0.5)
    assert found.variance[1000] == pytest.approx(1e14 * (500 * 1e-14) ** 2, rel=1e-10)


def test_truth_outside_the_row_space_is_never_reached():
    x, w0 = drawn("deficient")
    modes = least_squares(x, w0, noise=0.0, risk="parameter")
    outside = w0 - np.linalg.pinv(x) @ x @ w0
    assert modes.curvatures.size == np.linalg.matrix_rank(x) == 3
    assert modes.unreachable == pytest.approx(outside @ outside, rel=1e-10)
    found = risks(modes, 100_000, eta=0.5)
    assert found.bias2[-1] == pytest.approx(outside @ outside, rel=1e-10)
    assert least_squares(x, w0, noise=0.0).unreachable == 0.0


# --- stability ---------------------------------------------------------------------------------


@given(top=st.floats(1e-3, 1e3), rho=st.floats(0, 10))
def test_the_two_limits_are_one_statement(top, rho):
    eta = stability_limit(top, rho=rho)
    assert edge_of_stability(eta, rho=rho) == pytest.approx(top, rel=1e-9)


@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_the_iteration_shrinks_below_the_limit_and_grows_above(rho):
    x, w0 = drawn("tall")
    options = {"rho": rho, "iterations": 4000, "risk": "parameter"}
    limit = stability_limit(1.0, rho=rho)
    assert iterated(x, w0, eta=0.99 * limit, **options)[0, -1] < 1e-3
    assert iterated(x, w0, eta=1.01 * limit, **options)[0, -1] > 1e3
    modes = least_squares(x, w0, noise=0.0)
    risks(modes, 1, eta=0.99 * limit, rho=rho)
    with pytest.raises(InvalidArgumentError, match=f"take eta below {limit:.4g}"):
        risks(modes, 1, eta=1.01 * limit, rho=rho)


# --- the trade-off -----------------------------------------------------------------------------


@given(
    curvatures=st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=6),
    rho=st.floats(0.01, 10.0),
    share=st.floats(0.01, 1.0),
    seed=st.integers(0, 99),
)
def test_sam_has_lower_bias_and_higher_variance_at_every_iteration(curvatures, rho, share, seed):
    bias, variance = np.random.default_rng(seed).uniform(0.1, 1.0, (2, len(curvatures)))
    modes = Modes(curvatures=curvatures, bias_weights=bias, variance_weights=variance)
    eta = 0.999 * share / (modes.top + rho * modes.top**2)
    pair = trade_off(modes, 60, eta=eta, rho=rho)
    assert pair.proved
    assert pair.lower_bias
    assert pair.higher_variance
    assert pair.sam.bias2[1] < pair.gd.bias2[1]
    assert pair.sam.variance[1] > pair.gd.variance[1]


def test_beyond_the_bound_the_order_can_be_lost_and_is_said_to_be():
    modes = Modes(curvatures=[1.0], bias_weights=[1.0], variance_weights=[1.0])
    pair = trade_off(modes, 5, eta=0.9, rho=1.1)  # SAM leaves −0.89 of the error, descent 0.1
    assert pair.largest_step == pytest.approx(1.89)
    assert (pair.proved, pair.lower_bias) == (False, False)


def test_sam_is_ahead_early_and_behind_late():
    x, w0 = random_design("gaussian", seed=0)
    pair = trade_off(least_squares(x, w0, noise=1.0), 100, eta=0.1, rho=2.0)
    sam, gd = pair.sam.risk, pair.gd.risk
    k = pair.ahead_until
    assert 0 < k < 100
    assert np.all(sam[1 : k + 1] < gd[1 : k + 1])
    assert sam[k + 1] >= gd[k + 1]
    assert np.all(sam[k + 1 :] >= gd[k + 1 :])
    assert pair.sam.best.risk == sam.min() < gd.min() == pair.gd.best.risk
    assert gd[pair.gd.best.iteration] == gd.min()
    assert pair.sam.best.gradients == 2 * pair.sam.best.iteration
    assert pair.gd.best.gradients == pair.gd.best.iteration


def test_without_noise_sam_is_always_ahead():
    x, w0 = random_design("gaussian", seed=0)
    assert trade_off(least_squares(x, w0, noise=0.0), 80, eta=0.1, rho=2.0).ahead_until == 80


@pytest.mark.parametrize(("signal", "wins"), [([1.0, 0.0], True), ([0.0, 1.0], False)])
def test_which_stops_better_depends_on_where_the_signal_lies(signal, wins):
    """SAM hurries the sharp mode: good if the signal is there, bad if only noise is."""
    modes = Modes(curvatures=[1.0, 0.3], bias_weights=signal, variance_weights=[0.1, 0.1])
    pair = trade_off(modes, 5000, eta=0.01, rho=2.0)
    assert not pair.gd.still_falling
    assert (pair.sam.best.risk < pair.gd.best.risk) is wins


@given(d=st.floats(0.01, 5.0), eta=st.floats(0.01, 1.0), rho=st.floats(0.01, 5.0))
def test_at_equal_cost_sam_is_faster_only_above_one_curvature(d, eta, rho):
    modes = Modes(curvatures=[d], bias_weights=[1.0], variance_weights=[0.0])
    eta = min(eta, 0.99 * stability_limit(d, rho=rho))
    pair = trade_off(modes, 2, eta=eta, rho=rho)
    sam, gd = pair.sam.bias2[1], pair.gd.bias2[2]
    if abs(sam - gd) < 1e-9 * gd:
        return
    assert pair.n_faster == int(sam < gd)
    assert pair.faster_from == pytest.approx(1 / (eta + rho))
    if pair.proved:
        assert (sam < gd) == (d > pair.faster_from)
    elif sam < gd:
        assert d > pair.faster_from


# --- kernels -----------------------------------------------------------------------------------


def points(n=9, d=2):
    return np.random.default_rng(1).standard_normal((n, d))


def kernels():
    x = points()
    return {
        "rbf": rbf_kernel(x, x, length=1.0),
        "polynomial": polynomial_kernel(x, x, degree=2),  # rank 6 of 9
    }


@pytest.mark.parametrize("name", ["rbf", "polynomial"])
@pytest.mark.parametrize("descent", DESCENTS)
def test_kernel_regression_is_the_iteration_on_predictions(name, descent):
    k, n = kernels()[name], 9
    f0 = np.random.default_rng(2).standard_normal(n)
    modes = kernel_regression(k, f0, noise=SIGMA, descent=descent)
    curvature = k / n if descent == "function" else k @ k / n
    eta = 0.5 * stability_limit(modes.top, rho=0.2)
    found = risks(modes, 30, eta=eta, rho=0.2)
    mean, spread = np.zeros(n), np.zeros((n, n))
    for step in range(1, 31):
        shrink = eta * (curvature + 0.2 * curvature @ curvature)
        mean, spread = mean - shrink @ (mean - f0), spread - shrink @ (spread - np.eye(n))
        assert found.bias2[step] == pytest.approx(np.sum((mean - f0) ** 2) / n, rel=1e-11)
        assert found.variance[step] == pytest.approx(SIGMA**2 * np.sum(spread**2) / n, rel=1e-11)


def test_coefficients_descend_their_own_loss():
    """SAM on ‖y − Kα‖²/2n, the gradient that of the loss, against the modes of κ²/n."""
    k, f0 = kernels()["rbf"], np.linspace(-1, 1, 9)
    modes = kernel_regression(k, f0, noise=0.0, descent="coefficients")
    alpha, rho = np.zeros(9), 0.3
    eta = 0.5 * stability_limit(modes.top, rho=rho)
    found = risks(modes, 20, eta=eta, rho=rho)
    for step in range(1, 21):
        gradient = k @ (k @ alpha - f0) / 9
        alpha = alpha - eta * k @ (k @ (alpha + rho * gradient) - f0) / 9
        assert found.bias2[step] == pytest.approx(np.mean((k @ alpha - f0) ** 2), rel=1e-11)


def test_a_linear_kernel_is_least_squares():
    x, w0 = drawn("deficient")
    kernel = polynomial_kernel(x, x, degree=1, offset=0.0)
    by_kernel = risks(kernel_regression(kernel, x @ w0, noise=SIGMA), 40, eta=0.5, rho=1.0)
    direct = risks(least_squares(x, w0, noise=SIGMA), 40, eta=0.5, rho=1.0)
    np.testing.assert_allclose(by_kernel.bias2, direct.bias2, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(by_kernel.variance, direct.variance, rtol=1e-10)


def test_kernels_by_their_definition():
    a, b = points(3), points(4)[::-1]
    rbf, polynomial = rbf_kernel(a, b, length=0.8), polynomial_kernel(a, b, degree=3, offset=0.5)
    for i, j in itertools.product(range(3), range(4)):
        assert rbf[i, j] == pytest.approx(np.exp(-np.sum((a[i] - b[j]) ** 2) / 2 / 0.8**2))
        assert polynomial[i, j] == pytest.approx((a[i] @ b[j] + 0.5) ** 3)


# --- stochastic SAM ----------------------------------------------------------------------------


def test_stochastic_moments_are_those_of_all_orders():
    """Every order of four draws from three examples, each step by the gradients of one loss."""
    rng = np.random.default_rng(4)
    x, y, eta, rho = rng.standard_normal((3, 2)), rng.standard_normal(3), 0.1, 0.4
    ends = []
    for order in itertools.product(range(3), repeat=4):
        w = np.zeros(2)
        for i in order:
            gradient = x[i] * (x[i] @ w - y[i])
            w = w - eta * x[i] * (x[i] @ (w + rho * gradient) - y[i])
        ends.append(w)
    found = stochastic_sam(x, y, eta=eta, rho=rho, iterations=4)
    np.testing.assert_allclose(found.means[4], np.mean(ends, axis=0), rtol=1e-12)
    covariance = np.cov(np.array(ends).T, bias=True)
    np.testing.assert_allclose(found.covariances[4], covariance, rtol=1e-11)
    assert found.spread[4] == pytest.approx(np.trace(covariance), rel=1e-11)


def test_the_mean_tends_to_weighted_least_squares_and_not_to_least_squares():
    x, w0 = random_design("gaussian", n=15, d=4, seed=2)
    y = x @ w0 + np.random.default_rng(3).standard_normal(15)
    found = stochastic_sam(x, y, eta=0.2, rho=0.3, iterations=2000)
    roots = np.sqrt(1 + 0.3 * np.sum(x**2, axis=1))
    weighted, *_ = np.linalg.lstsq(x * roots[:, None], y * roots, rcond=None)
    plain, *_ = np.linalg.lstsq(x, y, rcond=None)
    np.testing.assert_allclose(found.limit, weighted, rtol=1e-9)
    np.testing.assert_allclose(found.means[-1], weighted, rtol=1e-9)
    assert np.linalg.norm(weighted - plain) > 1e-3


def test_one_example_is_full_batch_sam():
    x, y = np.array([[1.0, 2.0]]), np.array([3.0])
    found = stochastic_sam(x, y, eta=0.05, rho=0.1, iterations=10)
    w = np.zeros(2)
    for _ in range(10):
        w = w - 0.05 * x[0] * (x[0] @ (w + 0.1 * x[0] * (x[0] @ w - 3.0)) - 3.0)
    np.testing.assert_allclose(found.means[-1], w, rtol=1e-12)
    assert found.spread.max() < 1e-30


# --- normalised SAM, and the optimizer of this project -----------------------------------------


def test_normalised_sam_ends_in_its_two_cycle():
    x, _ = random_design("gaussian", n=20, d=4, seed=1)
    hessian = 3.0 * x.T @ x / 20
    top = np.linalg.eigh(hessian)[1][:, -1]
    path = normalised_path(hessian, np.ones(4), eta=0.2, rho=0.3, iterations=3000)
    a = two_cycle_amplitude(3.0, eta=0.2, rho=0.3)
    assert a == pytest.approx(0.2 * 0.3 * 3 / (2 - 0.2 * 3), rel=1e-14)
    sign = np.sign(path[-1] @ top)
    np.testing.assert_allclose(path[-1], sign * a * top, atol=1e-10)
    np.testing.assert_allclose(path[-2], -sign * a * top, atol=1e-10)


def test_at_the_minimum_normalised_sam_stays():
    path = normalised_path(np.eye(2), np.zeros(2), eta=0.1, rho=1.0, iterations=3)
    assert not path.any()


def test_the_optimizer_follows_the_normalised_path():
    hessian, start = np.diag([2.0, 0.5]), np.array([1.0, -1.0])
    path = normalised_path(hessian, start, eta=0.3, rho=0.2, iterations=50)
    h, w = torch.tensor(hessian), torch.nn.Parameter(torch.tensor(start))
    optimizer = SAM([w], torch.optim.SGD, rho=0.2, lr=0.3)

    def closure():
        optimizer.zero_grad()
        loss = w @ h @ w / 2
        loss.backward()
        return loss

    for expected in path[1:]:
        optimizer.step(closure)
        np.testing.assert_allclose(w.detach().numpy(), expected, rtol=1e-10, atol=1e-13)


@designs()
def test_the_optimizer_has_the_bias_and_variance_of_the_closed_form(shape):
    """Trained on Xw₀ it shows the bias; on the noise of one example, a part of the variance."""
    x, w0 = drawn(shape)
    found = risks(least_squares(x, w0, noise=SIGMA), 8, eta=0.3, rho=1.0)
    n = len(x)
    mean = trained(x, x @ w0, eta=0.3, rho=1.0, iterations=8)
    bias = np.sum((x @ (mean - w0)) ** 2) / n
    columns = [trained(x, SIGMA * unit, eta=0.3, rho=1.0, iterations=8) for unit in np.eye(n)]
    variance = sum(np.sum((x @ column) ** 2) for column in columns) / n
    assert bias == pytest.approx(found.bias2[8], rel=1e-10)
    assert variance == pytest.approx(found.variance[8], rel=1e-10)


def trained(x, y, *, eta, rho, iterations):
    inputs, targets = torch.tensor(x), torch.tensor(y)
    w = torch.nn.Parameter(torch.zeros(x.shape[1], dtype=torch.float64))
    optimizer = SAM([w], torch.optim.SGD, rho=rho, normalised=False, lr=eta)

    def closure():
        optimizer.zero_grad()
        loss = ((targets - inputs @ w) ** 2).mean() / 2
        loss.backward()
        return loss

    for _ in range(iterations):
        optimizer.step(closure)
    return w.detach().numpy()


# --- designs -----------------------------------------------------------------------------------


def test_a_sharp_signal_lies_in_the_modes_of_high_curvature():
    shares = {}
    for signal in SIGNALS:
        x, w0 = random_design("decaying", signal=signal, seed=1)
        shares[signal] = np.sum((x @ w0) ** 2) / 40  # Σ dᵢ(uᵢᵀw₀)², the curvature along w₀
        assert np.linalg.norm(w0) == pytest.approx(1.0, rel=1e-12)
    _, z = random_design("decaying", signal="even", seed=1)
    hurried = x.T @ x @ z / 40 + 0.1 * z
    np.testing.assert_allclose(
        random_design("decaying", seed=1)[1], hurried / np.linalg.norm(hurried), rtol=1e-9
    )
    assert shares["sharp"] > 2 * shares["even"]


@pytest.mark.parametrize("name", DESIGNS)
@pytest.mark.parametrize(("n", "d"), [(12, 6), (6, 12), (1, 1)])
def test_designs_have_their_spectrum(name, n, d):
    x, w0 = random_design(name, n=n, d=d, seed=7)
    curvatures = least_squares(x, w0, noise=1.0).curvatures
    assert x.shape == (n, d)
    assert curvatures[0] == pytest.approx(1.0, rel=1e-12)
    assert np.linalg.norm(w0) == pytest.approx(1.0, rel=1e-12)
    rank = max(1, min(n, d) // 2) if name == "deficient" else min(n, d)
    assert curvatures.size == rank
    if name == "decaying":
        np.testing.assert_allclose(curvatures, 1 / np.arange(1, rank + 1) ** 2.0, rtol=1e-10)


# --- bad input ---------------------------------------------------------------------------------

EYE, ONES = np.eye(2), np.ones(2)
ONE = Modes(curvatures=[1.0], bias_weights=[1.0], variance_weights=[1.0])
BAD = {
    "unstable": (lambda: risks(ONE, 5, eta=2.0), "diverges.*take eta below 2, or a smaller rho"),
    "rho": (lambda: risks(ONE, 5, eta=0.1, rho=-1), "rho must be .* of at least 0, got -1"),
    "no rho": (lambda: trade_off(ONE, 5, eta=0.1, rho=0), "rho must be .* above zero, got 0"),
    "eta": (lambda: risks(ONE, 5, eta=0), "eta must be a finite number above zero"),
    "iterations": (lambda: risks(ONE, 0, eta=0.1), "iterations must be .* at least 1, got 0"),
    "part": (lambda: risks(ONE, 1.5, eta=0.1), "iterations must be a whole number"),
    "noise": (lambda: least_squares(EYE, ONES, noise=-1), "noise must be .*, got -1"),
    "truth": (lambda: least_squares(EYE, np.ones(3), noise=1), r"truth .* \(3,\); expected \(2\)"),
    "design": (lambda: least_squares(ONES, ONES, noise=1), r"design .* \(2,\); expected \(any"),
    "empty": (lambda: least_squares(np.ones((0, 2)), ONES, noise=1), r"design .* \(0, 2\)"),
    "nothing": (lambda: least_squares(0 * EYE, ONES, noise=1), "design is zero"),
    "risk": (lambda: least_squares(EYE, ONES, noise=1, risk="parameters"), "nearest: parameter"),
    "weights": (
        lambda: Modes(curvatures=[1.0, 1.0], bias_weights=[1.0], variance_weights=[1.0, 1.0]),
        r"bias_weights has the shape \(1,\); expected \(2\)",
    ),
    "kernel": (lambda: kernel_regression(np.ones((2, 3)), ONES, noise=1), r"expected \(2, 2\)"),
    "asymmetric": (
        lambda: kernel_regression(np.array([[1.0, 0.5], [0.0, 1.0]]), ONES, noise=1),
        "kernel is not symmetric: entries differ by 0.5",
    ),
    "indefinite": (
        lambda: kernel_regression(np.diag([1.0, -1.0]), ONES, noise=1),
        "not positive semidefinite: its smallest eigenvalue is -1",
    ),
    "descent": (lambda: kernel_regression(EYE, ONES, noise=1, descent="x"), "unknown descent 'x'"),
    "length": (lambda: rbf_kernel(EYE, EYE, length=0), "length must be .*, got 0"),
    "degree": (lambda: polynomial_kernel(EYE, EYE, degree=0), "degree must be .*, got 0"),
    "points": (lambda: rbf_kernel(EYE, np.ones((2, 3)), length=1), r"expected \(any, 2\)"),
    "runs": (
        lambda: simulate(EYE, ONES, noise=1, eta=0.1, at=[1], runs=2),
        "runs must be .*, got 2",
    ),
    "at": (
        lambda: simulate(EYE, ONES, noise=1, eta=0.1, at=[0]),
        "iteration in at must be .*, got 0",
    ),
    "seed": (
        lambda: simulate(EYE, ONES, noise=1, eta=0.1, at=[1], seed=-1),
        "seed must be .*, got -1",
    ),
    "simulated": (lambda: simulate(EYE, ONES, noise=1, eta=9, at=[1]), "eta = 9 .* diverges"),
    "targets": (lambda: stochastic_sam(EYE, np.ones(3), eta=1, iterations=1), "targets has"),
    "stochastic": (lambda: stochastic_sam(EYE, ONES, eta=4, iterations=1), "take eta below 4"),
    "cycle": (lambda: two_cycle_amplitude(1.0, eta=2, rho=1), "take eta below 2"),
    "hessian": (
        lambda: normalised_path(np.triu(np.ones((2, 2))), ONES, eta=0.1, rho=1, iterations=1),
        "hessian is not symmetric",
    ),
    "name": (lambda: random_design("gausian"), "nearest: gaussian"),
    "signal": (lambda: random_design("gaussian", signal="evn"), "unknown signal .*nearest: even"),
    "n": (lambda: random_design("gaussian", n=0), "n must be .*, got 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case):
    call, message = BAD[case]
    with pytest.raises(InvalidArgumentError, match=message):
        call()


def test_what_is_not_finite_is_refused():
    with pytest.raises(NonFiniteError, match="design holds 1 values that are not finite"):
        least_squares(np.array([[1.0, np.nan]]), ONES, noise=1)
    with pytest.raises(LandscapeError, match=r"iterations must be .*, got nan"):
        risks(ONE, float("nan"), eta=0.1)


# --- landscape theory --------------------------------------------------------------------------


def test_the_command_prints_the_best_stopping_times(run):
    done = run("theory", "--rho", "2", "--eta", "0.1", "--noise", "1", "--runs", "200")
    x, w0 = random_design("gaussian", n=40, d=20, seed=0)
    pair = trade_off(least_squares(x, w0, noise=1.0), 100, eta=0.1, rho=2.0)
    assert done.code == 0
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    gd, sam = pair.gd.best, pair.sam.best
    assert f"best stopping time, iterations {gd.iteration} {sam.iteration}" in lines
    assert f"gradient evaluations {gd.iteration} {2 * sam.iteration}" in lines
    assert f"in-sample risk there {gd.risk:.4g} {sam.risk:.4g}" in lines
    assert "SAM has lower bias² and higher variance at every iteration" in done.out
    assert f"up to iteration {pair.ahead_until}, and no longer" in done.out
    assert "200 Monte Carlo runs each" in done.out


def test_a_risk_that_still_falls_is_said_to(run):
    x, w0 = random_design("gaussian", seed=0)
    pair = trade_off(least_squares(x, w0, noise=1.0), 10, eta=0.1, rho=2.0)
    assert (pair.gd.still_falling, pair.sam.still_falling) == (True, False)
    done = run("theory", "--iterations", "10", "--runs", "0")
    assert "gradient descent's risk still falls at the end: raise --iterations" in done.out
    assert "still falls" not in run("theory", "--runs", "0").out


def test_without_noise_there_is_nothing_to_simulate(run):
    done = run("theory", "--noise", "0")
    assert "Without noise SAM has lower bias² at every iteration" in done.out
    assert "Monte Carlo" not in done.out


def test_the_command_prints_json(run):
    done = run("theory", "--design", "deficient", "--risk", "parameter", "--runs", "0", "--json")
    found = json.loads(done.out)
    x, w0 = random_design("deficient", n=40, d=20, seed=0)
    modes = least_squares(x, w0, noise=1.0, risk="parameter")
    pair = trade_off(modes, 100, eta=0.1, rho=2.0)
    assert found["sam"]["risk"] == pair.sam.best.risk
    assert found["gd"]["iteration"] == pair.gd.best.iteration
    assert found["settings"]["design"] == "deficient"
    assert "largest_z" not in found


def test_the_command_says_what_is_wrong(run):
    done = run("theory", "--eta", "1", "--rho", "2")
    assert (done.code, done.out) == (2, "")
    assert "take eta below 0.6667" in done.err
    for option in ("--rho=-1", "--noise=-1", "--iterations=0", "--n=0", "--seed=-1", "--runs=1"):
        done = run("theory", option)
        assert (done.code, done.out) == (2, ""), option
        name, value = option[2:].split("=")
        assert f"{name} must be" in done.err
        assert f"got {value}" in done.err


def test_the_command_knows_the_names_of_the_library():
    assert (verb.DESIGNS, verb.RISKS, verb.SIGNALS) == (DESIGNS, RISKS, SIGNALS)
