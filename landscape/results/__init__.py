"""What a measurement returns: frozen records of plain NumPy values with their evidence.

Every record holds the values, the evidence for them (residual, gap or standard error), the
settings that were asked for, what it cost, and where it came from. Records know nothing of
networks, files or pictures: they travel from the measurement to the study file, and from there to
plots and reports. `Result.plot` and `Result.explore` are the one door out, opened at the call.
"""

from landscape.results.averages import AverageSharpness, Flatness, PairedDifference
from landscape.results.base import Cost, FloatArray, Provenance, Result, Signature
from landscape.results.diagnoses import Check, Diagnosis
from landscape.results.evaluations import Differences, Evaluation
from landscape.results.paths import LossPath, TrainedCurve
from landscape.results.records import KINDS, from_record, to_record
from landscape.results.sharpness import Profile, Sharpness, StepwiseSharpness, SubsetSharpness
from landscape.results.spectra import Density, Eigenpairs, Overlap, TraceEstimate
from landscape.results.surfaces import LevelSetArea, Line, Surface, level_set_area, spread_rows
from landscape.results.training import TrainingLog, Trajectory

__all__ = [
    "KINDS",
    "AverageSharpness",
    "Check",
    "Cost",
    "Density",
    "Diagnosis",
    "Differences",
    "Eigenpairs",
    "Evaluation",
    "Flatness",
    "FloatArray",
    "LevelSetArea",
    "Line",
    "LossPath",
    "Overlap",
    "PairedDifference",
    "Profile",
    "Provenance",
    "Result",
    "Sharpness",
    "Signature",
    "StepwiseSharpness",
    "SubsetSharpness",
    "Surface",
    "TraceEstimate",
    "TrainedCurve",
    "TrainingLog",
    "Trajectory",
    "from_record",
    "level_set_area",
    "spread_rows",
    "to_record",
]
