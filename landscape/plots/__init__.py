"""Pictures of results: records in, matplotlib axes or a plotly figure out; nothing is measured.

``plot_KIND`` draws records of a kind into axes of the user or of a new picture; ``explore_KIND``
draws them with plotly where turning or hovering shows more. `draw` and `draw_interactive` find them
by the kind of a record; `save_figure` writes a figure. The names are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from landscape.errors import InvalidArgumentError
from landscape.results import KINDS, Result

if TYPE_CHECKING:
    from landscape.plots.areas import plot_area as plot_area
    from landscape.plots.comparison import plot_comparison as plot_comparison
    from landscape.plots.densities import plot_density as plot_density
    from landscape.plots.differences import plot_difference as plot_difference
    from landscape.plots.interactive.surfaces import explore_comparison as explore_comparison
    from landscape.plots.interactive.surfaces import explore_surface as explore_surface
    from landscape.plots.interactive.sweeps import explore_sweep as explore_sweep
    from landscape.plots.interactive.theory import explore_theory as explore_theory
    from landscape.plots.interactive.trajectories import explore_trajectory as explore_trajectory
    from landscape.plots.lines import plot_band as plot_band
    from landscape.plots.lines import plot_line as plot_line
    from landscape.plots.paths import plot_path as plot_path
    from landscape.plots.profiles import plot_profile as plot_profile
    from landscape.plots.saving import save_figure as save_figure
    from landscape.plots.scales import Scale as Scale
    from landscape.plots.scales import common_scale as common_scale
    from landscape.plots.spectra import plot_eigs as plot_eigs
    from landscape.plots.spectra import plot_sharpness as plot_sharpness
    from landscape.plots.style import colours_by_name as colours_by_name
    from landscape.plots.surfaces import plot_surface as plot_surface
    from landscape.plots.sweeps import plot_sweep as plot_sweep
    from landscape.plots.sweeps import plot_training as plot_training
    from landscape.plots.theory import plot_theory as plot_theory
    from landscape.plots.traces import plot_trace as plot_trace
    from landscape.plots.trajectories import plot_trajectory as plot_trajectory

_HOME = {
    "Scale": "scales",
    "colours_by_name": "style",
    "common_scale": "scales",
    "explore_comparison": "interactive.surfaces",
    "explore_surface": "interactive.surfaces",
    "explore_sweep": "interactive.sweeps",
    "explore_theory": "interactive.theory",
    "explore_trajectory": "interactive.trajectories",
    "plot_area": "areas",
    "plot_band": "lines",
    "plot_comparison": "comparison",
    "plot_density": "densities",
    "plot_difference": "differences",
    "plot_eigs": "spectra",
    "plot_line": "lines",
    "plot_path": "paths",
    "plot_profile": "profiles",
    "plot_sharpness": "spectra",
    "plot_surface": "surfaces",
    "plot_sweep": "sweeps",
    "plot_theory": "theory",
    "plot_trace": "traces",
    "plot_training": "sweeps",
    "plot_trajectory": "trajectories",
    "save_figure": "saving",
}

__all__ = ["draw", "draw_interactive", *_HOME]


PICTURES = tuple(kind for kind in KINDS if f"plot_{kind}" in _HOME)
"""The kinds of record that have a picture: a function plot_KIND."""


def draw(result: Result, **kwargs: Any) -> Any:
    """Draw a record with matplotlib, by the function ``plot_KIND`` of its kind.

    Args:
        result: a record of a kind that has such a function; another one, such as a loss alone, has
            no picture, and raises InvalidArgumentError.
        **kwargs: passed on to the function.

    Returns:
        The axes; the figure where the picture has several panels.
    """
    return _drawer(result, "plot")(result, **kwargs)


def draw_interactive(result: Result, **kwargs: Any) -> Any:
    """Draw a record with plotly, by the function ``explore_KIND`` of its kind.

    Args:
        result: a record of a kind that has such a function; another one raises
            InvalidArgumentError, which says how it is drawn.
        **kwargs: passed on to the function.

    Returns:
        The plotly figure.
    """
    return _drawer(result, "explore")(result, **kwargs)


def _drawer(result: Result, verb: str) -> Any:
    if result.kind not in PICTURES:
        msg = (
            f"a record of kind {result.kind!r} is a few numbers and has no picture: read "
            f"result.rows(), or draw one of: {', '.join(PICTURES)}"
        )
        raise InvalidArgumentError(msg)
    name = f"{verb}_{result.kind}"
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
