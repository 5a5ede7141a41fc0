"""Training runs on maps and reliefs: where they are drawn, and what is said beside them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import samples
from samples import figures as plots

from landscape.errors import InvalidArgumentError
from landscape.plots.interactive.trajectories import run_traces
from landscape.plots.scales import common_scale
from landscape.plots.trajectories import relief_dots, relief_path, run_names
from landscape.results import Surface, Trajectory
from landscape.results.comparison import Comparison, Measured

KINDS = ("contour", "contourf", "heatmap", "3d")


def run_on(surface: Surface, run: str = "A", *, m: int = 5, turn: float = 1.0) -> Trajectory:
    """A run that comes in from a corner, off the plane by 0.5 at its start."""
    back = np.linspace(1.0, 0.0, m)
    x, y = 0.9 * back * surface.x.max(), turn * 0.7 * back**2 * surface.y.max()
    off = 0.5 * back
    projected = np.array([np.interp(v, [0.0, 1.0], [0.2, 3.0]) for v in back])
    return Trajectory(
        run=run,
        names=tuple(f"e{i}" for i in range(m)),
        x=x,
        y=y,
        distances=np.hypot(np.hypot(7.31 * x, 7.02 * y), off),
        off_plane=off,
        loss=0.8 * projected,
        loss_se=0.05 * projected,
        projected_loss=projected,
        projected_loss_se=0.05 * projected,
        plane=surface.plane,
        direction_norms=surface.direction_norms,
        cosine=surface.cosine,
        origin_loss=surface.origin_loss,
        settings={key: surface.settings[key] for key in ("plane", "d1", "d2")},
        cost=surface.cost,
        provenance=surface.provenance,
    )


def grid(nx: int = 9, ny: int = 6) -> Surface:
    return samples.surface(nx=nx, ny=ny, y_reach=0.5)


said = samples.caption


def paths(axes: object) -> list[object]:
    """The paths of runs in axes, not their dots."""
    return [line for line in axes.lines if line.get_path_effects()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS[:3])
def test_runs_are_drawn_at_their_own_x_and_y(kind: str) -> None:
    surface = grid()
    runs = [run_on(surface), run_on(surface, "B", turn=-1.0)]
    axes = plots.draw(surface, kind=kind, trajectories=runs).axes[0]
    for index, (run, line) in enumerate(zip(runs, paths(axes), strict=True)):
        np.testing.assert_array_equal(line.get_xdata(), run.x)
        np.testing.assert_array_equal(line.get_ydata(), run.y)
        assert line.get_color() == ("#d55e00", "#009e73")[index]
        assert line.get_label() == run.run
    axes = plots.draw(surface, kind=kind, trajectories=runs, colours={"B": "#123456"}).axes[0]
    assert paths(axes)[1].get_color() == "#123456"


def test_the_first_checkpoint_is_a_ring_and_the_last_a_star() -> None:
    surface = grid()
    run = run_on(surface)
    axes = plots.draw(surface, trajectories=[run]).axes[0]
    dots = {line.get_marker(): line for line in axes.lines if line.get_linestyle() == "None"}
    star, rings = (
        dots["*"],
        [x for x in axes.lines if (x.get_marker(), x.get_markerfacecolor()) == ("o", "white")],
    )
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (run.x[-1], run.y[-1])
    assert [(x.get_xdata()[0], x.get_ydata()[0]) for x in rings] == [(run.x[0], run.y[0])]


def test_a_run_beyond_the_map_leaves_its_range_and_is_counted() -> None:
    surface = grid()
    run = run_on(surface)
    far = dataclasses.replace(run, x=run.x + np.array([5.0, 5.0, 0.0, 0.0, 0.0]))
    plain, figure = plots.draw(surface), plots.draw(surface, trajectories=[far])
    assert figure.axes[0].get_xlim() == plain.axes[0].get_xlim()
    assert figure.axes[0].get_ylim() == plain.axes[0].get_ylim()
    assert "2 of 5 checkpoints lie outside of the map" in said(figure)
    assert "outside of the map" not in said(plots.draw(surface, trajectories=[run]))


def test_the_caption_says_that_a_run_lies_off_the_plane() -> None:
    surface = grid()
    run = run_on(surface)
    text = said(plots.draw(surface, trajectories=[run, run_on(surface, "b/c", turn=-1.0)]))
    assert "training runs, from the ring to the star" in text
    share = run.off_plane[0] / run.distances[0]
    assert f"off it by up to 0.5 ({share:.0%} of the distance from +)" in text
    assert "heights are those of the projections" in text
    assert f"own losses differ from these by up to {0.2 * run.projected_loss[0]:.4g}" in text
    assert "Paths" not in said(plots.draw(surface))


def test_panels_show_both_losses_and_both_distances() -> None:
    run = run_on(grid())
    losses, distances = plots.draw(run).axes
    true, projected = losses.lines
    np.testing.assert_array_equal(true.get_ydata(), run.loss)
    np.testing.assert_array_equal(projected.get_ydata(), run.projected_loss)
    assert (true.get_linestyle(), projected.get_linestyle()) == ("-", "--")
    off, away = distances.lines
    np.testing.assert_array_equal(off.get_ydata(), run.off_plane)
    np.testing.assert_array_equal(away.get_ydata(), run.distances)
    assert losses.get_yscale() == "log"  # 0.16 to 3


def test_dots_on_a_relief_have_the_measured_height_of_their_projection() -> None:
    surface = grid()
    run = run_on(surface)
    for name in ("linear", "log", "excess"):
        scale = common_scale([surface], name)
        x, y, z = relief_dots(run, surface, scale)
        shift = surface.origin_loss if scale.rise else 0.0
        np.testing.assert_array_equal((x, y), (run.x, run.y))
        expected = np.clip(run.projected_loss - shift, scale.low, scale.high)
        np.testing.assert_allclose(z, scale.forward(expected))


def test_a_path_follows_the_squares_of_a_relief() -> None:
    """On a bilinear loss the squares hold the loss itself, in x, y and with nx ≠ ny."""
    surface = grid(9, 4)
    x, y = surface.x[:, None], surface.y[None, :]
    surface = dataclasses.replace(surface, loss=2 + x + 10 * y + 3 * x * y)
    run = run_on(surface)
    scale = common_scale([surface], "linear")
    px, py, pz = relief_path(run, surface, scale)
    np.testing.assert_allclose(pz, 2 + px + 10 * py + 3 * px * py, atol=1e-12)
    np.testing.assert_allclose((px[::16], py[::16]), (run.x, run.y))
    axes = plots.draw(surface, kind="3d", scale="linear", trajectories=[run]).axes[0]
    (path,) = paths(axes)
    np.testing.assert_allclose(path.get_data_3d(), (px, py, pz))


def test_what_lies_outside_of_a_relief_is_left_out() -> None:
    surface = grid()
    run = run_on(surface)
    far = dataclasses.replace(run, x=run.x + np.array([5.0, 0.0, 0.0, 0.0, 0.0]))
    scale = common_scale([surface], "linear")
    np.testing.assert_array_equal(
        np.isnan(relief_dots(far, surface, scale)), [[True, False, False, False, False]] * 3
    )
    x, _, z = relief_path(far, surface, scale)
    assert np.nanmax(x) <= surface.x.max()
    assert np.isnan(z[0])
    assert np.isfinite(z[16:]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [1, 2, 3])
def test_runs_of_any_length_and_losses_that_are_not_finite_are_drawn(
    tmp_path: object, kind: str, m: int
) -> None:
    surface = samples.with_bad_corner(grid())
    run = run_on(surface, m=m)
    run = dataclasses.replace(
        run, loss=np.where(np.arange(m) == 0, np.nan, run.loss), projected_loss=run.loss * np.inf
    )
    figure = plots.draw(surface, kind=kind, trajectories=[run])
    assert f"and {m} of {m} are not finite" in said(figure)
    plots.save_figure(figure, tmp_path / "x.png", dpi=30)  # type: ignore[operator]


def test_a_run_of_another_plane_is_refused() -> None:
    surface = grid()
    other = dataclasses.replace(
        run_on(surface), settings={**run_on(surface).settings, "d2": {"digest": "other"}}
    )
    for draw in (plots.draw, plots.draw_interactive):
        with pytest.raises(InvalidArgumentError, match="A was projected on another plane"):
            draw(surface, trajectories=[other])
    model = Measured(name="m", surface=surface, trajectories=(other,))
    with pytest.raises(InvalidArgumentError, match="same options of the plane"):
        plots.plot_comparison(Comparison(models=(model,)))


def test_runs_of_one_name_are_told_apart() -> None:
    surface = grid()
    assert run_names([run_on(surface, "A"), run_on(surface, "B")]) == ["A", "B"]
    twice = [run_on(surface, ""), run_on(surface, ""), run_on(surface, "B")]
    assert run_names(twice) == ["run of 5 checkpoints (1)", "run of 5 checkpoints (2)", "B"]


def test_the_contrast_draws_each_run_on_its_own_checkpoint() -> None:
    models = []
    for model in samples.comparison().models:
        run = run_on(model.surface, f"run of {model.name}", turn=len(models) - 0.5)
        models.append(dataclasses.replace(model, trajectories=(run,)))
    figure = plots.plot_comparison(samples.comparison(*models))
    drawn = [axes for axes in figure.axes if paths(axes)]
    assert [axes.name for axes in drawn] == ["3d", "3d", "rectilinear", "rectilinear"]
    for axes, model in zip(drawn[2:], models, strict=True):
        (path,) = paths(axes)
        np.testing.assert_array_equal(path.get_ydata(), model.trajectories[0].y)
    text = said(figure)
    assert "On SGD: Paths: training runs" in text
    assert "On SAM: Paths:" in text


@pytest.mark.parametrize("kind", KINDS)
def test_the_contrast_draws_surfaces_of_one_kind_when_asked_to(kind: str) -> None:
    figure = plots.plot_comparison(samples.comparison(), kind=kind)
    reliefs = [axes for axes in figure.axes if axes.name == "3d"]
    assert len(reliefs) == (2 if kind == "3d" else 0)
    maps = [a for a in figure.axes if a.get_xlabel().startswith("x, in units of d")]
    assert len(maps) == (0 if kind == "3d" else 2)
    assert len([a for a in figure.axes if a.get_label() == "<colorbar>"]) == 1
    with pytest.raises(InvalidArgumentError, match="kind of surface picture 'relief'"):
        plots.plot_comparison(samples.comparison(), kind="relief")


def test_the_picture_of_runs_alone() -> None:
    surface = grid()
    runs = [run_on(surface), run_on(surface, "B", m=3)]
    figure = plots.draw(runs[0])
    assert figure.axes[0].lines[0].get_label() == "A"
    figure = plots.plot_trajectory(runs, names=["one", "$two$"])
    losses = figure.axes[0]
    np.testing.assert_array_equal(losses.lines[2].get_ydata(), runs[1].loss)
    assert [x.get_label() for x in losses.lines[::2]] == ["one", r"\$two\$"]
    with pytest.raises(InvalidArgumentError, match="one name per record; got 1 for 2"):
        plots.plot_trajectory(runs, names=["one"])
    with pytest.raises(InvalidArgumentError, match="nothing to draw"):
        plots.plot_trajectory([])


def test_checkpoints_are_named_where_their_names_fit() -> None:
    run = dataclasses.replace(run_on(grid()), names=tuple("abcde"))
    axes = plots.draw(run).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == list(run.names)
    long = dataclasses.replace(run, names=tuple(f"checkpoint-{i * '1'}-x" for i in range(5)))
    assert plots.draw(long).axes[0].get_xlabel() == "number of the checkpoint"


def test_checkpoints_stand_at_the_numbers_of_their_names() -> None:
    steps = (10, 20, 40, 80, 160)
    run = dataclasses.replace(run_on(grid()), names=tuple(f"net-step-{n}" for n in steps))
    axes = plots.draw(run).axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), steps)
    assert axes.get_xlabel() == "step"
    backwards = dataclasses.replace(run, names=run.names[::-1])
    assert plots.draw(backwards).axes[0].get_xlabel() != "step"


def test_interactive_runs_have_the_same_places_and_tell_both_losses() -> None:
    surface = grid()
    run = dataclasses.replace(run_on(surface, samples.HOSTILE), names=("<b>", *"abcd"))
    scale = common_scale([surface], "linear")
    path, dots = run_traces([run], surface, scale)
    np.testing.assert_array_equal((dots.x, dots.y), (run.x, run.y))
    np.testing.assert_allclose(dots.z, run.projected_loss, atol=0.01 * (scale.high - scale.low))
    assert path.line.color == dots.marker.color == "#d55e00"
    assert dots.marker.symbol[0] == "circle-open"
    assert dots.marker.symbol[-1] == "diamond"
    first = dots.hovertext[0]
    assert "loss 2.40 ± 0.15<br>loss of its projection 3.00 ± 0.15" in first
    assert "0.5 off the plane" in first
    assert "<script" not in first
    assert "&lt;b&gt;" in first
    figure = plots.draw_interactive(surface, trajectories=[run])
    assert figure.data[0].opacity == 0.8
    assert plots.draw_interactive(surface).data[0].opacity is None


def test_the_interactive_picture_of_runs_alone() -> None:
    run = run_on(grid())
    figure = plots.draw_interactive(run)
    drawn = [trace.y for trace in figure.data]
    expected = [run.loss, run.projected_loss, run.off_plane, run.distances]
    for one, other in zip(drawn, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert [trace.xaxis for trace in figure.data] == ["x", "x", "x2", "x2"]
