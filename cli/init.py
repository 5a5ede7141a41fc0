"""``landscape init``: write a problem file to start from."""

from __future__ import annotations

from pathlib import Path

import click

from landscape.errors import InvalidArgumentError

TEMPLATES = {
    "classifier": "inputs and labels as tensors",
    "dataloader": "a regression on a DataLoader",
    "language-model": "next tokens of padded sequences",
    "huggingface": "a causal language model of transformers",
}


@click.command("init")
@click.argument("file", type=click.Path(), default="task.py")
@click.option(
    "--kind",
    type=click.Choice(list(TEMPLATES)),
    default="classifier",
    help="; ".join(f"{kind}: {what}" for kind, what in TEMPLATES.items()) + ".",
)
@click.option("--overwrite", is_flag=True, help="Replace a file that is there already.")
def command(file: str, kind: str, overwrite: bool) -> None:
    """Write a problem file, task.py by default, that runs as it is; replace its parts by yours.

    \b
    Examples:
      landscape init
      landscape init language.py --kind language-model
    """
    path = Path(file)
    if path.exists() and not overwrite:
        msg = f"{path} is there already: choose another name, or say --overwrite"
        raise InvalidArgumentError(msg)
    name = f"{kind.replace('-', '_')}.py"
    text = Path(__file__).with_name("templates").joinpath(name).read_text(encoding="utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace("THIS_FILE", str(path)), encoding="utf-8")
    click.echo(f"{path}: replace the lines marked 'yours', then")
    click.echo(f"  landscape doctor YOUR_CHECKPOINT --problem {path}")
