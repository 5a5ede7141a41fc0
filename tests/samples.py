"""Synthetic records to draw: a sharp and a wide minimum, with no network behind them."""

from __future__ import annotations

import dataclasses

import numpy as np

from landscape.measured import Comparison, Measured
from landscape.results import (
    Cost,
    Eigenpairs,
    Evaluation,
    Line,
    Provenance,
    Sharpness,
    Surface,
)

N_PARAMETERS = 40
HOSTILE = """</script><script>document.title='owned'</script><img src=x onerror="owned()">'&"""


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
