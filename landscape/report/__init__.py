"""One self-contained HTML page from a comparison, with a careful reading of its numbers."""

from landscape.report.verdict import Verdict, verdict
from landscape.report.writing import write_report

__all__ = ["Verdict", "verdict", "write_report"]
