"""Pictures of results: records in, a matplotlib or plotly figure out; nothing is measured here.

`draw` and `draw_interactive` draw any record; `contrast` and `contrast_interactive` draw several
checkpoints on one scale; `save_figure` writes a figure. The names are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from landscape.errors import InvalidArgumentError
from landscape.results import KINDS, Result

if TYPE_CHECKING:
    from landscape.plots.areas import area_figure as area_figure
    from landscape.plots.bands import band_figure as band_figure
    from landscape.plots.contrasts import contrast as contrast
    from landscape.plots.densities import density_figure as density_figure
    from landscape.plots.differences import difference_figure as difference_figure
    from landscape.plots.interactive.areas import area_interactive as area_interactive
    from landscape.plots.interactive.areas import band_interactive as band_interactive
    from landscape.plots.interactive.areas import difference_interactive as difference_interactive
    from landscape.plots.interactive.lines import line_interactive as line_interactive
    from landscape.plots.interactive.lines import sharpness_interactive as sharpness_interactive
    from landscape.plots.interactive.paths import path_interactive as path_interactive
    from landscape.plots.interactive.profiles import profile_interactive as profile_interactive
    from landscape.plots.interactive.runs import trajectory_interactive as trajectory_interactive
    from landscape.plots.interactive.spectra import density_interactive as density_interactive
    from landscape.plots.interactive.spectra import eigs_interactive as eigs_interactive
    from landscape.plots.interactive.spectra import sweep_interactive as sweep_interactive
    from landscape.plots.interactive.spectra import trace_interactive as trace_interactive
    from landscape.plots.interactive.surfaces import contrast_interactive as contrast_interactive
    from landscape.plots.interactive.surfaces import surface_interactive as surface_interactive
    from landscape.plots.interactive.theory import theory_interactive as theory_interactive
    from landscape.plots.interactive.training import training_interactive as training_interactive
    from landscape.plots.lines import line_figure as line_figure
    from landscape.plots.paths import path_figure as path_figure
    from landscape.plots.profiles import profile_figure as profile_figure
    from landscape.plots.runs import trajectory_figure as trajectory_figure
    from landscape.plots.saving import save_figure as save_figure
    from landscape.plots.scales import Scale as Scale
    from landscape.plots.scales import common_scale as common_scale
    from landscape.plots.spectra import eigs_figure as eigs_figure
    from landscape.plots.spectra import sharpness_figure as sharpness_figure
    from landscape.plots.surfaces import surface_figure as surface_figure
    from landscape.plots.sweeps import sweep_figure as sweep_figure
    from landscape.plots.theory import theory_figure as theory_figure
    from landscape.plots.traces import trace_figure as trace_figure
    from landscape.plots.training import training_figure as training_figure

_HOME = {
    "Scale": "scales",
    "area_figure": "areas",
    "area_interactive": "interactive.areas",
    "band_figure": "bands",
    "band_interactive": "interactive.areas",
    "common_scale": "scales",
    "contrast": "contrasts",
    "contrast_interactive": "interactive.surfaces",
    "density_figure": "densities",
    "density_interactive": "interactive.spectra",
    "difference_figure": "differences",
    "difference_interactive": "interactive.areas",
    "eigs_figure": "spectra",
    "eigs_interactive": "interactive.spectra",
    "line_figure": "lines",
    "line_interactive": "interactive.lines",
    "path_figure": "paths",
    "path_interactive": "interactive.paths",
    "profile_figure": "profiles",
    "profile_interactive": "interactive.profiles",
    "save_figure": "saving",
    "sharpness_figure": "spectra",
    "sharpness_interactive": "interactive.lines",
    "surface_figure": "surfaces",
    "surface_interactive": "interactive.surfaces",
    "sweep_figure": "sweeps",
    "sweep_interactive": "interactive.spectra",
    "theory_figure": "theory",
    "theory_interactive": "interactive.theory",
    "trace_figure": "traces",
    "training_figure": "training",
    "training_interactive": "interactive.training",
    "trajectory_figure": "runs",
    "trajectory_interactive": "interactive.runs",
    "trace_interactive": "interactive.spectra",
}

__all__ = ["draw", "draw_interactive", *_HOME]


PICTURES = tuple(kind for kind in KINDS if f"{kind}_figure" in _HOME)
"""The kinds of record that have a picture: a function KIND_figure, and KIND_interactive."""


def draw(result: Result, **kwargs: Any) -> Any:
    """Draw a record with matplotlib, by the function ``KIND_figure`` of its kind.

    Args:
        result: a record of a kind that has such a function; another one, such as a loss alone, has
            no picture, and raises InvalidArgumentError.
        **kwargs: passed on to the function.

    Returns:
        The matplotlib figure.
    """
    return _drawer(result, "figure")(result, **kwargs)


def draw_interactive(result: Result, **kwargs: Any) -> Any:
    """Draw a record with plotly, by the function ``KIND_interactive`` of its kind.

    Args:
        result: a record of a kind that has such a function, as in `draw`.
        **kwargs: passed on to the function.

    Returns:
        The plotly figure.
    """
    return _drawer(result, "interactive")(result, **kwargs)


def _drawer(result: Result, picture: str) -> Any:
    if result.kind not in PICTURES:
        msg = (
            f"a record of kind {result.kind!r} is a few numbers and has no picture: read "
            f"result.rows(), or draw one of: {', '.join(PICTURES)}"
        )
        raise InvalidArgumentError(msg)
    return __getattr__(f"{result.kind}_{picture}")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        msg = f"module 'landscape.plots' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"landscape.plots.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
