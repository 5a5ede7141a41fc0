"""Keep the second pass of SAM out of the running statistics.

Both passes of a SAM step normalise with the statistics of their batch, but only the first, at w,
may count in the running mean and variance: those of the second belong to w + ε, where the model
is never used. Setting the momentum to zero and back, the usual way, counts batches all the same,
misses normalisers of other classes, and after an exception leaves the momentum at zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class BufferStandIns:
    """Copies that stand in for the buffers of a model, so that the buffers stay untouched.

    All buffers, not those of known classes only: a normaliser written by hand, or the power
    iteration of a spectral norm, keeps its state in buffers too. Standing in is safer than
    writing old values back, which autograd rightly refuses between a forward and its backward.
    """

    def __init__(self, model: nn.Module) -> None:
        self._own: list[tuple[nn.Module, str, Tensor]] = [
            (module, name, buffer)
            for module in model.modules()
            for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False)
        ]
        # By identity: a buffer that goes by several names is still one.
        copies = {id(buffer): buffer.detach().clone() for _, _, buffer in self._own}
        for module, name, buffer in self._own:
            setattr(module, name, copies[id(buffer)])

    def leave(self) -> None:
        """Give the model its own buffers back: the very tensors, bit for bit."""
        for module, name, buffer in self._own:
            setattr(module, name, buffer)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Leave the running statistics of a model as they are, however often it is called inside.

    For the second pass of a SAM loop whose optimizer was not given the model:

        with frozen_statistics(model):
            loss_function(model(input), target).backward()

    In train mode the statistics of the batch are still used for normalising. Afterwards every
    buffer is what it was, bit for bit (``num_batches_tracked`` among them), exception or not. For
    the time inside, copies stand in for the buffers, and take what the layers write.

    Args:
        model: the model; several go into one `torch.nn.ModuleList`.

    Yields:
        Nothing.

    Cost: one copy of the buffers.

    >>> import torch
    >>> model = nn.BatchNorm1d(2)
    >>> with frozen_statistics(model):
    ...     normalised = model(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    >>> normalised.mean().abs().item() < 1e-6, model.running_mean
    (True, tensor([0., 0.]))
    """
    stand_ins = BufferStandIns(model)
    try:
        yield
    finally:
        stand_ins.leave()
