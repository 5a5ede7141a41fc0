"""Results in, files of other programs out; and the classic loss-landscape files in again.

`export_result` writes one record; the suffix of the path chooses the format:

- ``.csv``: the numbers as a table, for spreadsheets and statistics programs. Where they came from
  is not in it: a comment or a second header would stop half of the programs from reading it.
- ``.npz``: everything, for NumPy; the settings and the provenance as JSON.
- ``.h5``, ``.hdf5``: lines and surfaces in the layout of the classic loss-landscape tool, and
  beside it everything else that the record holds. `import_hdf5` reads both.
- ``.vtk``: surfaces for ParaView and whatever else reads VTK.

Numbers are written in full precision, and NaN and infinity as they are.
"""

from __future__ import annotations

from landscape.export.hdf5 import import_hdf5
from landscape.export.writing import FORMATS, check_format, export_result

__all__ = ["FORMATS", "check_format", "export_result", "import_hdf5"]
