"""``landscape train``: train a problem and save the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from landscape.errors import DataError, NonFiniteError, did_you_mean

from .idle import refuse_given
from .options import json_option, names_in, study_option
from .output import to_json
from .threads import AUTO, compare_with_one, threads_option, use_threads

if TYPE_CHECKING:
    from landscape.problem import Task
    from landscape.results import TrainingLog
    from landscape.study import Study
    from landscape.training import Trained

    Names = click.Choice[str]
else:
    Names = click.Choice  # not generic before click 8.2


class Optimizers(Names):
    """The names of the optimizers; of a name that is none of them, the nearest are offered."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name, if it is one."""
        if value not in self.choices:
            near = did_you_mean(str(value), self.choices)
            known = ", ".join(self.choices)
            self.fail(f"unknown optimizer {value!r}{near}; known: {known}", param, ctx)
        return str(value)


@click.command("train")
@click.option("--problem", required=True, metavar="FILE|NAME", help="See landscape sharpness.")
@click.option(
    "--optimizer", type=Optimizers(["sgd", "adam", "adamw", "sam", "asam", "gsam", "usam"]),
    default="sgd", show_default=True,
    help="How to descend; SAM and its variants work around one of the others, see --base.",
)  # fmt: skip
@click.option(
    "--base", type=click.Choice(["sgd", "adam", "adamw"]), default="sgd", show_default=True,
    help="Optimizer inside SAM.",
)  # fmt: skip
@click.option("--output", "-o", required=True, type=click.Path(), help=".pt or .safetensors file.")
@click.option("--epochs", default=40, show_default=True, help="Passes over the training data.")
@click.option(
    "--lr", type=float, show_default="0.05, with Adam and AdamW 0.002",
    help="Learning rate at the start.",
)  # fmt: skip
@click.option("--momentum", default=0.9, show_default=True, help="Of SGD.")
@click.option("--weight-decay", default=5e-4, show_default=True, help="Of all.")
@click.option(
    "--rho", type=float, show_default="0.2, with asam 0.5",
    help="Radius of SAM's neighbourhood; it has no default for another p than 2.",
)  # fmt: skip
@click.option("--p", default=2.0, show_default=True, help="Norm of SAM's neighbourhood.")
@click.option(
    "--adaptive", type=click.Choice(["elementwise", "filterwise"]), default="elementwise",
    show_default=True, help="What asam scales its neighbourhood with: |w| or the filter's norm.",
)  # fmt: skip
@click.option("--eta", default=0.01, show_default=True, help="Of asam, added to that scale.")
@click.option("--gsam-alpha", default=0.4, show_default=True, help="α of gsam; 0 is sam.")
@click.option(
    "--ascent-steps", default=1, show_default=True, metavar="N",
    help="Gradients that SAM and its variants spend on finding the worst point.",
)  # fmt: skip
@click.option(
    "--micro-batch", type=int, metavar="M", show_default="the whole batch",
    help="m-SAM: every M examples of a batch have a perturbation of their own.",
)  # fmt: skip
@click.option("--batch-size", default=64, show_default=True, help="Examples in a batch.")
@click.option(
    "--schedule", type=click.Choice(["cosine", "constant"]), default="cosine", show_default=True,
    help="Of the learning rate.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of initial weights and data order.")
@click.option(
    "--label-noise", default=0.0, show_default=True, metavar="SHARE",
    help="Share of the training labels to replace by wrong ones; measurements see clean labels.",
)  # fmt: skip
@click.option(
    "--split", default="train", show_default=True,
    help="Part of the data to train on; built-in problems have train, fit and validation.",
)  # fmt: skip
@click.option(
    "--save-every", default=0, metavar="N",
    help="A checkpoint after every N epochs, and of the start: OUTPUT-epoch-00, …",
)  # fmt: skip
@click.option("--restart", is_flag=True, help="Begin anew, also where a training was interrupted.")
@click.option("--device", default="cpu", show_default=True, help="Where to train.")
@threads_option
@study_option
@json_option
@click.option("--quiet", "-q", is_flag=True, help="No progress bar.")
def command(
    problem: str,
    output: str,
    study: str,
    restart: bool,
    threads: str | None,
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Train a problem. One seed gives every optimizer the same start and the same order.

    A training that was killed goes on where it was: give the same command again. Until it is done,
    OUTPUT.state holds it. The log goes into the study, beside what is measured on the checkpoint:
    landscape plot --what training.

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
    file = check_checkpoint_path(output)
    state = file.with_name(f"{file.name}.state")
    if restart:
        state.unlink(missing_ok=True)
    with Study(study) as opened:  # first, for a file that cannot be used fails here
        try:
            trained = train(
                task, **settings, state=state, checkpoint=file, progress=False if quiet else None
            )
        except NonFiniteError:
            state.unlink(missing_ok=True)  # nothing good can come of it
            raise
        path = save_checkpoint(trained, output)
        kept = _keep_log(trained, task, path, opened)
    state.unlink(missing_ok=True)  # not before the result is safe
    last = trained.log[-1].train_loss if trained.log else None
    summary = {
        "checkpoint": str(path),
        "study": study if kept else None,
        "optimizer": settings["optimizer"],
        "epochs": settings["epochs"],
        "last_train_loss": last,
        "gradients": trained.gradients,
        "seconds": trained.seconds,
    }
    if as_json:
        click.echo(to_json(summary | {"settings": dict(trained.settings)}))
        return
    click.echo(
        f"{path}: {settings['optimizer']}, {settings['epochs']} epochs, "
        f"{'' if last is None else f'mean loss of the last epoch {last:.4g}; '}"
        f"{trained.gradients:,} batch gradients in {trained.seconds:.1f} s"
    )
    if kept:
        click.echo(f"Log stored in {study}.")


def _refuse_idle(optimizer: str, base: str) -> None:
    """Refuse settings that the optimizer does not read."""
    from landscape.training import READERS, SAM_FAMILY

    around = optimizer in SAM_FAMILY
    names = {optimizer, base} if around else {optimizer}
    for setting, readers in READERS.items():
        if names.isdisjoint(readers):
            other = f"{optimizer} around {base}" if around else optimizer
            refuse_given(
                [setting], f"is read by {', '.join(readers)}, not by {other}: leave it out"
            )


def _keep_log(trained: Trained, task: Task, path: Path, study: Study) -> bool:
    """Put the log into the study; say so where the data cannot be told from others."""
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
        click.echo(f"The log is not kept in {study.path}: {error}", err=True)
        return False
    study.save(record)
    return True
