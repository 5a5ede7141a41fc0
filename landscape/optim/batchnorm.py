"""Keep the second pass of SAM out of the running statistics.

Only the pass at w may count in the running mean and variance. Setting the momentum to zero and
back, the usual way, counts batches all the same, misses normalisers of other classes, and after an
exception leaves the momentum at zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Leave the running statistics of a model as they are, however often it is called inside.

    For the second pass of a SAM loop whose optimizer was not given the model:

        with frozen_statistics(model):
            loss_function(model(input), target).backward()

    In train mode the statistics of the batch are still used for normalising. Inside, copies stand
    in for all buffers; afterwards the model has its own back, bit for bit (``num_batches_tracked``
    among them), exception or not.

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
    # All buffers: hand-written normalisers and the power iteration of spectral norms use them too.
    # Copies, because autograd refuses buffers that change between forward and backward.
    buffers = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False)
    ]
    # By identity: a buffer that goes by several names is still one.
    copies = {id(buffer): buffer.detach().clone() for _, _, buffer in buffers}
    try:
        for module, name, buffer in buffers:
            setattr(module, name, copies[id(buffer)])
        yield
    finally:
        for module, name, buffer in buffers:
            setattr(module, name, buffer)
