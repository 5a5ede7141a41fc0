"""``landscape compare``: all measurements on several checkpoints, side by side."""

from __future__ import annotations

import math
from pathlib import Path

import click

from landscape.errors import InvalidArgumentError, one_of
from landscape.results import Cost

from .measuring import SEARCH, price_of_eigenpairs, print_price
from .options import CommonOptions, measuring
from .output import as_dict, print_rows, to_json


@click.command("compare")
@click.option("--rho", default=0.05, show_default=True, help="Radius of the ball.")
@click.option("-k", "k", default=1, show_default=True, help="Number of eigenvalues.")
@click.option(
    "--points",
    default=25,
    show_default=True,
    type=click.IntRange(min=2),
    help="Surface points along each axis.",
)
@click.option("--range", "half_width", default=1.0, show_default=True, help="From −RANGE to RANGE.")
@click.option("--no-test", is_flag=True, help="Leave the held-out data out.")
@click.option(
    "--paired",
    is_flag=True,
    help="Also differences to the first checkpoint with intervals, on the same examples and noise: "
    "at equal ρ, at equal ρ/‖w‖, in an adaptive ball, of normalised logits, on average.",
)
@click.option("--figure", type=click.Path(), help="Draw the contrast: .png, .pdf or .svg.")
@click.option("--report", type=click.Path(), help="Write one self-contained HTML page.")
@measuring
def command(
    common: CommonOptions,
    rho: float,
    k: int,
    points: int,
    half_width: float,
    no_test: bool,
    paired: bool,
    figure: str | None,
    report: str | None,
) -> None:
    """Measure several checkpoints alike: loss, spectrum, sharpness, lines and surfaces.

    \b
    Examples:
      landscape compare sgd.pt sam.pt --problem digits --rho 0.2 --report contrast.html
      landscape compare SGD=run1/last.pt SAM=run2/last.pt --problem digits --rho 0.2 --paired
    """
    from landscape.compare import N_COMPARED_LINE, compare, differences
    from landscape.files import check_place
    from landscape.plots import save_figure
    from landscape.sharpness import Ball
    from landscape.study import Study

    Ball(rho)
    if not (math.isfinite(half_width) and half_width > 0):
        msg = f"--range takes a finite number above 0, half of the width; got {half_width!r}"
        raise InvalidArgumentError(msg)
    if figure is not None:
        one_of(Path(figure).suffix, (".png", ".pdf", ".svg"), what="ending of --figure:")
    for path in filter(None, (figure, report)):
        check_place(path)
    task = common.task()
    problems = common.problems(common.base_problem(task))
    if common.dry_run:
        forwards = points**2 + 2 * N_COMPARED_LINE + 6
        searches = 6 if paired else 1
        forwards += 600 if paired else 0
        pairs = price_of_eigenpairs(k)
        price = Cost(
            forwards=forwards + SEARCH.forwards * searches,
            gradients=SEARCH.gradients * searches,
            hvps=SEARCH.hvps * searches + pairs.hvps,
        )
        print_price(problems, lambda problem: price, as_json=common.as_json)
        return
    test = None if no_test or common.split == "test" else common.base_problem(task, split="test")
    with Study(common.study) as study:
        comparison = compare(
            problems,
            rho=rho,
            k=k,
            n=points,
            half_width=half_width,
            seed=common.seed,
            test=test,
            study=study,
            progress=common.progress,
        )
        first, *others = [problem.named(name) for name, problem in problems.items()]
        apart = [
            differences(
                other,
                first,
                rho=rho,
                seed=common.seed,
                study=study,
                progress=common.progress,
            )
            for other in (others if paired else [])
        ]
    if common.as_json:
        models = {
            model.name: {role: as_dict(result) for role, result in model.roles().items()}
            for model in comparison.models
        }
        listed = [as_dict(found) for found in apart]
        click.echo(to_json({"table": comparison.table(), "models": models, "differences": listed}))
    else:
        print_rows(comparison.table())
        for found in apart:
            click.echo(f"{found.name} less {found.against}, on the same examples and noise")
            print_rows(found.rows(), indent="  ")
        click.echo(f"Stored in {common.study}.")
    if figure is not None:
        saved = save_figure(comparison.plot(), figure)
        click.echo(f"Drawn in {', '.join(map(str, saved))}.", err=common.as_json)
    if report is not None:
        comparison.report(Path(report))
        click.echo(f"Report in {report}.", err=common.as_json)
