"""Draw the same random numbers again, so that both passes of SAM see the same dropout masks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def rng_states(devices: Iterable[torch.device]) -> dict[torch.device, Tensor]:
    """Return the states of torch's generators: of the CPU, and of each CUDA device given."""
    states = {d: torch.cuda.get_rng_state(d) for d in devices if d.type == "cuda"}
    return {torch.device("cpu"): torch.get_rng_state(), **states}


def set_rng_states(states: dict[torch.device, Tensor]) -> None:
    """Put the generators back into states that `rng_states` returned."""
    for device, state in states.items():
        if device.type == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)
