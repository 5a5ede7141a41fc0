"""How many threads to compute with: no more than this process has processors' time for.

torch starts as many threads as it sees processors. In a container that may use fewer, or beside
other work, threads wait for each other, and everything takes many times longer.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

CLEARLY = 1.3  # times faster, before one thread is recommended
_ROUNDS, _LONG = 3, 2.0  # two rounds are enough once they have taken so many seconds


def usable_cpus(proc: Path = Path("/proc/self")) -> int:
    """Return how many processors' time this process may use, rounded down, at least 1."""
    listed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, int(min(listed or 1, cpu_quota(proc))))


def cpu_quota(proc: Path = Path("/proc/self")) -> float:
    """Return the smallest quota of the process's control groups, in processors; inf: none."""
    try:
        groups, mounts = (_text(proc / name).splitlines() for name in ("cgroup", "mountinfo"))
    except OSError:  # another system than Linux
        return math.inf
    folders = [folder for mount in mounts for folder in _folders(mount, groups)]
    return min(map(_quota_of, folders), default=math.inf)


def _folders(mount: str, groups: list[str]) -> Iterator[Path]:
    """Yield the control group of the process below a mount, and those that it lies in."""
    fields, _, kind = mount.partition(" - ")
    if not re.match(r"cgroup2 |cgroup \S+ (.*,)?cpu(,|$)", kind):
        return
    root, point = (_unescaped(field) for field in fields.split()[3:5])
    of_version_2 = kind.startswith("cgroup2 ")
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if ("" if of_version_2 else "cpu") in controllers.split(","):
            yield from _upwards(Path(point), PurePosixPath(root), PurePosixPath(path))


def _upwards(point: Path, root: PurePosixPath, path: PurePosixPath) -> Iterator[Path]:
    # What is mounted in a container may be the group itself, under a path of the host.
    inner = path.relative_to(root) if path.is_relative_to(root) else PurePosixPath()
    yield from (point / parent for parent in (inner, *inner.parents))


def _quota_of(folder: Path) -> float:
    try:
        limit, period = _text(folder / "cpu.max").split()
    except (OSError, ValueError):
        try:
            limit, period = (_text(folder / f"cpu.cfs_{n}_us") for n in ("quota", "period"))
        except OSError:
            return math.inf
    unlimited = limit == "max" or int(limit) <= 0 or int(period) <= 0
    return math.inf if unlimited else int(limit) / int(period)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="surrogateescape").strip()


def _unescaped(field: str) -> str:
    r"""Read the octal digits that stand for spaces in mountinfo, as in ``\040``."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


@contextmanager
def n_threads(n: int) -> Iterator[None]:
    """Let torch compute with n threads inside of the context."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compared_with_one(
    call: Callable[[], object],
    n: int,
    *,
    at_least: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float] | None:
    """Time a call with n threads and with one; None where n take less than ``at_least`` seconds."""
    # In turn, so that other work hits both alike. The first round warms up: the best counts.
    seconds: dict[int, list[float]] = {n: [], 1: []}
    started = clock()
    for turn in range(_ROUNDS):
        if turn == _ROUNDS - 1 and clock() - started > _LONG:
            break
        for count, times in seconds.items():
            with n_threads(count):
                before = clock()
                call()
                times.append(clock() - before)
            if turn == 1 and count == n and min(times) < at_least:
                return None
    return min(seconds[n]), min(seconds[1])
