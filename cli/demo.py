"""``landscape demo``: the whole job on embedded data, from training to the report."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .output import command_line, print_comparison

if TYPE_CHECKING:
    from landscape.results.comparison import Comparison

TASK, OPTIMIZERS, RHO = "digits", ("sgd", "sam"), 0.2


@click.command("demo")
@click.option("--output", "-o", default="demo", type=click.Path(), help="Folder to fill.")
@click.option("--epochs", default=40, help="Epochs of each training.")
@click.option("--points", default=25, help="Surface points along each axis.")
@click.option("--seed", default=0, help="Random seed.")
@click.option("--quiet", "-q", is_flag=True, help="Say nothing of how far it is.")
def command(output: str, epochs: int, points: int, seed: int, quiet: bool) -> None:
    """Train a small ResNet on real 8×8 digits with SGD and with SAM, measure, draw, report.

    Both start from the same weights and see the data in the same order, in two processes of one
    thread each. What is done already is not done again. Takes about a minute on two cores; needs
    the extra landscape-sharpness[demo].

    \b
    Example:
      landscape demo -o demo
    """
    from landscape.plots import save_figure
    from landscape.study import Study
    from landscape.tasks import digits

    digits.data("train")  # says what to install, if anything is missing
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    with Study(folder / "demo.db"):
        pass  # there, before two processes write to it
    settings: Any = {"epochs": epochs, "n": points, "seed": seed, "quiet": quiet}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        work = partial(_train_and_measure, folder, **settings)
        list(pool.map(work, OPTIMIZERS))
    comparison = _compared(folder, OPTIMIZERS, n=points, seed=seed)
    print_comparison(comparison)
    written = save_figure(comparison.plot(), folder / "contrast.png", formats=("png", "pdf", "svg"))
    report = comparison.report(folder / "report.html", command=command_line())
    _say_where(folder, comparison, [*written, report])


def _train_and_measure(
    folder: Path, name: str, *, epochs: int, n: int, seed: int, quiet: bool
) -> None:
    """Train one of the two unless it is there, and put its measurements into the study."""
    import torch

    from landscape.problem import load_task
    from landscape.training import save_checkpoint, train

    torch.set_num_threads(1)

    def say(text: str) -> None:
        if not quiet:
            click.echo(f"{name.upper()}: {text}", err=True)

    if _is_trained(folder, name, epochs=epochs, seed=seed):
        say(f"{folder / name}.pt is there already")
    else:
        say(f"training, {epochs} epochs …")
        options: Any = {"optimizer": name, "epochs": epochs, "rho": RHO, "seed": seed}
        save_checkpoint(train(load_task(TASK), **options, progress=False), folder / f"{name}.pt")
    say("measuring loss, spectrum, sharpness, lines and surface …")
    _compared(folder, [name], n=n, seed=seed)
    say("done")


def _is_trained(folder: Path, name: str, **settings: int) -> bool:
    """Tell whether the folder holds that very training."""
    from landscape.problem._checkpoint import read_checkpoint

    file = folder / f"{name}.pt"
    held = read_checkpoint(file).get("settings", {}) if file.is_file() else {}
    return all(held.get(k) == value for k, value in {"optimizer": name, **settings}.items())


def _compared(folder: Path, names: Sequence[str], *, n: int, seed: int) -> Comparison:
    """Measure checkpoints, or recall what the study holds."""
    from landscape.compare import compare
    from landscape.problem import load_task
    from landscape.study import Study

    task = load_task(TASK)
    base, test = task.problem(), task.problem(split="test")
    problems = {name.upper(): base.at(folder / f"{name}.pt") for name in names}
    options: Any = {"rho": RHO, "k": 5, "n": n, "seed": seed, "progress": False}
    with Study(folder / "demo.db") as study:
        return compare(problems, test=test, study=study, **options)


def _say_where(folder: Path, comparison: Comparison, written: list[Path]) -> None:
    click.echo(f"\nWritten: {', '.join(str(path) for path in written)}")
    click.echo(f"Every number with its evidence: landscape list --study {folder / 'demo.db'}")
    click.echo(f"Open {folder / 'report.html'} in a browser; it needs no network.")
