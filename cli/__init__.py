"""The command line: one file per verb, no numerics of its own.

Commands are imported when they are called, so that ``landscape --help`` needs no torch.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import io
import keyword
import os
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import click

from landscape._version import __version__
from landscape.errors import LandscapeError, did_you_mean

# Verb: (module, one line for --help). The lines are here so that --help imports no verb.
VERBS = {
    "demo": "Train a small network with SGD and with SAM, and show the contrast.",
    "init": "Write a problem file to start from: your model, data and loss.",
    "train": "Train a problem with SGD, Adam, AdamW or SAM's family and save the checkpoint.",
    "doctor": "Checks of a checkpoint and its problem: can its sharpness be trusted?",
    "loss": "Loss, metrics and gradient norm, with the standard error.",
    "sharpness": "Largest rise of the loss within a ball: max L(w+ε) − L(w), ‖ε‖ ≤ ρ.",
    "average": "Average rise of the loss under random noise on the weights.",
    "flatness": "Fisher-Rao norm, relative flatness, surrogate gap, 1/σ², with their errors.",
    "eigs": "Extreme eigenvalues of the Hessian, with residuals and bounds.",
    "stability": "Critical, directional and batch sharpness: how large a step the loss bears.",
    "trace": "Trace of the Hessian, of the whole and by layer, with its interval.",
    "density": "Spectral density of the Hessian, with its band.",
    "blocks": "λmax, trace and spectra of embedding, attention, norms and the rest.",
    "line": "Loss along one direction.",
    "surface": "Loss over a plane of two directions.",
    "path": "Loss along a path between two checkpoints, and the barrier on it.",
    "trajectory": "Training runs on a plane: projections and true losses.",
    "compare": "Loss, spectrum, sharpness and surfaces of several checkpoints, side by side.",
    "theory": "Why SAM can help: bias, variance and risk on a linear model, in closed form.",
    "plot": "Draw what a study holds.",
    "report": "Write one self-contained HTML page from a study.",
    "watch": "Print the measurements of a training as they come.",
    "serve": "Show the report of a study that grows, in a browser on this machine.",
    "list": "List what a study holds.",
    "show": "Show one measurement of a study in full.",
    "merge": "Put what several studies hold into one.",
    "delete": "Take measurements out of a study.",
    "export": "Write measurements to CSV, NumPy, HDF5 or VTK files.",
    "import": "Put a classic HDF5 line or surface into a study.",
}

# Verbs that several processes of a launcher such as torchrun share the work of.
TOGETHER = frozenset(
    {
        *("doctor", "loss", "sharpness", "average", "flatness", "eigs", "stability", "trace"),
        *("density", "blocks", "line", "surface", "path", "trajectory", "compare"),
    }
)
_GRACE = 3.0  # seconds


class Verbs(click.Group):
    """The group of all verbs, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs, in the order in which a newcomer meets them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one verb."""
        if cmd_name not in VERBS:
            return None
        # No module can be named import, and one named list would hide list from this file.
        taken = keyword.iskeyword(cmd_name) or hasattr(builtins, cmd_name)
        name = f"{cmd_name}_" if taken else cmd_name
        module = importlib.import_module(f".{name}", __package__)
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, and offer the nearest one if there is none."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            near = did_you_mean(args[0], VERBS)
            ctx.fail(f"no such command {args[0]!r}{near}; known: {', '.join(VERBS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of verbs without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.version_option(__version__, prog_name="landscape")
def cli() -> None:
    """How sharp is this minimum? Sharpness, Hessian spectra and loss surfaces of checkpoints.

    \b
    First time:      landscape demo
    Your checkpoint: landscape sharpness model.pt --problem task.py
    """


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; an error of the user's becomes one message and an exit code."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = _show_warning
        together = int(os.environ.get("WORLD_SIZE", "1")) > 1
        try:
            code = _run_together(args) if together else _run(args)
        except LandscapeError as error:  # of the set-up of the processes
            click.echo(f"Error: {error}", err=True)
            code = error.exit_code
        sys.exit(code)


def _run_together(args: Sequence[str] | None) -> int:
    """Run a command that measures on all processes of a launcher, any other on the first.

    The first process prints; another one says only what it alone has failed at.
    """
    given = list(sys.argv[1:] if args is None else args)
    if not TOGETHER.intersection(given[:1]):
        if os.environ.get("RANK", "0") != "0":
            return 0
        if given[:1] in (["train"], ["demo"]):
            text = f"Error: landscape {given[0]} runs in one process: start it without torchrun"
            click.echo(text, err=True)
            return 2
        return _run(args)
    from landscape.processes import launched

    with launched() as here:
        if here.is_first:
            return _run(args)
        said = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            code = _run(args)
        if code:
            time.sleep(_GRACE)  # the launcher ends this process if the first has failed alike
            click.echo(f"process {here.rank} of {here.n}: {said.getvalue()}", err=True)
        return code


def _run(args: Sequence[str] | None) -> int:
    try:
        result = cli.main(args=args, prog_name="landscape", standalone_mode=False)
    except LandscapeError as error:
        click.echo(f"Error: {error}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        kept = "finished measurements, and the points of lines, surfaces and averages"
        click.echo(f"Stopped. Kept in the study: {kept}.", err=True)
        return 130
    except OSError as error:
        # A full disk, a folder that may not be written: the system's own words say it.
        where = f": {error.filename}" if error.filename else ""
        click.echo(f"Error: {error.strerror or error}{where}", err=True)
        return 1
    return result if isinstance(result, int) else 0


def _show_warning(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
    if not issubclass(category, (DeprecationWarning, PendingDeprecationWarning)):
        click.echo(f"Warning: {message}", err=True)
