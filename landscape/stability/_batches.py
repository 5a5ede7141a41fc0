"""Batch sharpness: the curvature that steps of stochastic gradient descent meet."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch

from landscape.checks import whole
from landscape.errors import InvalidArgumentError
from landscape.evaluate import Evaluator
from landscape.linalg.krylov import dot
from landscape.measurement import Columns, Run, Work, one_by_one
from landscape.operators import Hessian
from landscape.problem import Problem, check_problem
from landscape.randomness import seeded
from landscape.results.stability import BatchSharpness
from landscape.stats import interval_of_mean
from landscape.study import Study


def batch_sharpness(
    problem: Problem,
    batch_size: int,
    *,
    n_batches: int = 64,
    seed: int = 0,
    study: Study | None = None,
    progress: bool | None = None,
) -> BatchSharpness:
    """Measure the mean over batches B of gᵀHg/‖g‖², and the gradient noise scale.

    g and H are gradient and Hessian of the loss of a batch of examples, which are drawn without
    replacement; as many batches as fit are disjoint, before any example is drawn again. Where there
    are no more than ``n_batches`` of that size, these are all measured, and the mean is exact. The
    gradient noise scale is tr Σ/‖∇L‖², Σ being the covariance of the gradients of single examples.

    Args:
        problem: what to measure.
        batch_size: examples in a batch.
        n_batches: how many batches, at least 2.
        seed: of the batches, and of dropout masks in train mode.
        study: where the result is kept, and each batch as soon as it is measured.
        progress: show a bar on stderr; None: where stderr is a terminal.

    Returns:
        The values of all batches, their mean and its interval. Cost: a gradient and a product on
        each batch, and one gradient of all data.

    Raises:
        InvalidArgumentError: if a number is out of its range.
        DataError: if the batches of the data cannot be cut into examples.

    References: Andreyev and Beneventano 2024, arXiv 2412.20553; McCandlish et al. 2018, arXiv
    1812.06162.
    """
    check_problem(problem)
    n, size = problem.batches.n_examples, whole("batch_size", batch_size, least=1)
    n_batches = whole("n_batches", n_batches, least=2)
    if size > n:
        msg = f"batch_size must be at most the number of examples, {n:,}; got {size:,}"
        raise InvalidArgumentError(msg)
    exhaustive = math.comb(n, size) <= n_batches
    batches = (
        list(itertools.combinations(range(n), size))
        if exhaustive
        else _drawn(n, size, n_batches, seed)
    )
    settings = {"batch_size": size, "n_batches": n_batches, "seed": seed}

    def one(i: int) -> Columns:
        with Evaluator(problem.with_examples(batches[i]), seed=seed) as evaluator:
            gradient = evaluator.gradient()[1]
            squared = dot(gradient, gradient)
            product = dot(gradient, Hessian(evaluator).matvec(gradient))
        return {"value": product / squared if squared else math.nan, "squared_norm": squared}

    def measure(work: Work) -> dict[str, Any]:
        loss, gradient = work.evaluator.gradient()
        columns = one_by_one(
            len(batches),
            one,
            grid=work.grid((len(batches), 1)),
            what=f"batches of {problem.name}",
            progress=progress,
        )
        passes = -(-len(batches) * size // n)  # over the whole data, of all batches
        for kind in ("gradients", "hvps"):
            work.evaluator.passes[kind] += passes
        values, norms = columns["value"], columns["squared_norm"]
        squared = dot(gradient, gradient)
        if problem.loss.sums:  # of a loss that is a sum, the gradients of its mean
            norms, squared = norms / size**2, squared / n**2
        value, norm = float(values.mean()), float(norms.mean())
        error, low, high, norm_error = 0.0, value, value, 0.0
        if not exhaustive:
            _, error, low, high = interval_of_mean(values)
            norm_error = interval_of_mean(norms)[1]
        # Batches are drawn without replacement: E‖g‖² − ‖∇L‖² = tr Σ/b (n − b)/(n − 1).
        scale = size * (n - 1) / ((n - size) * squared) if size < n and squared else math.nan
        return {
            "value": value,
            "standard_error": error,
            "low": low,
            "high": high,
            "noise": scale * (norm - squared),
            "noise_se": scale * norm_error,
            "values": values,
            "squared_norms": columns["squared_norm"],
            "batch_size": size,
            "exhaustive": exhaustive,
            "loss": loss.value,
        }

    run = Run(study=study, seed=seed, progress=False)  # the batches have a bar of their own
    return run.record(BatchSharpness, problem, settings, measure)


def _drawn(n: int, size: int, n_batches: int, seed: int) -> Sequence[tuple[int, ...]]:
    """Draw batches: those of one permutation after another."""
    generator, batches = seeded(seed), list[tuple[int, ...]]()
    while len(batches) < n_batches:
        order = torch.randperm(n, generator=generator).tolist()
        whole_batches = range(0, n - size + 1, size)
        batches += [tuple(sorted(order[first : first + size])) for first in whole_batches]
    return batches[:n_batches]
