"""What a loss of classes may be given: labels of the right type, shape and range."""

from __future__ import annotations

import torch
from torch import Tensor

from landscape.errors import LossError
from landscape.problem.data import describe

_OFF = 0.01  # of a sum of probabilities; log-softmax in half precision is well within it


def check_classes(
    name: str, output: Tensor, target: Tensor, *, ignored: int | None, shares: bool
) -> None:
    """Check labels before the loss runs, which on a GPU would end the process."""
    # `ignored` is the label that does not count; with `shares` probabilities will do as well.
    of_indices = output.shape[:1] + output.shape[2:] if output.ndim > 1 else output.shape[:0]
    what = f"{name} got an output of {describe(output)} and labels of {describe(target)}"
    if target.is_floating_point():
        if shares and target.shape == output.shape:
            return  # probabilities
        if target.shape == of_indices:
            msg = f"{what}: class indices are whole numbers, use labels.long()"
        elif target.shape == output.shape:
            msg = f"{what}: it takes class indices, use labels.argmax(1)"
        else:
            msg = f"{what}: expected int64 class indices of shape {tuple(of_indices)}"
        raise LossError(msg)
    if target.shape != of_indices:
        hint = f"expected class indices of shape {tuple(of_indices)}"
        if target.shape == output.shape:
            hint += ", one-hot labels become such by labels.argmax(1)"
        elif output.ndim > 2 and target.shape == output.shape[:-1]:
            hint += "; classes are the second axis, use output.movedim(-1, 1)"
        elif target.ndim == output.ndim and target.shape[1:2] == (1,):
            hint += ", use labels.squeeze(1)"
        msg = f"{what}: {hint}"
        raise LossError(msg)
    if target.dtype not in ({torch.int64} if ignored is None else {torch.int64, torch.uint8}):
        msg = f"{what}: class indices are int64, use labels.long()"
        raise LossError(msg)
    n_classes = output.shape[min(1, output.ndim - 1)]
    kept = target if ignored is None else target[target != ignored]
    if kept.numel() and (int(kept.min()) < 0 or int(kept.max()) >= n_classes):
        raise LossError(_label_message(kept, n_classes))


def doubt_of_log_probabilities(output: Tensor) -> str | None:
    """Say so if outputs are no log-probabilities, as NLLLoss takes them."""
    probabilities = output.detach().double().exp().sum(dim=min(1, output.ndim - 1))
    finite = probabilities[probabilities.isfinite()]
    high = float(output.detach().max()) if output.numel() else 0.0
    if high <= _OFF and not bool(((finite - 1).abs() > _OFF).any()):
        return None
    return (
        "NLLLoss takes log-probabilities, and the model's outputs are none: "
        + (f"the largest is {high:.3g}" if high > _OFF else "their exp does not sum to 1")
        + "; if they are logits, use CrossEntropyLoss (the loss is measured as it is)"
    )


def _label_message(labels: Tensor, n_classes: int) -> str:
    bad = sorted(set(labels[(labels < 0) | (labels >= n_classes)].tolist()))
    shown = ", ".join(str(value) for value in bad[:5]) + (", …" if len(bad) > 5 else "")
    return (
        f"labels out of range: the model has {n_classes} outputs, so labels are 0 to "
        f"{n_classes - 1}, but the data contain {shown}; change the last layer or the labels, "
        "or set ignore_index"
    )
