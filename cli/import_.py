"""``landscape import``: a line or surface of the classic loss-landscape tool into a study."""

from __future__ import annotations

from pathlib import Path

import click

from .options import study_option
from .output import print_rows


@click.command("import")
@click.argument("file", type=click.Path(), metavar="FILE")
@study_option
@click.option("--name", default=None, help="The checkpoint's name.  [default: the file's]")
@click.option("--split", default=None, help="Part of the data, where FILE has losses on several.")
def command(file: str, study: str, name: str | None, split: str | None) -> None:
    """Put a line or surface into a study, from an HDF5 file of the classic loss-landscape tool.

    Points that were not measured are NaN. Files that landscape export wrote come back as they
    were. Needs no torch.

    \b
    Example:
      landscape import surface.h5 --study landscape.db --name resnet56
      landscape plot resnet56 --what surface -o surface.png
    """
    from landscape.export import import_hdf5
    from landscape.study import Name, Study, choose_names

    result = import_hdf5(file, name=name, split=split)
    with Study(study) as opened:
        if name is None and not result.provenance.checkpoint_hash:  # of another program
            path = str(Path(file).absolute().with_suffix(""))
            unnamed = Name(name="", path=path, checkpoint_hash="")
            (name,) = choose_names(opened.names(), [unnamed])
            opened.set_name(name, "", path)
            result = import_hdf5(file, name=name, split=split)
        number = opened.save(result)
        called = opened.load(number).name  # as before, if it was there already
    click.echo(f"{called}: {result.kind}")
    print_rows(result.rows(), indent="  ")
    click.echo(f"Stored as number {number} in {study}.")
