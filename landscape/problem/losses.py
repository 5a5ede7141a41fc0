"""Losses as exact sums: a batch gives (sum, weight), and the data set's loss is Σ sum / Σ weight.

The standard modules of torch are understood (class weights, ``ignore_index``, label smoothing,
any reduction). A plain callable that returns one number per batch is taken for a mean over the
examples, and `is_additive` tells whether that is plausible.
"""

from __future__ import annotations

import copy
import functools
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from landscape.errors import LossError, ProblemError
from landscape.problem.data import describe, examples_in, rebuilt
from landscape.problem.digest import Content


@dataclass(frozen=True)
class BatchTerms:
    """What one batch contributes to the loss of the data set.

    Attributes:
        total: sum of the loss over the batch, a float64 scalar, differentiable.
        weight: what the sum is to be divided by, in the end, once; a number, or a scalar on the
            device, which is not waited for.
        terms: the part of the total of each example, shape (B,), differentiable; None if unknown.
        weights: the part of the weight of each example, shape (B,); None if unknown.
        is_guess: whether the weight is a guess: the loss returned one number, taken for the mean
            over the examples.
    """

    total: Tensor
    weight: float | Tensor
    terms: Tensor | None = None
    weights: Tensor | None = None
    is_guess: bool = False


class Loss(Protocol):
    """The loss of one batch as a sum with its weight.

    Attributes:
        sums: whether the data set's loss is the plain sum (``reduction="sum"``), not the mean.
        splits: whether it is a function of the model's output, with `of_output`.
        name: class and settings of the loss, or the name of the function.
    """

    sums: bool
    splits: bool
    name: str

    def __call__(self, model: nn.Module, batch: Any) -> tuple[BatchTerms, Any]:
        """Return the terms of a batch, and (output, target) where the loss has them."""

    def of_output(self, output: Any, target: Any, batch: Any) -> BatchTerms:
        """Return the terms of a batch from the model's output."""


def make_loss(loss: Any, batch_loss: Any) -> Loss:
    """Choose how to read a user's loss.

    Args:
        loss: a loss module of torch, its functional form, or any callable (output, target).
        batch_loss: instead, a callable (model, batch).

    Returns:
        The loss as sums and weights.

    Raises:
        ProblemError: unless exactly one of the two is given, and callable.
    """
    if (loss is None) == (batch_loss is None):
        got = "neither" if loss is None else "both"
        msg = f"give either loss(output, target) or batch_loss(model, batch); got {got}"
        raise ProblemError(msg)
    given = batch_loss if loss is None else loss
    if not callable(given):
        msg = f"the loss must be a function or a loss module, not {type(given).__name__}"
        raise ProblemError(msg)
    if loss is None:
        return WholeBatchLoss(batch_loss)
    module = _FUNCTIONAL[loss]() if _hashable(loss) and loss in _FUNCTIONAL else loss
    if _is_standard(module):
        return StandardLoss(module)
    return CallableLoss(loss)


def loss_name(function: Any) -> str:
    """Return class and settings of a loss module, or the qualified name of a function."""
    if isinstance(function, functools.partial):
        settings = {str(i): value for i, value in enumerate(function.args)} | function.keywords
        name = loss_name(function.func)
    elif isinstance(function, nn.Module):
        plain = {k: v for k, v in vars(function).items() if not k.startswith("_")}
        settings = {**plain, **function.state_dict()}
        settings.pop("training")
        name = type(function).__qualname__
    else:
        return str(getattr(function, "__qualname__", type(function).__qualname__))
    parts = [f"{key}={_setting(value)}" for key, value in sorted(settings.items())]
    return f"{name}({', '.join(parts)})"


def _setting(value: Any) -> str:
    if value is None or isinstance(value, (str, int, float)):
        return repr(value)
    content = Content()
    content.add(value)
    return content.hexdigest()


class StandardLoss:
    """A loss module of torch, taken apart into its terms."""

    splits = True

    def __init__(self, module: Any) -> None:
        self.sums: bool = module.reduction == "sum"
        self.name = loss_name(module)
        self._batchmean = module.reduction == "batchmean"
        self._module = copy.deepcopy(module).requires_grad_(False)
        self._module.reduction = "none"
        self._weighted = isinstance(module, (nn.CrossEntropyLoss, nn.NLLLoss))
        self._elementwise = isinstance(module, _ELEMENTWISE)
        # Of each target that is alive: what was found out about it, at which version.
        self._seen: Any = WeakTensorKeyDictionary()

    def __call__(self, model: nn.Module, batch: Any) -> tuple[BatchTerms, Any]:
        """Return the terms of a batch, and (output, target)."""
        output, target = forward(model, batch)
        return self.of_output(output, target, batch), (output, target)

    def of_output(self, output: Any, target: Any, batch: Any) -> BatchTerms:
        """Return the terms of a batch from the model's output."""
        known = self._known(output, target)
        if known is None:
            self._check(output, target)
        if output.dtype in {torch.float16, torch.bfloat16}:
            output = output.float()  # as torch's autocast does for losses
        self._module.to(output.device, output.dtype)
        element = self._module(output, target)
        if element.ndim == 0:
            element = element.reshape(1)
        if known is None:
            weights = self._weights(target, element)
            known = weights.sum(), _per_example(weights)
            if not target.is_inference():  # those have no version
                self._seen[target] = (target._version, output.shape, element.device, *known)
        weight, each = known
        total = element.sum(dtype=torch.float64)
        return BatchTerms(total=total, weight=weight, terms=_per_example(element), weights=each)

    def _known(self, output: Any, target: Any) -> tuple[Tensor, Tensor] | None:
        """Return the weights that were found for this very target before, unless it changed."""
        seen = self._seen.get(target) if isinstance(target, Tensor) else None
        if seen is None or not isinstance(output, Tensor):
            return None
        version, shape, device, weight, each = seen
        same = target._version == version and output.shape == shape and output.device == device
        return (weight, each) if same else None

    def _weights(self, target: Tensor, element: Tensor) -> Tensor:
        """Return what torch's own mean would divide by, element by element."""
        if self._weighted and not target.is_floating_point():
            kept: Tensor = target != self._module.ignore_index
            if self._module.weight is None:
                return kept.double()
            weights: Tensor = self._module.weight.double()[target.where(kept, 0)] * kept
            return weights
        if self._batchmean:
            share = torch.zeros(element.shape, dtype=torch.float64, device=element.device)
            share.view(len(share), -1)[:, 0] = 1.0
            return share
        return torch.ones(element.shape, dtype=torch.float64, device=element.device)

    def _check(self, output: Any, target: Any) -> None:
        if not isinstance(output, Tensor) or not isinstance(target, Tensor):
            msg = (
                f"{type(self._module).__name__} needs tensors, got an output of "
                f"{describe(output)} and a target of {describe(target)}; "
                "give batch_loss(model, batch) instead"
            )
            raise LossError(msg)
        if self._elementwise and output.shape != target.shape and not _broadcasts(output, target):
            msg = (
                f"{type(self._module).__name__} compares the output with the target element by "
                f"element, but their shapes are {tuple(output.shape)} and {tuple(target.shape)}; "
                "reshape one of them, for example by output.squeeze(1)"
            )
            raise LossError(msg)
        if self._weighted and not target.is_floating_point():
            # Checked before the loss runs: on a GPU a bad label would end the whole process.
            n_classes = output.shape[min(1, output.ndim - 1)]
            kept = target[target != self._module.ignore_index]
            if kept.numel() and (int(kept.min()) < 0 or int(kept.max()) >= n_classes):
                msg = _label_message(kept, n_classes)
                raise LossError(msg)


class CallableLoss:
    """A function (output, target): per-example losses, or one mean per batch."""

    sums = False
    splits = True

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.name = loss_name(function)
        self._function = function

    def __call__(self, model: nn.Module, batch: Any) -> tuple[BatchTerms, Any]:
        """Return the terms of a batch, and (output, target)."""
        output, target = forward(model, batch)
        return self.of_output(output, target, batch), (output, target)

    def of_output(self, output: Any, target: Any, batch: Any) -> BatchTerms:
        """Return the terms of a batch from the model's output."""
        return read_loss(self._function(output, rebuilt(target)), batch)


class WholeBatchLoss:
    """A function (model, batch): per-example losses, a (sum, weight) pair, or one mean."""

    sums = False
    splits = False

    def __init__(self, function: Callable[[nn.Module, Any], Any]) -> None:
        self.name = loss_name(function)
        self._function = function

    def __call__(self, model: nn.Module, batch: Any) -> tuple[BatchTerms, Any]:
        """Return the terms of a batch, and (model, batch) for the metrics."""
        return read_loss(self._function(model, rebuilt(batch)), batch), (model, batch)

    def of_output(self, output: Any, target: Any, batch: Any) -> BatchTerms:
        """Refuse: what the loss does with the model is the user's own."""
        msg = (
            "batch_loss(model, batch) does not say where the model's output ends and the loss "
            "begins: give loss(output, target)"
        )
        raise LossError(msg)


def read_loss(value: Any, batch: Any) -> BatchTerms:
    """Read what a user's loss returned.

    Args:
        value: a scalar (mean over the examples), a vector of per-example losses, or a pair
            (sum, weight), of the batch or of each example; only what is known of each example has
            a standard error.
        batch: the batch that it belongs to.

    Returns:
        The terms.

    Raises:
        LossError: if it is none of the three, or its weight depends on the parameters.
    """
    if isinstance(value, tuple) and len(value) == 2:
        terms = _read_pair(*value, size=examples_in(batch))
        if terms is not None:
            return terms
    elif isinstance(value, Tensor) and value.is_floating_point():
        size = examples_in(batch)
        if value.ndim == 0:
            return BatchTerms(total=value.double() * size, weight=float(size), is_guess=True)
        if value.shape == (size,):
            ones = torch.ones_like(value, dtype=torch.float64)
            total = value.sum(dtype=torch.float64)
            return BatchTerms(total=total, weight=float(size), terms=value, weights=ones)
    msg = (
        f"the loss returned {describe(value)} for a batch of {examples_in(batch)}; expected a "
        "floating-point tensor: a scalar (the mean over the batch), a vector with one loss per "
        "example, or, from batch_loss, a pair (sum, weight), both of them scalars or both of them "
        "vectors with one entry per example"
    )
    raise LossError(msg)


def _read_pair(total: Any, weight: Any, *, size: int) -> BatchTerms | None:
    if isinstance(weight, Tensor) and weight.requires_grad:
        msg = (
            "the weight of the pair (sum, weight) depends on the parameters; it is divided by "
            "once, after the sum over the batches, so it must be a number: use detach()"
        )
        raise LossError(msg)
    real = isinstance(weight, numbers.Real)
    given = torch.tensor(float(weight), dtype=torch.float64) if real else weight
    if not isinstance(given, Tensor) or given.is_complex():
        return None
    if not isinstance(total, Tensor) or not total.is_floating_point():
        return None
    weights = given.to(total.device, torch.float64)
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        return None
    if total.ndim == 0 and weights.numel() == 1:
        weights = weights.reshape(())
    if total.ndim == weights.ndim == 0:
        return BatchTerms(total=total.double(), weight=float(weights))
    if total.shape == weights.shape == (size,):
        summed = total.sum(dtype=torch.float64)
        return BatchTerms(summed, float(weights.sum()), terms=total, weights=weights)
    return None


def forward(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    """Run the model on the inputs of an (inputs, target) batch.

    Args:
        model: the module.
        batch: a pair; the inputs may be one tensor, a tuple of arguments, or a mapping of
            keyword arguments.

    Returns:
        Its output (of several outputs the logits, or the first) and the target.

    Raises:
        ProblemError: if the batch is not a pair.
    """
    if not isinstance(batch, Sequence) or len(batch) != 2:
        msg = (
            f"loss(output, target) needs batches (inputs, target), got {describe(batch)}; "
            "for any other batch give batch_loss(model, batch)"
        )
        raise ProblemError(msg)
    inputs, target = batch
    if isinstance(inputs, Mapping):
        output = model(**inputs)
    elif isinstance(inputs, (tuple, list)):
        output = model(*inputs)
    else:
        output = model(inputs)
    return _main_output(output), target


def _main_output(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    return output


def _per_example(element: Tensor) -> Tensor:
    """Sum everything but the first axis."""
    return element.reshape(len(element), -1).sum(dim=1, dtype=torch.float64)


def _broadcasts(output: Tensor, target: Tensor) -> bool:
    """Tell whether shapes that differ still pair each example with its own target."""
    return output.ndim == target.ndim and output.shape[:1] == target.shape[:1]


def _label_message(labels: Tensor, n_classes: int) -> str:
    bad = sorted(set(labels[(labels < 0) | (labels >= n_classes)].tolist()))
    shown = ", ".join(str(value) for value in bad[:5]) + (", …" if len(bad) > 5 else "")
    return (
        f"labels out of range: the model has {n_classes} outputs, so labels are 0 to "
        f"{n_classes - 1}, but the data contain {shown}; change the last layer or the labels, "
        "or set ignore_index"
    )


_ELEMENTWISE: tuple[type[nn.Module], ...] = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.KLDivLoss,
    nn.PoissonNLLLoss,
    nn.SoftMarginLoss,
    nn.HingeEmbeddingLoss,
)

_STANDARD: tuple[type[nn.Module], ...] = (
    nn.CrossEntropyLoss,
    nn.NLLLoss,
    nn.MultiMarginLoss,
    nn.MultiLabelMarginLoss,
    nn.MultiLabelSoftMarginLoss,
    *_ELEMENTWISE,
)

_FUNCTIONAL: dict[Any, Callable[[], nn.Module]] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.nll_loss: nn.NLLLoss,
    F.mse_loss: nn.MSELoss,
    F.l1_loss: nn.L1Loss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
    F.huber_loss: nn.HuberLoss,
    F.binary_cross_entropy: nn.BCELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.poisson_nll_loss: nn.PoissonNLLLoss,
    F.soft_margin_loss: nn.SoftMarginLoss,
    F.hinge_embedding_loss: nn.HingeEmbeddingLoss,
    F.multi_margin_loss: nn.MultiMarginLoss,
    F.multilabel_margin_loss: nn.MultiLabelMarginLoss,
    F.multilabel_soft_margin_loss: nn.MultiLabelSoftMarginLoss,
}


def _is_standard(loss: Any) -> bool:
    # A subclass that changes forward may return anything: it is read as a plain callable.
    return any(
        isinstance(loss, cls) and type(loss).forward is cls.forward for cls in _STANDARD
    ) and getattr(loss, "reduction", None) in {"mean", "sum", "none", "batchmean"}


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
