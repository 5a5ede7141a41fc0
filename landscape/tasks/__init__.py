"""Built-in problems: each module is written exactly as a user's own problem file would be.

A problem file has a few names: `model()`, `data(split)`, `loss` (or `batch_loss(model, batch)`) and
`metrics`. Copy `digits.py`, change what differs, and hand the copy to ``--problem``.
"""

from __future__ import annotations

NAMES = ("digits",)

__all__ = ["NAMES"]
