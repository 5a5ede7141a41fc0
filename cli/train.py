"""``landscape train``: train a problem and save the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from landscape.errors import DataError, NonFiniteError

from .library_options import library_options
from .options import names_in, problem_option, study_option
from .output import to_json
from .sections import OUTPUT, PROBLEM, WHAT, Command, option, refuse_given
from .threads import AUTO, compare_with_one, threads_option, use_threads

if TYPE_CHECKING:
    from landscape.problem import Task
    from landscape.results import TrainingLog
    from landscape.study import Study
    from landscape.training import Trained

_SETTINGS = "training.TrainingSettings"


@click.command("train", cls=Command)
@library_options(
    _SETTINGS,
    *("optimizer", "base", "epochs", "lr", "momentum", "weight_decay", "rho", "p", "adaptive"),
    *("eta", "gsam_alpha", "ascent_steps", "micro_batch", "batch_size", "schedule", "seed"),
    "label_noise",
    section=WHAT,
)
@problem_option
@library_options(_SETTINGS, "split", section=PROBLEM)
@option("--device", section=PROBLEM, default="cpu", help="Device to train on.")
@threads_option
@option(
    "--output",
    "-o",
    section=OUTPUT,
    required=True,
    type=click.Path(),
    help=".pt or .safetensors file; its folder is made.",
)
@library_options("training.train", "save_every", section=OUTPUT)
@option(
    "--restart",
    section=OUTPUT,
    is_flag=True,
    help="Start from the beginning, also where a training was interrupted.",
)
@study_option
@option("--json", "as_json", section=OUTPUT, is_flag=True, help="Print JSON.")
@option("--quiet", "-q", section=OUTPUT, is_flag=True, help="No progress bar.")
def command(
    problem: str,
    output: str,
    study: str,
    restart: bool,
    threads: str | None,
    as_json: bool,
    quiet: bool,
    save_every: int,
    **settings: Any,
) -> None:
    """Train a problem. One seed gives every optimizer the same start and the same order.

    A training that was killed goes on where it was when the same command is given again; until it
    is done, OUTPUT.state holds it. The log goes into the study, beside what is measured on the
    checkpoint: landscape plot --what training.

    \b
    Examples:
      landscape train --problem digits --optimizer sam --rho 0.2 -o sam.pt
      landscape train --problem digits-mlp --optimizer asam --micro-batch 16 -o asam.pt
      landscape train --problem mnist1d-mlp --optimizer adamw --label-noise 0.2 -o noisy.safetensors
    """
    from landscape.problem import load_task
    from landscape.study import Study
    from landscape.training import check_checkpoint_path, save_checkpoint, train

    _refuse_idle(settings["optimizer"], settings["base"])
    use_threads(threads)
    task = load_task(problem)
    if threads == AUTO:  # asked for: a training reads nothing but what it trains on
        batches = {"split": settings["split"], "batch_size": settings["batch_size"]}
        compare_with_one(threads, task.problem(**batches, freeze_data=True))
    Path(output).expanduser().parent.mkdir(parents=True, exist_ok=True)
    file = check_checkpoint_path(output)
    state = file.with_name(f"{file.name}.state")
    if restart:
        state.unlink(missing_ok=True)
    with Study(study) as opened:  # first, for a file that cannot be used fails here
        try:
            trained = train(
                task,
                **settings,
                state=state,
                checkpoint=file,
                save_every=save_every,
                progress=False if quiet else None,
            )
        except NonFiniteError:
            state.unlink(missing_ok=True)  # nothing good can come of it
            raise
        path = save_checkpoint(trained, output)
        is_logged = _save_log(trained, task, path, opened)
    state.unlink(missing_ok=True)  # not before the result is safe
    _print(trained, path, study if is_logged else None, as_json=as_json)


def _print(trained: Trained, path: Path, study: str | None, *, as_json: bool) -> None:
    settings = trained.settings
    last = trained.log[-1].train_loss if trained.log else None
    if as_json:
        summary = {
            "checkpoint": str(path),
            "study": study,
            "optimizer": settings["optimizer"],
            "epochs": settings["epochs"],
            "last_train_loss": last,
            "gradients": trained.gradients,
            "seconds": trained.seconds,
        }
        click.echo(to_json(summary | {"settings": dict(settings)}))
        return
    click.echo(
        f"{path}: {settings['optimizer']}, {settings['epochs']} epochs, "
        f"{'' if last is None else f'mean loss of the last epoch {last:.4g}; '}"
        f"{trained.gradients:,} batch gradients in {trained.seconds:.1f} s"
    )
    if study is not None:
        click.echo(f"Log saved in {study}.")


def _refuse_idle(optimizer: str, base: str) -> None:
    """Refuse settings that the optimizer does not read."""
    from landscape.training import READERS, SAM_FAMILY

    around = optimizer in SAM_FAMILY
    names = {optimizer, base} if around else {optimizer}
    for setting, readers in READERS.items():
        if names.isdisjoint(readers):
            other = f"{optimizer} around {base}" if around else optimizer
            why = f"is read by {', '.join(readers)}, not by {other}: leave it out"
            refuse_given([setting], why)


def _save_log(trained: Trained, task: Task, path: Path, study: Study) -> bool:
    """Save the log in the study; say so where the data cannot be told from others."""
    from landscape.training import training_log

    split = trained.settings.get("split", "train")

    def log(*, freeze_data: bool) -> TrainingLog:
        problem = task.problem(split=split, freeze_data=freeze_data).at(path)
        (name,) = names_in(str(study.path), [problem], [""])
        study.set_name(name, problem.checkpoint_hash, problem.path)
        return training_log(trained, problem.named(name), task=task.name)

    try:
        try:
            record = log(freeze_data=False)
        except DataError:  # a loader that shuffles: one pass stands for the data
            record = log(freeze_data=True)
    except DataError as error:
        click.echo(f"The log is not saved in {study.path}: {error}", err=True)
        return False
    study.save(record)
    return True
