"""Losses as exact sums: a batch gives (sum, weight), and the data set's loss is Σ sum / Σ weight.

The standard modules of torch are understood (class weights, ``ignore_index``, label smoothing,
any reduction). A plain callable that returns one number per batch is taken for a mean over the
examples, which is tested on halves of batches before anything is measured.
"""

from __future__ import annotations

import copy
import functools
import inspect
import numbers
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from landscape.errors import LandscapeError, LossError, MisleadingWarning, ProblemError, first_line
from landscape.problem._batching import Batching
from landscape.problem._calling import forward, main_output
from landscape.problem._classes import check_classes, doubt_of_log_probabilities
from landscape.problem.data import copied, describe, move, rebuilt
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


class Loss:
    """The loss of one batch as a sum with its weight, from the model's output and the target.

    Attributes:
        name: class and settings of a loss module, or the name of a function.
        sums: whether the data set's loss is the plain sum (``reduction="sum"``), not the mean.
        splits: whether it is a function of the model's output, with `forward` and `of_output`.
        batching: the number of examples of a batch, and its cut in two.
        doubts: what was noticed about its use, in sentences.
    """

    sums = False
    splits = True

    def __init__(self, function: Callable[..., Any], batching: Batching) -> None:
        self.name, self.batching, self._function = loss_name(function), batching, function
        self.doubts: list[str] = []

    def __call__(self, model: nn.Module, batch: Any) -> tuple[BatchTerms, Any]:
        """Return the terms of a batch, and the arguments of the metrics."""
        output, target = self.forward(model, batch)
        return self.of_output(output, target, batch), (output, target)

    def forward(self, model: nn.Module, batch: Any) -> tuple[Any, Any]:
        """Return what the loss takes of the model's output, and the target."""
        return forward(model, batch)

    def of_output(self, output: Any, target: Any, batch: Any) -> BatchTerms:
        """Return the terms of a batch from what `forward` returned."""
        return read_loss(self._function(output, rebuilt(target)), batch, self.batching)


def make_loss(
    loss: Any,
    batch_loss: Any,
    *,
    examples: Callable[[Any], int] | None = None,
    batch_axis: Any = 0,
) -> Loss:
    """Choose how to read a user's loss, as `Problem` takes it; refuse what is none."""
    if (loss is None) == (batch_loss is None):
        got = "neither" if loss is None else "both"
        msg = f"give either loss(output, target) or batch_loss(model, batch); got {got}"
        raise ProblemError(msg)
    given = batch_loss if loss is None else loss
    if isinstance(given, type):
        msg = f"the loss is the class {given.__name__} itself: make one of it, {given.__name__}()"
        raise ProblemError(msg)
    if not callable(given):
        msg = f"the loss must be a function or a loss module, not {type(given).__name__}"
        raise ProblemError(msg)
    batching = functools.partial(Batching, examples, batch_axis)
    if loss is None:
        return WholeBatchLoss(batch_loss, batching())
    module = _module_of(loss)
    if _is_standard(module):
        return StandardLoss(module, batching(pairs=True, by_target=True))
    return Loss(loss, batching(pairs=True))


class StandardLoss(Loss):
    """A loss module of torch, taken apart into its terms."""

    def __init__(self, module: Any, batching: Batching) -> None:
        super().__init__(module, batching)
        self.sums = module.reduction == "sum"
        self._axis = batching.target_axis
        self._batchmean = module.reduction == "batchmean"
        self._module = copy.deepcopy(module).requires_grad_(False)
        self._module.reduction = "none"
        self._weighted = isinstance(module, (nn.CrossEntropyLoss, nn.NLLLoss))
        self._elementwise = isinstance(module, _ELEMENTWISE)
        # Of each target that is alive: what was found out about it, at which version.
        self._seen: Any = WeakTensorKeyDictionary()
        self._is_new = True

    def forward(self, model: nn.Module, batch: Any) -> tuple[Any, Any]:
        """Return the tensor of the model's output that the loss takes, and the target."""
        output, target = forward(model, batch)
        return main_output(output, type(self._module).__name__), target

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
            weights = self._weights(target, element).reshape(element.shape)
            known = weights.sum(), self._per_example(weights)
            if not target.is_inference():  # those have no version
                self._seen[target] = (target._version, output.shape, element.device, *known)
        weight, each = known
        total = element.sum(dtype=torch.float64)
        return BatchTerms(total, weight, terms=self._per_example(element), weights=each)

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

    def _per_example(self, element: Tensor) -> Tensor:
        """Sum everything but the axis of the examples."""
        if self._axis and self._axis < element.ndim:
            element = element.movedim(self._axis, 0)
        return element.reshape(len(element), -1).sum(dim=1, dtype=torch.float64)

    def _check(self, output: Any, target: Any) -> None:
        name = type(self._module).__name__
        if not isinstance(output, Tensor) or not isinstance(target, Tensor):
            msg = (
                f"{name} needs tensors, got an output of {describe(output)} and a target of "
                f"{describe(target)}; write a function (output, target) that takes them, or "
                "batch_loss(model, batch)"
            )
            raise LossError(msg)
        if self._elementwise and output.shape != target.shape and not _broadcasts(output, target):
            msg = (
                f"{name} compares the output with the target element by element, but their shapes "
                f"are {tuple(output.shape)} and {tuple(target.shape)}; reshape one of them, for "
                "example by output.squeeze(1)"
            )
            raise LossError(msg)
        if isinstance(self._module, _BINARY) and not target.is_floating_point():
            msg = f"{name} needs targets of floating point, got {describe(target)}: use y.float()"
            raise LossError(msg)
        if isinstance(self._module, _OF_CLASSES):
            shares = isinstance(self._module, nn.CrossEntropyLoss)
            ignored = getattr(self._module, "ignore_index", None)
            check_classes(name, output, target, ignored=ignored, shares=shares)
        if self._is_new and isinstance(self._module, nn.NLLLoss):
            self._doubt(doubt_of_log_probabilities(output))
        self._is_new = False

    def _doubt(self, doubt: str | None) -> None:
        if doubt is not None:
            self.doubts.append(doubt)
            warnings.warn(doubt, MisleadingWarning, stacklevel=8)


class WholeBatchLoss(Loss):
    """A function (model, batch): per-example losses, a (sum, weight) pair, or one mean."""

    splits = False

    def __call__(self, model: nn.Module, batch: Any) -> tuple[BatchTerms, Any]:
        """Return the terms of a batch, and (model, batch) for the metrics."""
        value = self._function(model, rebuilt(batch))
        return read_loss(value, batch, self.batching), (model, batch)

    def forward(self, model: nn.Module, batch: Any) -> tuple[Any, Any]:
        """Refuse: what the loss does with the model is the user's own."""
        msg = (
            "batch_loss(model, batch) does not say where the model's output ends and the loss "
            "begins: give loss(output, target)"
        )
        raise LossError(msg)


def read_loss(value: Any, batch: Any, batching: Batching) -> BatchTerms:
    """Read what a user's loss returned for a batch, or refuse what is no loss."""
    # A scalar (mean over the examples), a vector of per-example losses, or a pair (sum, weight), of
    # the batch or of each example; only what is known of each example has a standard error.
    size = batching.known_size(batch)
    if isinstance(value, tuple) and len(value) == 2:
        terms = _read_pair(*value, size=size)
        if terms is not None:
            return terms
    elif isinstance(value, Tensor) and value.is_floating_point():
        if value.ndim == 0:
            n = batching.size(batch) if size is None else size
            return BatchTerms(value.double() * n, float(n), is_guess=True)
        if value.ndim == 1 and len(value) == (len(value) if size is None else size):
            ones = torch.ones_like(value, dtype=torch.float64)
            total = value.sum(dtype=torch.float64)
            return BatchTerms(total, float(len(value)), terms=value, weights=ones)
    msg = (
        f"the loss returned {describe(value)} for a batch of {'?' if size is None else size}; "
        "expected a floating-point tensor: a scalar (the mean over the batch), a vector with one "
        "loss per example, or a pair (sum, weight), both of them scalars or both of them vectors "
        "with one entry per example"
    )
    raise LossError(msg)


def _read_pair(total: Any, weight: Any, *, size: int | None) -> BatchTerms | None:
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
    if total.ndim == 1 and total.shape == weights.shape and size in {None, len(total)}:
        summed = total.sum(dtype=torch.float64)
        return BatchTerms(summed, float(weights.sum()), terms=total, weights=weights)
    return None


def count_examples(loss: Loss, model: nn.Module, batch: Any) -> int:
    """Count the examples of a batch as it was read, by a pass over it where it does not say."""
    n = loss.batching.known_size(batch)
    if n is not None:
        return n
    own = next(model.parameters())
    try:
        with torch.no_grad():
            terms, _ = loss(model.eval(), copied(move(batch, own.device, own.dtype)))
    except LandscapeError:
        raise
    except Exception as error:
        msg = (
            f"the number of examples in {describe(batch)} is neither given by examples or "
            f"batch_axis, nor by the loss, which failed with {type(error).__name__}: "
            f"{first_line(error)}"
        )
        raise LossError(msg) from error
    return round(float(terms.weight)) if terms.terms is None else len(terms.terms)


def loss_name(loss: Any) -> str:
    """Describe a loss: class and settings of an object, module and qualified name of a function."""
    if isinstance(loss, functools.partial):
        settings = dict(enumerate(loss.args)) | loss.keywords
        return f"{loss_name(loss.func)} with {_words(settings)}"
    where = getattr(loss, "__module__", None) or ""
    if where.startswith("landscape_problem_"):  # a problem file, with the digest of its text
        where = where.removeprefix("landscape_problem_").rpartition("_")[0]
    if not hasattr(loss, "__code__") and hasattr(loss, "__qualname__"):
        return f"{where}.{loss.__qualname__}"
    if hasattr(loss, "__code__"):
        cells = zip(loss.__code__.co_freevars, loss.__closure__ or (), strict=False)
        captured = {k: c.cell_contents for k, c in cells if c != types.CellType()}
        settings = {k: v for k, v in captured.items() if isinstance(v, _PLAIN)}
        return f"{where}.{loss.__qualname__}" + (f" with {_words(settings)}" if settings else "")
    held = {k: v for k, v in vars(loss).items() if k[0] != "_" and k != "training"}
    if isinstance(loss, nn.Module):
        held |= dict(loss.state_dict(keep_vars=True))
    name = type(loss).__qualname__
    name = name if where.startswith("torch.nn.") else f"{where}.{name}"
    return f"{name}({_words(held)})"


def _words(settings: dict[Any, Any]) -> str:
    content = Content()
    parts = []
    for key, value in sorted(settings.items(), key=str):
        content.add(value)
        parts.append(f"{key}={value!r}" if isinstance(value, _PLAIN) else str(key))
    digest = f", {content.hexdigest()}" if len(parts) > sum("=" in part for part in parts) else ""
    return ", ".join(parts) + digest


def _broadcasts(output: Tensor, target: Tensor) -> bool:
    """Tell whether shapes that differ still pair each example with its own target."""
    return output.ndim == target.ndim and output.shape[:1] == target.shape[:1]


_FUNCTIONAL: dict[Any, Any] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.nll_loss: nn.NLLLoss,
    F.multi_margin_loss: nn.MultiMarginLoss,
    F.multilabel_margin_loss: nn.MultiLabelMarginLoss,
    F.multilabel_soft_margin_loss: nn.MultiLabelSoftMarginLoss,
    F.mse_loss: nn.MSELoss,
    F.l1_loss: nn.L1Loss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
    F.huber_loss: nn.HuberLoss,
    F.binary_cross_entropy: nn.BCELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.kl_div: nn.KLDivLoss,
    F.poisson_nll_loss: nn.PoissonNLLLoss,
    F.soft_margin_loss: nn.SoftMarginLoss,
    F.hinge_embedding_loss: nn.HingeEmbeddingLoss,
}
_STANDARD: tuple[type[nn.Module], ...] = tuple(_FUNCTIONAL.values())
_OF_CLASSES, _ELEMENTWISE = _STANDARD[:3], _STANDARD[5:]
_PLAIN = (str, int, float, type(None))
_BINARY = (nn.BCELoss, nn.BCEWithLogitsLoss)


def _module_of(loss: Any) -> Any:
    """Return the loss module of a function of torch, also where some arguments are given."""
    function, settings = loss, {}
    if isinstance(loss, functools.partial) and not loss.args:
        function, settings = loss.func, loss.keywords
    try:
        module = _FUNCTIONAL.get(function)
    except TypeError:  # not hashable
        return loss
    known = set() if module is None else set(inspect.signature(module).parameters)
    return loss if module is None or not set(settings) <= known else module(**settings)


def _is_standard(loss: Any) -> bool:
    # A subclass that changes forward may return anything: it is read as a plain callable.
    return any(
        isinstance(loss, cls) and type(loss).forward is cls.forward for cls in _STANDARD
    ) and getattr(loss, "reduction", None) in {"mean", "sum", "none", "batchmean"}
