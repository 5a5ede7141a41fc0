"""``landscape blocks``: spectra of the blocks of a network side by side."""

from __future__ import annotations

from typing import Any

import click

from landscape.results import Cost

from .library_options import library_options
from .measuring import Price, measure_each
from .options import CommonOptions, common_options
from .runs import run_option
from .sections import Command


@click.command("blocks", cls=Command)
@library_options("curvature.block_spectra", "steps", n_probes="--probes")
@common_options
@run_option
def command(common: CommonOptions, steps: int, n_probes: int) -> None:
    """Compare the Hessian's blocks of embedding, attention, norms and the rest.

    \b
    Example:
      landscape blocks last.pt --problem task.py
    """
    from landscape.curvature import block_spectra
    from landscape.curvature._blocks import kinds_of

    options: dict[str, Any] = {"steps": steps, "n_probes": n_probes}
    measure_each(
        common,
        lambda problem, study: block_spectra(problem, study=study, **common.run, **options),
        price=lambda problem: Price(
            Cost(forwards=1, hvps=(n_probes * steps + 1003) * len(kinds_of(problem))),
            Cost(forwards=1, hvps=(n_probes * steps + 25) * len(kinds_of(problem))),
        ),
    )
