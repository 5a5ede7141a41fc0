"""``landscape export``: measurements of a study into files of other programs."""

from __future__ import annotations

from pathlib import Path

import click

from landscape.errors import InvalidArgumentError

from .options import study_option


@click.command("export")
@click.argument("numbers", nargs=-1, required=True, type=int, metavar="ID...")
@study_option
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(),
    metavar="FILE",
    help="Ends in .csv, .npz, .h5, .hdf5 or .vtk; {id} stands for the number of the measurement.",
)
@click.option("--overwrite", is_flag=True, help="Replace files that are there already.")
def command(numbers: tuple[int, ...], study: str, output: str, overwrite: bool) -> None:
    """Write measurements, by their numbers in the list, to files for other programs.

    One file for each: with several IDs, FILE contains {id}. A .csv holds the numbers, an .npz
    everything (NumPy), an .h5 a line or surface in the layout of the classic loss-landscape tool,
    a .vtk a surface for ParaView. Needs no torch.

    \b
    Examples:
      landscape export 7 -o surface.vtk
      landscape export 3 4 5 -o 'eigenvalues-{id}.csv' --study landscape.db
    """
    from landscape.export import check_format, export_result
    from landscape.study import Study

    numbers = tuple(dict.fromkeys(numbers))
    if len(numbers) > 1 and "{id}" not in output:
        msg = (
            f"{len(numbers)} measurements go into {len(numbers)} files: put {{id}} into the name, "
            f"as in 'measured-{{id}}.csv'; got {output!r}"
        )
        raise InvalidArgumentError(msg)
    paths = {number: output.replace("{id}", str(number)) for number in numbers}
    with Study(study, readonly=True) as opened:
        results = {number: opened.load(number) for number in numbers}
    for number, path in paths.items():
        check_format(results[number].kind, path)
        if Path(path).exists() and not overwrite:
            msg = f"{path} is there already: choose another name, or say --overwrite"
            raise InvalidArgumentError(msg)
    for number, path in paths.items():
        written = export_result(results[number], path)
        click.echo(
            f"The {results[number].kind} {number} of {results[number].name} is in {written}."
        )
