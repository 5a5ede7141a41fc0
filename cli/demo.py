"""``landscape demo``: the whole job on embedded data, from training to the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .output import command_line, print_comparison
from .threads import compare_before_work, threads_option, use_threads

if TYPE_CHECKING:
    from landscape.problem import Task
    from landscape.results.comparison import Comparison

RHO = 0.2


@click.command("demo")
@click.option("--output", "-o", default="demo", type=click.Path(), help="Folder to fill.")
@click.option("--epochs", default=40, help="Epochs of each training.")
@click.option("--points", default=25, help="Surface points along each axis.")
@click.option("--seed", default=0, help="Random seed.")
@threads_option
@click.option("--quiet", "-q", is_flag=True, help="No progress bars.")
def command(
    output: str, epochs: int, points: int, seed: int, threads: str | None, quiet: bool
) -> None:
    """Train a small ResNet on real 8×8 digits with SGD and with SAM, measure, draw, report.

    Both start from the same weights and see the data in the same order. What is done already is
    not done again. Takes a few minutes on two cores; needs the extra landscape-sharpness[demo].

    \b
    Example:
      landscape demo -o demo
    """
    from landscape.compare import compare
    from landscape.plots import save_figure
    from landscape.problem import load_task
    from landscape.study import Study

    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    use_threads(threads)
    task = load_task("digits")
    base = task.problem()
    compare_before_work(threads)
    files = {
        name: _trained(task, name, folder, epochs=epochs, seed=seed, quiet=quiet)
        for name in ("sgd", "sam")
    }
    with Study(folder / "demo.db") as study:
        click.echo("measuring both: loss, spectrum, sharpness, lines, surfaces …", err=True)
        comparison = compare(
            {name.upper(): base.at(file) for name, file in files.items()},
            rho=RHO,
            k=5,
            n=points,
            seed=seed,
            test=task.problem(split="test"),
            study=study,
            progress=False if quiet else None,
        )
    print_comparison(comparison)
    written = save_figure(comparison.plot(), folder / "contrast.png", formats=("png", "pdf", "svg"))
    report = comparison.report(folder / "report.html", command=command_line())
    _say_where(folder, comparison, [*written, report])


def _trained(task: Task, name: str, folder: Path, *, epochs: int, seed: int, quiet: bool) -> Path:
    """Train unless the folder holds that very training already."""
    from landscape.measurement import begin_work
    from landscape.problem._checkpoint import read_checkpoint
    from landscape.training import save_checkpoint, train

    file = folder / f"{name}.pt"
    wanted = {"optimizer": name, "epochs": epochs, "seed": seed}
    if file.is_file():
        kept = read_checkpoint(file).get("settings", {})
        if {key: kept.get(key) for key in wanted} == wanted:
            click.echo(f"{file} is there already", err=True)
            return file
    click.echo(f"training with {name.upper()}, {epochs} epochs …", err=True)
    begin_work(task.problem())
    trained = train(
        task, optimizer=name, epochs=epochs, rho=RHO, seed=seed, progress=False if quiet else None
    )
    return save_checkpoint(trained, file)


def _say_where(folder: Path, comparison: Comparison, written: list[Path]) -> None:
    click.echo(f"\nWritten: {', '.join(str(path) for path in written)}")
    click.echo(f"Every number with its evidence: landscape list --study {folder / 'demo.db'}")
    click.echo(f"Open {folder / 'report.html'} in a browser; it needs no network.")
