"""One SQLite file that holds every measurement on a set of checkpoints.

A measurement is known by the content that was measured and by the settings (`content_key`), not by
the name of a file, and is given back only where the problem still computes the same
(`landscape.results.Signature`). Everything is written in transactions, and the points of a line or
surface one by one: a run that is killed resumes where it stopped. The file stays readable while a
run writes, with any SQLite client; its tables are described in `landscape.study.file.SCHEMA`, and
in the file itself (``.schema``, and the table ``about``).

>>> import tempfile
>>> from landscape.results import Cost, Evaluation, Provenance
>>> provenance = Provenance(
...     checkpoint="sgd.pt", checkpoint_hash="c0ffee", data_fingerprint="d1",
...     problem_fingerprint="p1", split="train", mode="eval", device="cpu", dtype="float32",
...     n_parameters=10, n_examples=100, versions={}, created="2025-01-01T00:00:00+00:00",
... )
>>> measured = Evaluation(
...     settings={}, cost=Cost(forwards=1), provenance=provenance, loss=0.25, loss_se=0.01
... )
>>> with tempfile.TemporaryDirectory() as folder, Study(f"{folder}/landscape.db") as study:
...     study.save(measured)
...     study.find("loss", provenance, {}).loss
1
0.25
"""

from __future__ import annotations

from landscape.study._names import Name, choose_names
from landscape.study.claims import claimed
from landscape.study.codec import MAX_ARRAY_BYTES, ArrayNotStoredWarning, content_key
from landscape.study.contrast import same_part, usual_part
from landscape.study.file import APPLICATION_ID, SCHEMA_VERSION
from landscape.study.grid import Grid, recording
from landscape.study.merging import Merged, merge
from landscape.study.store import Entry, Study

__all__ = [
    "APPLICATION_ID",
    "MAX_ARRAY_BYTES",
    "SCHEMA_VERSION",
    "ArrayNotStoredWarning",
    "Entry",
    "Grid",
    "Merged",
    "Name",
    "Study",
    "choose_names",
    "claimed",
    "content_key",
    "merge",
    "recording",
    "same_part",
    "usual_part",
]
