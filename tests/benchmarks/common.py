"""What the benchmarks share: clocks, the gradient that all is compared with, and tables."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F


def bare_gradient(model: torch.nn.Module, batches: list[tuple[torch.Tensor, ...]]) -> float:
    """Compute the mean loss and leave its gradient in ``.grad``."""
    model.zero_grad()
    n = sum(len(y) for _, y in batches)
    total = 0.0
    for x, y in batches:
        loss = F.cross_entropy(model(x), y, reduction="sum") / n
        loss.backward()
        total += float(loss.detach())
    return total


def timed(call: Callable[[], object], *, units: int = 1) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) / units


def table(
    title: str, rows: dict[str, Callable[[], float]], *, repeats: int
) -> dict[str, list[float]]:
    """Measure the rows in turn and print each with its ratio to the first."""
    for measure in rows.values():
        measure()  # warm: caches, allocations, threads
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(repeats):
        for name, measure in rows.items():
            seconds[name].append(measure())
    first = seconds[next(iter(rows))]
    print(f"{title:44s} {'ms':>9s} {'ratio':>7s}  quartiles")
    for name, own in seconds.items():
        low, middle, high = statistics.quantiles(
            [a / b for a, b in zip(own, first, strict=True)], n=4
        )
        milliseconds = 1e3 * statistics.median(own)
        print(f"  {name:42s} {milliseconds:9.2f} {middle:7.3f}  {low:.3f} to {high:.3f}")
    print()
    return seconds
