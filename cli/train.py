"""``landscape train``: train a problem and save the checkpoint."""

from __future__ import annotations

import click

from .output import to_json


@click.command("train")
@click.option("--problem", required=True, metavar="FILE|NAME", help="See landscape sharpness.")
@click.option(
    "--optimizer", type=click.Choice(["sgd", "adam", "adamw", "sam"]), default="sgd",
    show_default=True, help="How to descend; SAM works around one of the others, see --base.",
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
@click.option("--rho", default=0.2, show_default=True, help="Radius of SAM's neighbourhood.")
@click.option("--p", default=2.0, show_default=True, help="Norm of SAM's neighbourhood.")
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
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.option("--quiet", "-q", is_flag=True, help="No progress bar.")
def command(
    problem: str,
    optimizer: str,
    base: str,
    output: str,
    epochs: int,
    lr: float | None,
    momentum: float,
    weight_decay: float,
    rho: float,
    p: float,
    batch_size: int,
    schedule: str,
    seed: int,
    label_noise: float,
    split: str,
    save_every: int,
    restart: bool,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train a problem. One seed gives every optimizer the same start and the same order.

    A training that was killed goes on where it was: give the same command again. Until it is done,
    OUTPUT.state holds it.

    \b
    Examples:
      landscape train --problem digits --optimizer sam --rho 0.2 -o sam.pt
      landscape train --problem mnist1d-mlp --optimizer adamw --label-noise 0.2 -o noisy.safetensors
    """
    from landscape.problem import load_task
    from landscape.training import check_checkpoint_path, save_checkpoint, train

    task = load_task(problem)
    file = check_checkpoint_path(output)
    state = file.with_name(f"{file.name}.state")
    if restart:
        state.unlink(missing_ok=True)
    trained = train(
        task,
        optimizer=optimizer,
        base=base,
        epochs=epochs,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        rho=rho,
        p=p,
        batch_size=batch_size,
        schedule=schedule,
        seed=seed,
        label_noise=label_noise,
        split=split,
        state=state,
        checkpoint=file,
        save_every=save_every,
        device=device,
        progress=False if quiet else None,
    )
    path = save_checkpoint(trained, output)
    state.unlink(missing_ok=True)  # not before the result is safe
    last = trained.log[-1].train_loss if trained.log else float("nan")
    summary = {
        "checkpoint": str(path),
        "optimizer": optimizer,
        "epochs": epochs,
        "last_train_loss": last,
        "gradients": trained.gradients,
        "seconds": trained.seconds,
    }
    if as_json:
        click.echo(to_json(summary | {"settings": dict(trained.settings)}))
        return
    click.echo(
        f"{path}: {optimizer}, {epochs} epochs, mean loss of the last epoch {last:.4g}; "
        f"{trained.gradients:,} batch gradients in {trained.seconds:.1f} s"
    )
