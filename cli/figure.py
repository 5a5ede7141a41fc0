"""``landscape figure``: the published figures in kind, on the embedded data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from landscape.errors import InvalidArgumentError, one_of

from .output import print_rows, to_json

_PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg")

if TYPE_CHECKING:
    from landscape.experiments import Outcome


@click.command("figure")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--output", "-o", default="figures", show_default=True, type=click.Path(),
    help="Folder to write the pictures and their study files to.",
)  # fmt: skip
@click.option(
    "--study", default=None, metavar="FILE",
    help="Study file, if one figure is drawn.  [default: OUTPUT/NAME.db]",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(min=1), default=None,
    help="Processes that train and measure.  [default: one for each core, at most 8]",
)  # fmt: skip
@click.option("--small", is_flag=True, help="In seconds, to see that it works: means nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.option("--quiet", "-q", is_flag=True, help="No progress bars.")
def command(
    names: tuple[str, ...],
    output: str,
    study: str | None,
    workers: int | None,
    small: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train, measure and draw a published figure in kind; without a NAME, list them.

    What is done already, in the study file or in the folder's .build, is not done again, so that
    an interrupted figure goes on and a finished one is only drawn. Needs the extra
    landscape-sharpness[demo].

    \b
    Examples:
      landscape figure
      landscape figure seeds -o figures
      landscape figure minima spectra noise radius prediction seeds
    """
    from landscape.experiments import EXPERIMENTS

    if not names:
        if as_json:
            click.echo(to_json(EXPERIMENTS))
        else:
            print_rows([("figure", "what it shows"), *EXPERIMENTS.items()])
        return
    for name in names:
        one_of(name, EXPERIMENTS, what="figure")
    if study is not None and len(names) > 1:
        msg = "--study names the file of one figure; leave it out to draw several"
        raise click.UsageError(msg)
    folder = Path(output)
    _check_folder(folder)
    said = []
    for name in names:
        stem = f"{name}-small" if small else name
        file = Path(study) if study else folder / f"{stem}.db"
        outcome = _performed(
            name, file, folder, workers=workers or _cores(), small=small, quiet=quiet
        )
        written = [str(path) for path in _saved(outcome, stem, folder)]
        if as_json:
            said.append({"figure": name, **_plain(outcome), "files": written, "study": str(file)})
        else:
            _say(outcome, written, file)
    if as_json:
        click.echo(to_json(said))


def _check_folder(folder: Path) -> None:
    if folder.suffix.lower() in _PICTURES and not folder.is_dir():
        msg = (
            f"--output names a folder, in which each figure is written as NAME.png and NAME.pdf; "
            f"got {str(folder)!r}: give the folder, such as {str(folder.parent / 'figures')!r}"
        )
        raise InvalidArgumentError(msg)


def _cores() -> int:
    from landscape.threads import usable_cpus

    return min(8, usable_cpus())


def _performed(
    name: str, file: Path, folder: Path, *, workers: int, small: bool, quiet: bool
) -> Outcome:
    from landscape.experiments import Bench, perform
    from landscape.study import Study

    file.parent.mkdir(parents=True, exist_ok=True)
    with Study(file) as kept:
        bench = Bench(
            study=kept,
            folder=folder / ".build" / name,
            workers=workers,
            progress=False if quiet else None,
            say=lambda text: click.echo(f"{name}: {text}", err=True),
        )
        return perform(name, bench, small=small)


def _saved(outcome: Outcome, name: str, folder: Path) -> list[Path]:
    from landscape.plots import save_figure

    return save_figure(outcome.figure, folder / f"{name}.png", formats=("png", "pdf"))


def _plain(outcome: Outcome) -> dict[str, Any]:
    tables = [
        [dict(zip(table[0], row, strict=True)) for row in table[1:]] for table in outcome.tables
    ]
    return {"tables": tables, "notes": list(outcome.notes)}


def _say(outcome: Outcome, written: list[str], file: Path) -> None:
    for table in outcome.tables:
        print_rows(table)
        click.echo()
    for note in outcome.notes:
        click.echo(note)
    click.echo(f"Written: {', '.join(written)}; every number with its evidence: {file}\n")
