"""``landscape train``: train a problem and save the checkpoint."""

from __future__ import annotations

import click

from .output import to_json


@click.command("train")
@click.option("--problem", required=True, metavar="FILE|NAME", help="See landscape sharpness.")
@click.option(
    "--optimizer", type=click.Choice(["sgd", "sam"]), default="sgd", show_default=True,
    help="SGD with momentum, or SAM around it.",
)  # fmt: skip
@click.option("--output", "-o", required=True, type=click.Path(), help=".pt or .safetensors file.")
@click.option("--epochs", default=40, show_default=True, help="Passes over the training data.")
@click.option("--lr", default=0.05, show_default=True, help="Learning rate at the start.")
@click.option("--momentum", default=0.9, show_default=True, help="Of SGD.")
@click.option("--weight-decay", default=5e-4, show_default=True, help="Of SGD.")
@click.option("--rho", default=0.2, show_default=True, help="Radius of SAM.")
@click.option("--batch-size", default=64, show_default=True, help="Examples in a batch.")
@click.option(
    "--schedule", type=click.Choice(["cosine", "constant"]), default="cosine", show_default=True,
    help="Of the learning rate.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Of initial weights and data order.")
@click.option("--device", default="cpu", show_default=True, help="Where to train.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.option("--quiet", "-q", is_flag=True, help="No progress bar.")
def command(
    problem: str,
    optimizer: str,
    output: str,
    epochs: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    rho: float,
    batch_size: int,
    schedule: str,
    seed: int,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train a problem with SGD or SAM. One seed gives both the same start and the same order.

    \b
    Example:
      landscape train --problem digits --optimizer sam --rho 0.2 -o sam.pt
    """
    from landscape.problem import load_task
    from landscape.training import check_checkpoint_path, save_checkpoint, train

    task = load_task(problem)
    check_checkpoint_path(output)
    trained = train(
        task,
        optimizer=optimizer,
        epochs=epochs,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        rho=rho,
        batch_size=batch_size,
        schedule=schedule,
        seed=seed,
        device=device,
        progress=False if quiet else None,
    )
    path = save_checkpoint(trained, output)
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
