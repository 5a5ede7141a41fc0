"""Records as NumPy archives."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from landscape.results import Result, to_record
from landscape.study.codec import dumps


def archive_bytes(result: Result) -> bytes:
    """Return a record as an ``.npz`` archive, without a bit of loss.

    It holds every array of the record under the name of its field (``loss``,
    ``metrics.accuracy``), and under ``record`` all else as one text of JSON: the kind, the
    scalars, the settings, the cost and the provenance. A float in it that is not finite is written
    as ``{"$float": "nan"}``, because JSON has none. No pickle is needed to read it, and the same
    record gives the same bytes:

    >>> import io, json
    >>> import numpy as np
    >>> from landscape.results import Cost, Line, Provenance
    >>> provenance = Provenance(
    ...     checkpoint="sgd.pt", checkpoint_hash="c0ffee", data_fingerprint="d1",
    ...     problem_fingerprint="p1", split="train", mode="eval", device="cpu", dtype="float32",
    ...     n_parameters=10, n_examples=100, versions={}, created="2025-01-01T00:00:00+00:00",
    ... )
    >>> x = np.array([-1.0, 0.0, 1.0])
    >>> line = Line(
    ...     settings={"seed": 0}, cost=Cost(forwards=4), provenance=provenance, x=x, loss=x**2,
    ...     loss_se=0 * x, direction="given", direction_norm=2.0, origin_loss=0.0,
    ... )
    >>> archive = np.load(io.BytesIO(archive_bytes(line)), allow_pickle=False)
    >>> archive["loss"].tolist(), json.loads(str(archive["record"]))["settings"]
    ([1.0, 0.0, 1.0], {'seed': 0})
    """
    scalars, arrays = to_record(result)
    record = dumps({"kind": result.kind, **scalars})
    parts: dict[str, Any] = {"record": np.array(record), **arrays}
    stream = io.BytesIO()
    np.savez(stream, **parts)
    return stream.getvalue()
