"""``landscape merge``: one study out of several."""

from __future__ import annotations

import os
from contextlib import ExitStack

import click

from .output import print_table


@click.command("merge")
@click.argument("studies", type=click.Path(), nargs=-1, required=True, metavar="STUDY...")
@click.option(
    "-o", "--output", type=click.Path(), required=True, help="Study to add them to; new or not."
)
def command(studies: tuple[str, ...], output: str) -> None:
    """Put what several studies hold into one, such as those of several computers. Needs no torch.

    A measurement is kept once, the newest; points of unfinished ones are united, and the same
    command that began them goes on with OUTPUT. The studies stay as they are, but for OUTPUT, which
    may be one of them.

    \b
    Example:
      landscape merge one.db two.db -o both.db
    """
    from landscape.study import Study, merge

    rows = []
    with ExitStack() as stack:
        # All are opened before anything is written.
        opened = {name: stack.enter_context(Study(name, readonly=True)) for name in studies}
        into = stack.enter_context(Study(output))
        for name, study in opened.items():
            if os.path.samefile(study.path, into.path):
                continue
            taken = merge(into, study)
            renamed = ", ".join(f"{old} is {new}" for old, new in taken.renamed.items())
            rows.append(
                {
                    "study": name,
                    "results": str(taken.finished),
                    "points": str(taken.points),
                    "known": str(taken.known),
                    **({"renamed": renamed} if renamed else {}),
                }
            )
        n = len(into.entries())
    print_table(rows)
    click.echo(f"{output} holds {n} measurements.")
