"""Several checkpoints measured alike, and their differences."""

from landscape.compare._compare import N_COMPARED_LINE, compare
from landscape.compare._differences import differences, paired_difference

__all__ = [
    "N_COMPARED_LINE",
    "compare",
    "differences",
    "paired_difference",
]
