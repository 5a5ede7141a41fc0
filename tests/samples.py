"""Synthetic records to draw: a sharp and a wide minimum, with no network behind them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from landscape import plots
from landscape.results import (
    AverageSharpness,
    Check,
    Cost,
    Density,
    Diagnosis,
    Differences,
    Eigenpairs,
    Evaluation,
    Flatness,
    Line,
    LossPath,
    Profile,
    Provenance,
    Sharpness,
    StepwiseSharpness,
    SubsetSharpness,
    Surface,
    TraceEstimate,
    TrainedCurve,
    TrainingLog,
    Trajectory,
)
from landscape.results.blocks import BlockSpectra
from landscape.results.comparison import Comparison, Measured
from landscape.results.stability import BatchSharpness, UpdateSharpness

N_PARAMETERS = 40
HOSTILE = """</script><script>document.title='owned'</script><img src=x onerror="owned()">'&"""


class Figures:
    """The functions of `landscape.plots`, returning the figure of the axes that they return."""

    def __getattr__(self, name: str) -> Any:
        function = getattr(plots, name)
        if not callable(function):
            return function

        def draw(*args: Any, **kwargs: Any) -> Any:
            drawn = function(*args, **kwargs)
            return drawn.figure if isinstance(drawn, Axes) else drawn

        return draw


figures = Figures()


def caption(figure: Any) -> str:
    """What is written around the panels of a figure, as one string."""
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    titles += [legend.get_title().get_text() for legend in figure.legends]
    return " ".join(" ".join([text.get_text() for text in figure.texts] + titles).split())


def key(figure: Any) -> list[str]:
    """What the key above the panels names."""
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def provenance(name="model.pt", *, split="train", n_examples=1437, data="data-1"):
    return Provenance(
        checkpoint=name,
        checkpoint_hash=f"hash-of-{name}",
        data_fingerprint=f"{data}-{split}",
        problem_fingerprint="problem-1",
        split=split,
        mode="eval",
        device="cpu",
        dtype="float32",
        n_parameters=N_PARAMETERS,
        n_examples=n_examples,
        versions={"landscape-sharpness": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6"},
        created="2026-01-02T03:04:05+00:00",
    )


def common(name, **kwargs):
    return {
        "cost": Cost(forwards=625, gradients=3, hvps=20, seconds=12.5),
        "provenance": provenance(name, **kwargs),
    }


def evaluation(name="model.pt", *, loss=0.05, accuracy=0.98, split="train", n_examples=1437):
    return Evaluation(
        settings={},
        loss=loss,
        loss_se=0.04 * loss,
        gradient_norm=0.012,
        metrics={"accuracy": accuracy},
        **common(name, split=split, n_examples=n_examples),
    )


def bowl(x, y, *, curvature, loss):
    """A quadratic near the minimum that saturates into a ragged plateau far from it."""
    rise = 0.5 * curvature * (x**2 + 0.35 * y**2 + 0.25 * x * y)
    return loss + rise / (1 + 0.12 * rise) + 0.02 * rise * np.sin(3 * x + 2 * y)


def surface(
    name="model.pt", *, curvature=20.0, loss=0.05, nx=25, ny=21, reach=1.0, y_reach=None, seed=0
):
    x = np.linspace(-reach, reach, nx)
    y = np.linspace(-(y_reach or reach), y_reach or reach, ny)
    z = bowl(x[:, None], y[None, :], curvature=curvature, loss=loss)
    return Surface(
        settings={
            "plane": "random",
            "d1": {"kind": "random", "seed": seed, "digest": "0123456789abcdef"},
            "d2": {"kind": "random", "seed": seed, "digest": "fedcba9876543210"},
            "x": x.tolist(),
            "y": y.tolist(),
        },
        x=x,
        y=y,
        loss=z,
        loss_se=0.03 * z,
        plane=f"filter-normalised random direction (seed {seed})",
        direction_norms=(7.31, 7.02),
        cosine=0.004,
        origin_loss=loss,
        **common(name),
    )


def line(
    name="model.pt",
    *,
    curvature=20.0,
    loss=0.05,
    n=41,
    reach=1.0,
    direction="worst-case direction (ρ = 0.1)",
    norm=0.1,
):
    x = np.linspace(-reach, reach, n)
    z = bowl(x, 0.0, curvature=curvature, loss=loss)
    return Line(
        settings={"direction": "given", "d": {"kind": "given", "seed": None}, "x": x.tolist()},
        x=x,
        loss=z,
        loss_se=0.03 * z,
        direction=direction,
        direction_norm=norm,
        origin_loss=loss,
        **common(name),
    )


def eigenpairs(name="model.pt", *, top=20.0, k=5, converged=True):
    values = top / 1.6 ** np.arange(k)
    return Eigenpairs(
        settings={"k": k, "seed": 0},
        values=values,
        residuals=values * (1e-4 if converged else 0.2),
        vectors=np.eye(k, N_PARAMETERS),
        matvecs=60,
        converged=converged,
        method="lanczos",
        **common(name),
    )


def sharpness(name="model.pt", *, value=0.4, rho=0.1, p=2.0, converged=True, loss=0.05):
    epsilon = np.zeros(N_PARAMETERS)
    epsilon[0] = rho
    return Sharpness(
        settings={"rho": rho, "p": p, "seed": 0},
        value=value,
        one_step=0.83 * value,
        gap=1e-6 if converged else 0.3,
        gradients=48,
        rho=rho,
        p=p,
        loss=loss,
        norm=rho,
        converged=converged,
        epsilon=epsilon,
        starts=("gradient", "eigenvector", "random 0"),
        start_values=np.array([0.97, 1.0, 0.9]) * value,
        start_gaps=np.array([1e-5, 1e-6, 1e-4]),
        **common(name),
    )


def subset_sharpness(name="model.pt", *, value=0.4, rho=0.1, k=5):
    shares = np.linspace(0.8, 1.2, k)
    return SubsetSharpness(
        settings={"rho": rho, "p": 2.0, "m": 128, "seed": 0},
        values=value * shares,
        one_steps=0.83 * value * shares,
        gaps=np.geomspace(1e-6, 1e-3, k),
        losses=0.05 * shares,
        gradients=31 * k,
        m=128,
        n_left_out=3,
        rho=rho,
        p=2.0,
        tol=1e-4,
        **common(name),
    )


def profile(name="model.pt", *, curvature=20.0, weight_norm=10.0, k=6, p=2.0):
    """A bowl whose slope is small and whose sides fall behind its parabola far out."""
    rhos = np.geomspace(0.01, 1.0, k)
    bowl = 0.01 * rhos + 0.5 * curvature * rhos**2
    values = bowl / (1 + rhos)
    known = math.nan if p != 2 else 1.0
    return Profile(
        settings={"rhos": rhos.tolist(), "p": p, "seed": 0},
        rhos=rhos,
        values=values,
        one_steps=0.6 * values,
        gaps=np.full(k, 1e-5),
        norms=rhos.copy(),
        predictions=bowl * known,
        quadratic_maxima=0.99 * bowl * known,
        loss=0.05,
        weight_norm=weight_norm,
        gradients=200,
        p=p,
        tol=1e-4,
        **common(name),
    )


def stepwise(name="model.pt", *, rho=0.1):
    return StepwiseSharpness(
        settings={"rho": rho, "p": 2.0, "steps": [1, 2, 5], "seed": 0},
        rho=rho,
        p=2.0,
        loss=0.05,
        steps=np.array([1, 2, 5]),
        rises=np.array([0.1, 0.25, math.nan]),
        norms=np.array([rho, 0.97 * rho, 0.91 * rho]),
        **common(name),
    )


def update_sharpness(name="model.pt", *, critical=20.0, lr=0.05):
    return UpdateSharpness(
        settings={"update": "gradient", "lr": lr, "tol": 0.0625, "directional": True, "seed": 0},
        lr=lr,
        critical_lr=2 / critical,
        critical_lr_se=0.05 / critical,
        low=1.96 / critical,
        high=2.04 / critical,
        slope=0.3,
        curvature=0.29 * critical,
        loss=0.05,
        **common(name),
    )


def batch_sharpness(name="model.pt", *, value=30.0, n=16):
    values = value * (1 + 0.1 * np.cos(np.arange(n)))
    return BatchSharpness(
        settings={"batch_size": 32, "n_batches": n, "seed": 0},
        value=float(values.mean()),
        standard_error=0.5,
        low=value - 1.0,
        high=value + 1.0,
        noise=140.0,
        noise_se=12.0,
        values=values,
        squared_norms=np.linspace(0.5, 1.0, n),
        batch_size=32,
        exhaustive=False,
        loss=0.05,
        **common(name),
    )


def blocks(name="model.pt"):
    return BlockSpectra(
        settings={"blocks": {"embedding": ["a"], "other": ["b"]}, "steps": 32, "n_probes": 8},
        blocks=("embedding", "other"),
        sizes=np.array([100.0, 40.0]),
        largest=np.array([0.5, 7.25]),
        residuals=np.array([1e-4, 2e-4]),
        traces=np.array([1.0, 9.0]),
        trace_errors=np.array([0.1, 0.2]),
        distances=np.array([[0.02, 0.75], [0.75, 0.03]]),
        matvecs=420,
        **common(name),
    )


def training(name="model.pt", *, optimizer="sgd", epochs=6):
    count = np.arange(1, epochs + 1)
    return TrainingLog(
        settings={"problem": "digits", "optimizer": optimizer, "lr": 0.05, "seed": 0},
        epochs=count,
        train_loss=2.0 * np.exp(-0.5 * count),
        lr=0.05 * np.cos(0.1 * count),
        seconds=np.full(epochs, 0.25),
        gradients=23 * epochs,
        **common(name),
    )


def average(name="model.pt", *, curvature=20.0, rho=0.1, n=8, slope=0.01):
    """Samples of a bowl: what is even in ε grows with ρ², what is odd with ρ."""
    even = 0.5 * curvature * rho**2 * np.linspace(0.8, 1.2, n)
    odd = slope * rho * np.cos(np.arange(n))
    return AverageSharpness(
        settings={
            "rho": rho,
            "distribution": "gaussian",
            "adaptive": "none",
            "eta": 0.0,
            "seed": 0,
        },
        value=float(even.mean()),
        standard_error=float(even.std(ddof=1) / math.sqrt(n)),
        low=0.9 * float(even.mean()),
        high=1.1 * float(even.mean()),
        rho=rho,
        loss=0.05,
        rises=np.stack([even + odd, even - odd], axis=1),
        converged=True,
        predicted=0.5 * curvature * rho**2,
        predicted_error=0.01 * curvature * rho**2,
        n_moved=N_PARAMETERS,
        engine="plain",
        **common(name),
    )


def flatness(name="model.pt", *, curvature=20.0):
    return Flatness(
        settings={"rho": 0.05, "rise": 0.1, "seed": 0},
        loss=0.05,
        gradient_norm=0.012,
        fisher_rao=0.3,
        fisher_rao_se=0.02,
        gap=0.5 * curvature * 0.05**2,
        gap_se=0.001,
        rho=0.05,
        rise=0.1,
        sigma=0.02,
        sigma_se=0.001,
        left_out={"pac_bayes_magnitude": "the average rise stays below 0.1 as far as σ = 1.0e+20"},
        layers=("0", "2"),
        relative_flatness=np.array([3.0, 5.0]),
        relative_flatness_se=np.array([0.1, 0.2]),
        relative_flatness_low=np.array([2.8, 4.6]),
        relative_flatness_high=np.array([3.2, 5.4]),
        products="double backward, 1 of 1 graphs kept (1 MiB)",
        **common(name),
    )


def measured(name="model.pt", *, curvature=20.0, loss=0.05, accuracy=0.98, reach=1.0, **grid):
    """Everything there is to measure on a bowl of a given curvature."""
    steep = 8 * curvature
    rho = 0.1
    tip = float(bowl(rho, 0.0, curvature=steep, loss=loss) - loss)
    worst = line(name, curvature=steep * rho**2 * 4, loss=loss, norm=2 * rho)
    return Measured(
        name=name,
        evaluation=evaluation(name, loss=loss, accuracy=accuracy),
        test=evaluation(
            name, loss=3 * loss, accuracy=accuracy - 0.03, split="test", n_examples=360
        ),
        eigenpairs=eigenpairs(name, top=steep),
        sharpness=sharpness(name, value=tip, rho=rho, loss=loss),
        surface=surface(name, curvature=curvature, loss=loss, reach=reach, **grid),
        worst_line=dataclasses.replace(
            worst, loss=bowl(worst.distance, 0.0, curvature=steep, loss=loss)
        ),
        random_line=line(
            name,
            curvature=curvature,
            loss=loss,
            direction="filter-normalised random direction",
            norm=7.31,
        ),
    )


def sharp(name="SGD", **kwargs):
    return measured(name, **{"curvature": 60.0, "loss": 0.04, "accuracy": 0.99, **kwargs})


def wide(name="SAM", **kwargs):
    return measured(name, **{"curvature": 6.0, "loss": 0.045, "accuracy": 0.985, **kwargs})


def comparison(*models):
    return Comparison(models=models or (sharp(), wide()))


def with_bad_corner(record):
    """The same surface with a corner that is NaN and one point that is infinite."""
    loss = record.loss.copy()
    loss[:3, :2] = np.nan
    loss[-1, -1] = np.inf
    return dataclasses.replace(record, loss=loss)


def _bell(grid, centre, width):
    return np.exp(-0.5 * ((grid - centre) / width) ** 2) / (width * np.sqrt(2 * np.pi))


OUTLIERS = (0.48, 0.3, 0.12, 0.09, 0.07)


def density(name="model.pt", *, outliers=OUTLIERS, n=77_754, bulk=1e-3, bandwidth=4e-4, **kwargs):
    """A bulk at zero of a given width, 1 % of the mass below it, and a few eigenvalues far out."""
    atoms = np.asarray(outliers, dtype=np.float64)
    high = max(float(atoms.max(initial=0.0)), 0.05)
    grid = np.arange(-0.03 * high - 10 * bandwidth, 1.01 * high + 6 * bandwidth, bandwidth / 4)
    mass = {0.0: 0.90, bulk: 0.08, -2 * bulk: 0.01, 10 * bulk: 0.01 - len(atoms) / n}
    curve = sum(
        share * _bell(grid, centre, np.hypot(bulk if centre else 0.0, bandwidth))
        for centre, share in mass.items()
    )
    curve = curve + sum(_bell(grid, atom, bandwidth) / n for atom in atoms)
    return Density(
        settings={"seed": 0, "operator": "hessian"},
        grid=grid,
        density=curve,
        low=0.8 * curve,
        high=1.2 * curve,
        bandwidth=bandwidth,
        confidence=0.95,
        negative=0.0103,
        negative_low=0.0089,
        negative_high=0.0117,
        atoms=atoms,
        atom_residuals=1e-6 * atoms,
        mean=3.1e-4,
        mean_se=2e-6,
        mean_square=5.2e-6,
        mean_square_se=1e-8,
        nodes=np.zeros((16, 80)),
        weights=np.full((16, 80), 1 / 80),
        n_probes=16,
        steps=80,
        matvecs=1380,
        **_sized(name, n, **kwargs),
    )


def trace(
    name="model.pt", *, value=40.0, layers=(), converged=True, exact=False, error=0.05, n=77_754
):
    """A trace, and those of layers that fall off by the square of their number."""
    rank = np.arange(1, len(layers) + 1)
    parts = value * (1 / rank**2) / max(1e-12, float(np.sum(1 / rank**2)))
    spread = error * np.abs(parts) + 0.0005 * value
    return TraceEstimate(
        settings={"seed": 0, "operator": "hessian"},
        value=value,
        standard_error=error * value,
        low=value * (1 - 2 * error),
        high=value * (1 + 2 * error),
        confidence=0.95,
        n_probes=0 if exact else 64,
        converged=converged,
        exact=exact,
        method="hutchinson",
        layers=tuple(layers),
        layer_sizes=100.0 * rank,
        layer_values=parts,
        layer_standard_errors=spread,
        layer_low=parts - 2 * spread,
        layer_high=parts + 2 * spread,
        matvecs=64,
        **_sized(name, n),
    )


def both_ends(name="model.pt", *, top=20.0, k=5, n_lowest=2, **kwargs):
    """Eigenpairs with everything that can be known of them."""
    record = eigenpairs(name, top=top, k=k, **kwargs)
    lowest = -top / 40 * (1 + np.arange(n_lowest))
    values = np.concatenate([record.values, lowest])
    return dataclasses.replace(
        record,
        values=values,
        residuals=np.abs(values) * (1e-4 if record.converged else 0.1),
        vectors=np.eye(k + n_lowest, N_PARAMETERS),
        n_lowest=n_lowest,
        upper_bound=1.08 * top,
        failure_probability=0.01,
        data_errors=0.08 * np.abs(values) + 0.01 * top,
        n_groups=16,
        gauss_newton=np.maximum(0.97 * values, 0.01 * top),
    )


def sweep(n=8, *, k=5, pattern="step-{}", step=100, unconverged=()):
    """Eigenpairs over training: they rise, and then fall off."""
    rise = 20 * np.sin(np.linspace(0.3, 2.6, n)) + 2
    return [
        dataclasses.replace(
            eigenpairs(pattern.format(step * i), top=t, k=k, converged=i not in unconverged),
            data_errors=0.06 * t / 1.6 ** np.arange(k),
            n_groups=16,
        )
        for i, t in enumerate(rise)
    ]


def _sized(name, n, **kwargs):
    shared = common(name, **kwargs)
    return {**shared, "provenance": dataclasses.replace(shared["provenance"], n_parameters=n)}


def path(name="model.pt", *, n=7, curve="bezier"):
    t = np.linspace(0.0, 1.0, n)
    loss = 0.05 + 0.02 * t + t * (1 - t)
    return LossPath(
        settings={"end": "hash-of-end.pt", "curve": curve, "seed": 0, "t": t.tolist()},
        t=t,
        loss=loss,
        loss_se=0.03 * loss,
        metrics={"accuracy": 1 - loss, "test loss": 2 * loss, "test loss_se": 0.1 * loss},
        end="end.pt",
        curve=curve,
        bends=np.full((0 if curve == "linear" else 1, N_PARAMETERS), 0.25),
        distance=3.0,
        length=3.0 if curve == "linear" else 3.5,
        end_losses=(0.05, 0.07),
        statistics="recalibrated",
        held_out="test",
        training_losses=np.array([] if curve == "linear" else [0.4, 0.2, 0.1]),
        **common(name),
    )


def trained_curve(name="model.pt"):
    return TrainedCurve(
        settings={"end": "hash-of-end.pt", "curve": "bezier", "seed": 0, "epochs": 3},
        end="end.pt",
        curve="bezier",
        bends=np.full((1, N_PARAMETERS), 0.25),
        velocity=np.full((1, N_PARAMETERS), -0.5),
        losses=np.array([0.4, 0.2]),
        epochs=3,
        **common(name),
    )


def trajectory(name="model.pt", *, m=5, run="A"):
    t = np.linspace(1.0, 0.1, m)
    return Trajectory(
        settings={"plane": "principal", "d1": {"digest": "a"}, "d2": {"digest": "b"}},
        run=run,
        names=tuple(f"epoch-{k}.pt" for k in range(m)),
        x=t,
        y=t**2 - 0.3,
        distances=2 * t,
        off_plane=0.5 * t,
        loss=0.05 + t**2,
        loss_se=0.01 * t,
        projected_loss=0.04 + t**2,
        projected_loss_se=0.01 * t,
        plane="principal plane of a run of 6 checkpoints",
        direction_norms=(1.0, 1.0),
        cosine=0.0,
        origin_loss=0.05,
        **common(name),
    )


def diagnosis(name="model.pt"):
    return Diagnosis(
        settings={"seed": 0},
        checks=(
            Check(name="loss", verdict="fine", finding="loss 0.05", numbers={"loss": 0.05}),
            Check(
                name="gradient",
                verdict="warning",
                finding="norm 0.3: not a minimum",
                advice="train on",
                numbers={"norm": 0.3, "noise": math.nan},
            ),
            Check(name="BatchNorm", verdict="not applicable", finding="no such layer"),
        ),
        rescaled=("0 times 4, 2 divided by it",),
        measures=("largest eigenvalue", "largest eigenvalue, elementwise scale"),
        before=np.array([20.0, 3.0]),
        after=np.array([50.0, 3.0]),
        **common(name),
    )


def differences(name="model.pt", *, against="other.pt"):
    return Differences(
        settings={"against": "hash-of-other.pt", "rho": 0.05, "seed": 0},
        against=against,
        names=("loss", "sharpness, ρ = 0.05"),
        own=np.array([0.05, 0.2]),
        other=np.array([0.06, 0.9]),
        standard_error=np.array([0.02, 0.1]),
        low=np.array([-0.05, -0.9]),
        high=np.array([0.03, -0.5]),
        notes=("the losses differ much",),
        **common(name),
    )
