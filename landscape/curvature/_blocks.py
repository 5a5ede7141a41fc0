"""The diagonal blocks of the Hessian: how much they carry, and how unlike their spectra are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.spatial.distance import jensenshannon
from torch import nn

from landscape.checks import whole
from landscape.curvature._density import spectral_density
from landscape.errors import InvalidArgumentError
from landscape.measurement import Run, Work
from landscape.problem import Problem, check_problem
from landscape.results import Density, FloatArray
from landscape.results.blocks import BlockSpectra
from landscape.study import Study

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_WIDTH, _POINTS = 0.25, 512  # of the Gaussian in asinh(λ/s), and of the grid
_LINEAR = 1e-4  # s, relative to the largest |λ| of all blocks


def block_spectra(
    problem: Problem,
    blocks: Mapping[str, Sequence[str]] | None = None,
    *,
    steps: int = 32,
    n_probes: int = 8,
    seed: int = 0,
    study: Study | None = None,
    progress: bool | None = None,
) -> BlockSpectra:
    """Compare the diagonal blocks of the Hessian of embedding, attention, MLP, norms, ….

    Of each block: the largest eigenvalue, the trace, and the density of the eigenvalues from
    Lanczos runs. The distance of two blocks is the Jensen-Shannon distance (base 2) of their
    densities along asinh(λ/s), s being 1e-4 of the largest |λ| of all, smoothed by a Gaussian of
    width 0.25 there: 0 for equal spectra, 1 for spectra apart.

    Args:
        problem: what to measure.
        blocks: patterns of parameters, as for `Problem.only`, by the name of the block. None: by
            what the modules are, embedding, attention, norm and the rest.
        steps: Lanczos steps of each probe, at most.
        n_probes: random vectors for each block, at least 4.
        seed: of the probes.
        study: where the result is kept, and looked up first.
        progress: show a bar on stderr; None: where stderr is a terminal.

    Returns:
        The blocks side by side. Cost: for each block n_probes · steps products at most, and those
        that its largest eigenvalue takes.

    Raises:
        InvalidArgumentError: if a pattern matches no parameter, or two blocks share one.

    References: Zhang et al. 2024, Why transformers need Adam, arXiv 2402.16788, whose distance has
    densities on a linear axis.
    """
    check_problem(problem)
    n_probes = whole("n_probes", n_probes, least=4)
    chosen = kinds_of(problem) if blocks is None else {b: tuple(p) for b, p in blocks.items()}
    parts = {block: problem.only(*patterns) for block, patterns in chosen.items()}
    names = [name for part in parts.values() for name in part.space.names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not parts:
        what = f"{twice[0]} is in two blocks" if twice else "there is no block"
        msg = f"{what}: give each parameter to one block at most"
        raise InvalidArgumentError(msg)
    settings = {
        "blocks": {block: list(patterns) for block, patterns in chosen.items()},
        **{"steps": whole("steps", steps), "n_probes": n_probes, "seed": seed},
    }

    def measure(work: Work) -> dict[str, Any]:
        options: dict[str, Any] = {
            "outliers": 1,
            "steps": steps,
            "n_probes": n_probes,
            "seed": seed,
        }
        found = [spectral_density(part, progress=progress, **options) for part in parts.values()]
        for one in found:
            for kind in ("forwards", "gradients", "hvps"):
                work.evaluator.passes[kind] += getattr(one.cost, kind)
        sizes = np.array([part.space.n for part in parts.values()], dtype=np.float64)
        return {
            "blocks": tuple(parts),
            "sizes": sizes,
            "largest": np.array([one.atoms[0] if len(one.atoms) else np.nan for one in found]),
            "residuals": np.array(
                [one.atom_residuals[0] if len(one.atoms) else np.nan for one in found]
            ),
            "traces": sizes * [one.mean for one in found],
            "trace_errors": sizes * [one.mean_se for one in found],
            "distances": _distances(found, sizes),
            "matvecs": sum(one.matvecs for one in found),
        }

    run = Run(study=study, seed=seed, progress=False)  # each density has a bar of its own
    return run.record(BlockSpectra, problem, settings, measure)


def kinds_of(problem: Problem) -> dict[str, tuple[str, ...]]:
    """Return the names of the parameters by what their modules are."""
    found: dict[str, list[str]] = {}
    for name in problem.space.names:
        module = problem.model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, _EMBEDDINGS):
            kind = "embedding"
        elif type(module).__name__.endswith(("Norm", "Norm1d", "Norm2d", "Norm3d")):
            kind = "norm"
        else:
            kind = "attention" if "att" in name.lower() else "other"
        found.setdefault(kind, []).append(name)
    return {kind: tuple(names) for kind, names in found.items()}


def _distances(found: Sequence[Density], sizes: FloatArray) -> FloatArray:
    """Return the distances of each two, and on the diagonal those of two halves of the probes."""
    every = np.concatenate([np.append(one.nodes.ravel(), one.atoms) for one in found])
    scale = _LINEAR * float(np.nanmax(np.abs(every))) or 1.0
    ends = np.arcsinh([np.nanmin(every) / scale, np.nanmax(every) / scale])
    grid = np.linspace(ends[0] - 4 * _WIDTH, ends[1] + 4 * _WIDTH, _POINTS)

    def mass(one: Density, n: float, probes: slice) -> FloatArray:
        nodes, weights = one.nodes[probes], one.weights[probes]
        known = np.isfinite(nodes)
        at = np.append(nodes[known], one.atoms)
        held = np.append(weights[known] / len(nodes), np.full(len(one.atoms), 1 / n))
        apart = (grid[:, None] - np.arcsinh(at / scale)) / _WIDTH
        return np.asarray(np.exp(-0.5 * apart**2) @ held)

    whole_mass = [mass(one, n, slice(None)) for one, n in zip(found, sizes, strict=True)]
    distances = np.zeros((len(found), len(found)))
    for i, one in enumerate(found):
        halves = (mass(one, sizes[i], half) for half in (slice(0, None, 2), slice(1, None, 2)))
        distances[i, i] = jensenshannon(*halves, base=2)
        for j in range(i):
            distances[i, j] = distances[j, i] = jensenshannon(whole_mass[i], whole_mass[j], base=2)
    return distances
