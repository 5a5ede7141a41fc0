"""``landscape compare``: all measurements on several checkpoints, side by side."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from landscape.errors import InvalidArgumentError, one_of
from landscape.results import Cost

from .library_options import library_options
from .measuring import SEARCH, Price, price_of_eigenpairs, print_price
from .options import CommonOptions, common_options, open_study, scale_option
from .output import as_dict, command_line, print_comparison, print_rows, print_table, to_json
from .pointwise import AUTO, RANGE_FORWARDS, automatic_ranges
from .sections import OUTPUT, WHAT, Command, option

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from landscape.problem import Problem
    from landscape.results import Differences
    from landscape.results.comparison import Comparison
    from landscape.study import Study
    from landscape.surface import Direction


@click.command("compare", cls=Command)
@library_options("compare.compare", "rho", section=WHAT, k="-k")
@click.option(
    "--range",
    "half_width",
    type=str,
    default=1.0,
    metavar="R|auto",
    help="Surfaces reach from −R to R along both axes; auto: until the loss of every checkpoint "
    "has risen to ten times its own.",
)
@click.option(
    "--points", "n", default=25, type=click.IntRange(min=2), help="Surface points along each axis."
)
@click.option("--no-test", is_flag=True, help="Leave the test split out.")
@click.option(
    "--paired",
    is_flag=True,
    help="Also differences to the first checkpoint with intervals, on the same examples and noise: "
    "at equal ρ, at equal ρ/‖w‖, in an adaptive ball, of normalised logits, on average.",
)
@option(
    "--figure", type=click.Path(), section=OUTPUT, help="Draw the contrast: .png, .pdf or .svg."
)
@option("--report", type=click.Path(), section=OUTPUT, help="Write one self-contained HTML page.")
@scale_option(OUTPUT)
@common_options
def command(
    common: CommonOptions,
    rho: float,
    k: int,
    n: int,
    half_width: str,
    no_test: bool,
    paired: bool,
    figure: str | None,
    report: str | None,
    scale: str,
) -> None:
    """Measure several checkpoints alike: loss, spectrum, sharpness, lines and surfaces.

    \b
    Examples:
      landscape compare sgd.pt sam.pt --problem digits --rho 0.2 --report contrast.html
      landscape compare SGD=run1/last.pt SAM=run2/last.pt --problem digits --rho 0.2 --paired
    """
    from landscape.compare import compare, differences
    from landscape.files import check_place
    from landscape.plots import save_figure
    from landscape.processes import is_first
    from landscape.sharpness import Ball

    Ball(rho)
    reach = None if half_width == AUTO else _half_width(half_width)
    if figure is not None:
        one_of(Path(figure).suffix, (".png", ".pdf", ".svg"), what="ending of --figure:")
    for path in filter(None, (figure, report)):
        check_place(path)
    problems = common.problems()
    if common.dry_run:
        price = _price(k, n, paired=paired, searching=reach is None)
        print_price(common, problems, lambda problem: price)
        return
    test = None if no_test or common.split == "test" else common.base_problem("test")
    with open_study(common.study) as study:
        reach = _automatic(problems, common.seed, study) if reach is None else reach
        comparison = compare(
            problems, rho=rho, k=k, n=n, half_width=reach, test=test, study=study, **common.run
        )
        first, *others = [problem.named(name) for name, problem in problems.items()]
        paired_differences = [
            differences(other, first, rho=rho, study=study, **common.run)
            for other in (others if paired else [])
        ]
    if not is_first():  # which prints and draws
        return
    _print(comparison, paired_differences, common)
    if figure is not None:
        saved = save_figure(comparison.plot(scale=scale), figure)
        click.echo(f"Figure in {', '.join(map(str, saved))}.", err=common.output_format != "table")
    if report is not None:
        comparison.report(Path(report), scale=scale, command=command_line())
        click.echo(f"Report in {report}.", err=common.output_format != "table")


def _half_width(text: str) -> float:
    try:
        reach = float(text)
    except ValueError:
        reach = math.nan
    if not (math.isfinite(reach) and reach > 0):
        msg = f"--range takes auto or a finite number above 0, half of the width; got {text}"
        raise InvalidArgumentError(msg)
    return reach


def _automatic(problems: Mapping[str, Problem], seed: int, study: Study) -> float:
    """Return a half width at which the loss of every checkpoint has risen along both axes."""
    from landscape.surface import random_plane

    def axes(problem: Problem) -> tuple[Direction, ...]:
        plane = random_plane(problem, seed)
        return plane.x, plane.y

    return max(automatic_ranges(problems, axes, seed=seed, study=study))


def _price(k: int, n: int, *, paired: bool, searching: bool) -> Price:
    from landscape.compare import N_COMPARED_LINE

    lines = 2 * N_COMPARED_LINE + 2 * RANGE_FORWARDS * searching
    others = Cost(forwards=n * n + lines + 5 + 600 * paired)
    return SEARCH * (6 if paired else 1) + price_of_eigenpairs(k) + others


def _print(comparison: Comparison, paired: Sequence[Differences], common: CommonOptions) -> None:
    if common.output_format == "json":
        models = {
            model.name: {role: as_dict(result) for role, result in model.roles().items()}
            for model in comparison.models
        }
        listed = [as_dict(difference) for difference in paired]
        click.echo(to_json({"table": comparison.table(), "models": models, "differences": listed}))
        return
    if common.output_format != "table":
        rows = [{"checkpoint": model.name, **model.facts()} for model in comparison.models]
        print_table(rows, common.output_format)
        return
    print_comparison(comparison)
    for difference in paired:
        click.echo(f"{difference.name} less {difference.against}, on the same examples and noise")
        print_rows(difference.rows(), indent="  ")
    click.echo(f"Saved in {common.study}.")
