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
    from landscape.plots.interactive.runs import trajectory_interactive as trajectory_interactive
    from landscape.plots.interactive.surfaces import contrast_interactive as contrast_interactive
    from landscape.plots.interactive.surfaces import surface_interactive as surface_interactive
    from landscape.plots.interactive.sweeps import sweep_interactive as sweep_interactive
    from landscape.plots.interactive.theory import theory_interactive as theory_interactive
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
    "band_figure": "bands",
    "common_scale": "scales",
    "contrast": "contrasts",
    "contrast_interactive": "interactive.surfaces",
    "density_figure": "densities",
    "difference_figure": "differences",
    "eigs_figure": "spectra",
    "line_figure": "lines",
    "path_figure": "paths",
    "profile_figure": "profiles",
    "save_figure": "saving",
    "sharpness_figure": "spectra",
    "surface_figure": "surfaces",
    "surface_interactive": "interactive.surfaces",
    "sweep_figure": "sweeps",
    "sweep_interactive": "interactive.sweeps",
    "theory_figure": "theory",
    "theory_interactive": "interactive.theory",
    "trace_figure": "traces",
    "training_figure": "training",
    "trajectory_figure": "runs",
    "trajectory_interactive": "interactive.runs",
}

__all__ = ["draw", "draw_interactive", *_HOME]


PICTURES = tuple(kind for kind in KINDS if f"{kind}_figure" in _HOME)
"""The kinds of record that have a picture: a function KIND_figure."""


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
    name = f"{result.kind}_{picture}"
    if name not in _HOME:
        msg = (
            f"a record of kind {result.kind!r} has no interactive picture: draw it with plot(), or "
            "save it as .png, .pdf or .svg"
        )
        raise InvalidArgumentError(msg)
    return __getattr__(name)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        msg = f"module 'landscape.plots' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"landscape.plots.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
