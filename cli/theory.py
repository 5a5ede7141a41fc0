"""``landscape theory``: gradient descent and SAM on a linear model, in closed form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .output import print_rows, to_json

if TYPE_CHECKING:
    from landscape.theory import Simulated, Stop, TradeOff

N_SLIDER = 20
N_POINTS = 20
DESIGNS = ("gaussian", "decaying", "deficient")
SIGNALS = ("sharp", "even")
RISKS = ("in-sample", "parameter")


@click.command("theory")
@click.option("--rho", default=2.0, help="SAM's ρ, not normalised; above 0.")
@click.option("--eta", default=0.1, help="Step size; the largest curvature is 1.")
@click.option("--noise", default=1.0, help="Standard deviation σ of the noise.")
@click.option("--n", default=40, help="Number of examples.")
@click.option("--d", default=20, help="Number of weights.")
@click.option(
    "--design",
    type=click.Choice(DESIGNS),
    default="gaussian",
    help="gaussian; decaying: curvatures 1/i²; deficient: of half the rank.",
)
@click.option(
    "--signal",
    type=click.Choice(SIGNALS),
    default="sharp",
    help="sharp: most of the truth where the curvature is high, which favours SAM; even: anywhere.",
)
@click.option(
    "--risk",
    type=click.Choice(RISKS),
    default="in-sample",
    help="in-sample: ‖X(w − w₀)‖²/n; parameter: ‖w − w₀‖².",
)
@click.option("--iterations", default=100, help="How far to go.")
@click.option("--runs", default=2000, help="Monte Carlo runs; 0: none.")
@click.option("--seed", default=0, help="Random seed of design, truth and noise.")
@click.option(
    "--output",
    "-o",
    default=None,
    type=click.Path(),
    help="Draw it: .png, .pdf or .svg; .html has a slider over ρ.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def command(output: str | None, as_json: bool, runs: int, **options: Any) -> None:
    """Bias², variance and risk of gradient descent and SAM at every iteration, and when to stop.

    Least squares from zero on a random design. SAM is the unnormalised one, which has a closed
    form: w − η∇L(w + ρ∇L(w)). Nothing is stored.

    \b
    Examples:
      landscape theory -o theory.png
      landscape theory --design deficient --rho 5 --risk parameter -o theory.html
    """
    from landscape.files import check_place

    if output is not None:
        check_place(output)
    pair, simulated = _worked_out(options, runs=runs)
    if output is not None:
        _draw(pair, simulated, options, output=output)
    if as_json:
        click.echo(to_json(_summary(pair, simulated) | {"settings": options | {"runs": runs}}))
        return
    _print(pair, simulated)
    if output is not None:
        click.echo(f"Drawn in {output}.")


def _worked_out(options: dict[str, Any], *, runs: int) -> tuple[TradeOff, list[Simulated]]:
    from landscape.theory import least_squares, random_design, simulate, trade_off

    seed, noise, risk = options["seed"], options["noise"], options["risk"]
    drawn = {name: options[name] for name in ("n", "d", "signal", "seed")}
    design, truth = random_design(options["design"], **drawn)
    modes = least_squares(design, truth, noise=noise, risk=risk)
    pair = trade_off(modes, options["iterations"], eta=options["eta"], rho=options["rho"])
    # Without noise there is nothing to draw.
    if runs == 0 or noise == 0:
        return pair, []
    at = _spread_out(options["iterations"])
    common = {"noise": noise, "eta": options["eta"], "risk": risk, "runs": runs, "seed": seed}
    return pair, [
        simulate(design, truth, rho=rho, at=at, **common) for rho in (0.0, options["rho"])
    ]


def _spread_out(iterations: int) -> list[int]:
    import numpy as np

    return sorted({round(time) for time in np.geomspace(1, iterations, N_POINTS)})


def _draw(
    pair: TradeOff, simulated: list[Simulated], options: dict[str, Any], *, output: str
) -> None:
    from landscape.plots import explore_theory, plot_theory, save_figure

    if Path(output).suffix.lower() in {".html", ".htm"}:
        pairs, shown = _slider(pair)
        figure = explore_theory(pairs, simulated=simulated, shown=shown)
    else:
        title = (
            f"Least squares, {options['design']} design, {options['signal']} signal, "
            f"n = {options['n']}, d = {options['d']}"
        )
        figure = plot_theory(pair, simulated=simulated, title=f"{title}, σ = {options['noise']:g}")
    save_figure(figure, output)


def _slider(pair: TradeOff) -> tuple[list[TradeOff], int]:
    """Return the pairs of a slider over ρ, up to where SAM nearly diverges, and the one asked."""
    from landscape.theory import trade_off

    eta, top, last = pair.gd.eta, pair.modes.top, pair.gd.bias2.size - 1
    limit = (2.0 / eta - top) / top**2
    reach = min(2.5 * pair.sam.rho, 0.5 * (pair.sam.rho + limit))
    rhos = sorted({pair.sam.rho, *(reach * (k + 1) / N_SLIDER for k in range(N_SLIDER))})
    pairs = [trade_off(pair.modes, last, eta=eta, rho=rho) for rho in rhos]
    return pairs, rhos.index(pair.sam.rho)


def _print(pair: TradeOff, simulated: list[Simulated]) -> None:
    from landscape.plots.style import capital
    from landscape.plots.theory import fast_modes, order_of
    from landscape.wording import number

    stops = (pair.gd.best, pair.sam.best)
    ends = (pair.gd.at(pair.gd.bias2.size - 1), pair.sam.at(pair.sam.bias2.size - 1))
    rows = [
        ("", "gradient descent", f"SAM, ρ = {pair.sam.rho:g}"),
        ("best stopping time, iterations", *(str(stop.iteration) for stop in stops)),
        ("gradient evaluations", *(str(stop.gradients) for stop in stops)),
        (f"{pair.gd.risk_of} risk there", *(number(stop.risk) for stop in stops)),
        ("  bias²", *(number(stop.bias2) for stop in stops)),
        ("  variance", *(number(stop.variance) for stop in stops)),
        (f"risk after {ends[0].iteration}", *(number(end.risk) for end in ends)),
    ]
    print_rows(rows)
    for name, curve in (("gradient descent", pair.gd), ("SAM", pair.sam)):
        if curve.still_falling:
            click.echo(f"{name}'s risk still falls at the end: raise --iterations.")
    click.echo(f"{capital(order_of(pair))}.")
    click.echo(f"{_ahead(pair)}.")
    click.echo(
        f"At equal cost SAM shrinks the bias more only where the curvature is above 1/(η + ρ) = "
        f"{number(pair.faster_from)}: {fast_modes(pair)} modes."
    )
    if simulated:
        click.echo(
            f"{simulated[0].runs:,} Monte Carlo runs each: the largest of "
            f"{3 * sum(found.risk.size for found in simulated)} differences from the closed form "
            f"is {number(_largest_z(pair, simulated))} standard errors."
        )


def _ahead(pair: TradeOff) -> str:
    last = pair.gd.bias2.size - 1
    if pair.ahead_until == 0:
        return "SAM's risk is not below that of gradient descent after the first iteration"
    ending = "" if pair.ahead_until == last else ", and no longer after the next"
    return f"SAM's risk is the lower one up to iteration {pair.ahead_until}{ending}"


def _largest_z(pair: TradeOff, simulated: list[Simulated]) -> float:
    import numpy as np

    largest = 0.0
    for found in simulated:
        curve = pair.sam if found.rho > 0 else pair.gd
        for name in ("bias2", "variance", "risk"):
            exact = getattr(curve, name)[found.iterations.astype(int)]
            error = getattr(found, f"{name}_se")
            gap = np.abs(getattr(found, name) - exact)
            # Without noise there is nothing random, and no standard error to divide by.
            noisy = error > 1e-12 * np.abs(exact)
            largest = max(largest, float(np.max(gap[noisy] / error[noisy], initial=0.0)))
    return largest


def _summary(pair: TradeOff, simulated: list[Simulated]) -> dict[str, Any]:
    curves = {"gd": _stop(pair.gd.best), "sam": _stop(pair.sam.best)}
    names = ("largest_step", "proved", "lower_bias", "higher_variance", "ahead_until")
    facts = {name: getattr(pair, name) for name in (*names, "faster_from")}
    return curves | facts | ({"largest_z": _largest_z(pair, simulated)} if simulated else {})


def _stop(stop: Stop) -> dict[str, Any]:
    names = ("iteration", "gradients", "risk", "bias2", "variance")
    return {name: getattr(stop, name) for name in names}
