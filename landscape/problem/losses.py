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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from landscape.errors import LandscapeError, LossError, MisleadingWarning, ProblemError, first_line
from landscape.problem._batching import Batching
from landscape.problem._calling import forward, main_output
from landscape.problem.data import copied, describe, move, rebuilt
from landscape.problem.digest import digest_of

_PLAIN = (str, int, float, type(None))
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
_STANDARD: Any = tuple(_FUNCTIONAL.values())
_OF_CLASSES, _ELEMENTWISE = _STANDARD[:3], _STANDARD[5:]
_OFF = 0.01  # of a sum of probabilities; log-softmax in half precision is well within it
_SMALLEST = 1e-10  # length of logits


@dataclass(frozen=True)
class BatchTerms:
    """What one batch contributes to the loss of the data set."""

    total: Tensor  # sum of the loss over the batch, a float64 scalar, differentiable
    weight: float | Tensor  # divides the sum, in the end, once; on the device it is not waited for
    terms: Tensor | None = None  # of each example, shape (B,), differentiable; None: unknown
    weights: Tensor | None = None
    is_guess: bool = False  # the loss returned one number, taken for the mean over the examples


class Loss:
    """The loss of one batch as a sum with its weight, from the model's output and the target."""

    sums = False  # the data set's loss is the plain sum (``reduction="sum"``), not the mean
    splits = True  # it is a function of the model's output, with `forward` and `of_output`

    def __init__(self, function: Callable[..., Any], batching: Batching) -> None:
        self.name, self.batching, self._function = loss_name(function), batching, function
        self.doubts: list[str] = []  # what was noticed about its use, in sentences

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

    def can_wait(self, output: Any, target: Any) -> bool:
        """Tell whether `of_outputs` gives the bits of `of_output` for outputs on this target."""
        return False

    def of_outputs(self, outputs: Sequence[Tensor], target: Tensor) -> list[BatchTerms]:
        """Return the terms of one batch for several outputs, all of which can wait."""
        raise NotImplementedError


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
        return _WholeBatchLoss(batch_loss, batching())
    module = _module_of(loss)
    if _is_standard(module):
        return _StandardLoss(module, batching(pairs=True, by_target=True))
    return Loss(loss, batching(pairs=True))


class _StandardLoss(Loss):
    """A loss module of torch, taken apart into its terms."""

    def __init__(self, module: Any, batching: Batching) -> None:
        super().__init__(module, batching)
        self.sums = module.reduction == "sum"
        self._axis = batching.target_axis
        self._batchmean = module.reduction == "batchmean"
        self.module: Any = copy.deepcopy(module).requires_grad_(False)
        self.module.reduction = "none"
        self._place: tuple[torch.device, torch.dtype] | None = None
        # Of each target that is alive: what was found out about it, at which version.
        self._seen: Any = WeakTensorKeyDictionary()
        self._is_new = True

    def forward(self, model: nn.Module, batch: Any) -> tuple[Any, Any]:
        output, target = forward(model, batch)
        return main_output(output, type(self.module).__name__), target

    def of_output(self, output: Any, target: Any, batch: Any) -> BatchTerms:
        known = self._known(output, target)
        if known is None:
            self._check(output, target)
        if output.dtype in {torch.float16, torch.bfloat16}:
            output = output.float()  # as torch's autocast does for losses
        self._move_to(output)
        element = self.module(output, target)
        element = element if element.ndim else element.reshape(1)
        if known is None:
            share = self._weights(target, element).reshape(element.shape)
            known = share.sum(), self._per_example(share)
            if not target.is_inference():  # those have no version
                self._seen[target] = (target._version, output.shape, element.device, *known)
        weight, weights = known
        total = element.sum(dtype=torch.float64)
        return BatchTerms(total, weight, self._per_example(element), weights)

    def can_wait(self, output: Any, target: Any) -> bool:
        # Each row by itself, with the same operations wherever it stands.
        return (
            isinstance(self.module, (nn.CrossEntropyLoss, nn.NLLLoss, nn.MSELoss, nn.L1Loss))
            and output.ndim == 2
            and output.dtype in {torch.float32, torch.float64}
            and not self._axis
            and len(output) == len(target)
            and self._known(output, target) is not None
        )

    def of_outputs(self, outputs: Sequence[Tensor], target: Tensor) -> list[BatchTerms]:
        known, n = self._known(outputs[0], target), len(outputs)
        assert known is not None, "an output that can wait is on a target with known weights"
        self._move_to(outputs[0])
        element = self.module(torch.cat(list(outputs)), target.repeat(n, *[1] * (target.ndim - 1)))
        totals = element.view(n, -1).sum(dim=1, dtype=torch.float64)
        terms = self._per_example(element).view(n, -1)
        return [BatchTerms(totals[i], known[0], terms[i], known[1]) for i in range(n)]

    def _move_to(self, output: Tensor) -> None:
        place = output.device, output.dtype
        if place != self._place:
            self.module.to(*place)
            self._place = place

    def _known(self, output: Tensor, target: Any) -> tuple[Tensor, Tensor] | None:
        """Return the weights that were found for this very target before, unless it changed."""
        seen = self._seen.get(target) if isinstance(target, Tensor) else None
        if seen is None:
            return None
        *state, weight, weights = seen
        same = state == [target._version, output.shape, output.device]
        return (weight, weights) if same else None

    def _weights(self, target: Tensor, element: Tensor) -> Tensor:
        """Return what torch's own mean would divide by, element by element."""
        if isinstance(self.module, _OF_CLASSES[:2]) and not target.is_floating_point():
            kept: Tensor = target != self.module.ignore_index
            if self.module.weight is None:
                return kept.double()
            weights: Tensor = self.module.weight.double()[target.where(kept, 0)] * kept
            return weights
        share = torch.ones(element.shape, dtype=torch.float64, device=element.device)
        if self._batchmean:
            share.view(len(share), -1)[:, 1:] = 0.0
        return share

    def _per_example(self, element: Tensor) -> Tensor:
        """Sum everything but the axis of the examples."""
        if element.ndim == 1:
            return element.double()
        if self._axis and self._axis < element.ndim:
            element = element.movedim(self._axis, 0)
        return element.reshape(len(element), -1).sum(dim=1, dtype=torch.float64)

    def _check(self, output: Tensor, target: Any) -> None:
        module, name = self.module, type(self.module).__name__
        if not isinstance(target, Tensor):
            msg = (
                f"{name} needs tensors, got an output of {describe(output)} and a target of "
                f"{describe(target)}; write a function (output, target) that takes them, or "
                "batch_loss(model, batch)"
            )
            raise LossError(msg)
        # Shapes that differ may still pair each example with its own target.
        paired = output.ndim == target.ndim and output.shape[:1] == target.shape[:1]
        if isinstance(module, _ELEMENTWISE) and output.shape != target.shape and not paired:
            msg = (
                f"{name} compares the output with the target element by element, but their shapes "
                f"are {tuple(output.shape)} and {tuple(target.shape)}; reshape one of them, for "
                "example by output.squeeze(1)"
            )
            raise LossError(msg)
        if (
            isinstance(module, (nn.BCELoss, nn.BCEWithLogitsLoss))
            and not target.is_floating_point()
        ):
            msg = f"{name} needs targets of floating point, got {describe(target)}: use y.float()"
            raise LossError(msg)
        if isinstance(module, _OF_CLASSES):
            _check_classes(module, output, target)
        is_first = self._is_new and isinstance(module, nn.NLLLoss)
        if is_first and (doubt := _doubt_of_log_probabilities(output)):
            self.doubts.append(doubt)
            warnings.warn(doubt, MisleadingWarning, stacklevel=7)
        self._is_new = False


def _check_classes(module: Any, output: Tensor, target: Tensor) -> None:
    """Check labels before the loss runs, which on a GPU would end the process."""
    ignored = getattr(module, "ignore_index", None)
    same = target.shape == output.shape
    if target.is_floating_point() and same and isinstance(module, nn.CrossEntropyLoss):
        return  # probabilities
    if hint := _hint_on_labels(output, target, has_ignored=ignored is not None):
        name = type(module).__name__
        msg = f"{name} got an output of {describe(output)} and labels of {describe(target)}: {hint}"
        raise LossError(msg)
    n_classes = output.shape[min(1, output.ndim - 1)]
    kept = target if ignored is None else target[target != ignored]
    if kept.numel() and (int(kept.min()) < 0 or int(kept.max()) >= n_classes):
        bad = sorted(set(kept[(kept < 0) | (kept >= n_classes)].tolist()))
        msg = (
            f"labels out of range: the model has {n_classes} outputs, so labels are 0 to "
            f"{n_classes - 1}, but the data contain {', '.join(map(str, bad[:5]))}"
            f"{', …' if len(bad) > 5 else ''}; change the last layer or the labels, or set "
            "ignore_index"
        )
        raise LossError(msg)


def _hint_on_labels(output: Tensor, target: Tensor, *, has_ignored: bool) -> str | None:
    """Say what is wrong with the type or the shape of labels, and what puts it right."""
    of_indices = output.shape[:1] + output.shape[2:] if output.ndim > 1 else output.shape[:0]
    expected = f"class indices of shape {tuple(of_indices)}"
    if target.is_floating_point():
        if target.shape == of_indices:
            return "class indices are whole numbers, use labels.long()"
        same = target.shape == output.shape
        return (
            "it takes class indices, use labels.argmax(1)" if same else f"expected int64 {expected}"
        )
    if target.shape == of_indices:
        known = {torch.int64, torch.uint8} if has_ignored else {torch.int64}
        return None if target.dtype in known else "class indices are int64, use labels.long()"
    if target.shape == output.shape:
        return f"expected {expected}, one-hot labels become such by labels.argmax(1)"
    if output.ndim > 2 and target.shape == output.shape[:-1]:
        return f"expected {expected}; classes are the second axis, use output.movedim(-1, 1)"
    squeezable = target.ndim == output.ndim and target.shape[1:2] == (1,)
    return f"expected {expected}" + (", use labels.squeeze(1)" if squeezable else "")


def _doubt_of_log_probabilities(output: Tensor) -> str | None:
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


def normalised_logits(logits: Tensor) -> Tensor:
    """Return (z − mean z) / max(‖z − mean z‖₂, 1e-10), over the classes.

    That is what the code of Andriushchenko et al. (2023) does. Their text divides by the standard
    deviation of the logits instead: those are √K times as long, with K classes.

    >>> normalised_logits(torch.tensor([[3.0, -1.0]])).double().round(decimals=4).tolist()
    [[0.7071, -0.7071]]
    """
    centred = logits - logits.mean(dim=1, keepdim=True)
    length = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    unit: Tensor = centred / length.clamp_min(_SMALLEST)
    return unit


class NormalisedLogits(Loss):
    """A classification loss after the logits were normalised: `normalised_logits`."""

    def __init__(self, loss: Loss) -> None:
        """Wrap a loss (output, target) of logits, or raise a LossError for any other."""
        module = loss.module if isinstance(loss, _StandardLoss) else None
        of_logits = module is None or isinstance(module, (nn.CrossEntropyLoss, nn.MultiMarginLoss))
        if not loss.splits or not of_logits:
            name = "batch_loss(model, batch)" if module is None else type(module).__name__
            msg = (
                f"logits can be normalised for a loss of classes alone, and {name} is none: give "
                "loss=torch.nn.CrossEntropyLoss(), or a function (output, target) of logits"
            )
            raise LossError(msg)
        self.sums, self.batching, self.doubts = loss.sums, loss.batching, loss.doubts
        self.name = f"{loss.name} of normalised logits"
        self._loss = loss

    def forward(self, model: nn.Module, batch: Any) -> tuple[Any, Any]:
        """Return what the loss takes of the model's output, and the target."""
        return self._loss.forward(model, batch)

    def of_output(self, output: Any, target: Any, batch: Any) -> BatchTerms:
        """Return the terms of a batch from the model's output."""
        tensors = isinstance(output, Tensor) and isinstance(target, Tensor)
        logits = tensors and output.ndim >= 2 and output.shape[1] > 1
        if not logits or (target.is_floating_point() and not _are_shares(target, output)):
            msg = (
                "logits can be normalised for classes alone: expected logits of shape (B, K) with "
                "K at least 2, and classes or their probabilities, got an output of "
                f"{describe(output)} and a target of {describe(target)}"
            )
            raise LossError(msg)
        return self._loss.of_output(normalised_logits(output), target, batch)


def _are_shares(target: Tensor, output: Tensor) -> bool:
    """Tell whether floating-point targets are probabilities of the classes."""
    if target.shape != output.shape or bool((target < 0).any()):
        return False
    return bool(((target.sum(dim=1) - 1).abs() < 1e-3).all())


class _WholeBatchLoss(Loss):
    """A function (model, batch): per-example losses, a (sum, weight) pair, or one mean."""

    splits = False

    def __call__(self, model: nn.Module, batch: Any) -> tuple[BatchTerms, Any]:
        value = self._function(model, rebuilt(batch))
        return read_loss(value, batch, self.batching), (model, batch)

    def forward(self, model: nn.Module, batch: Any) -> tuple[Any, Any]:
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
        if value.ndim == 1 and size in {None, len(value)}:
            ones = torch.ones_like(value, dtype=torch.float64)
            return BatchTerms(value.sum(dtype=torch.float64), float(len(value)), value, ones)
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
    if isinstance(weight, numbers.Real):
        weight = torch.tensor(float(weight), dtype=torch.float64)
    if not isinstance(weight, Tensor) or weight.is_complex():
        return None
    if not isinstance(total, Tensor) or not total.is_floating_point():
        return None
    weights = weight.to(total.device, torch.float64)
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        return None
    if total.ndim == 0 and weights.numel() == 1:
        return BatchTerms(total.double(), float(weights))
    if total.ndim == 1 and total.shape == weights.shape and size in {None, len(total)}:
        return BatchTerms(total.sum(dtype=torch.float64), float(weights.sum()), total, weights)
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
    held = {
        k: v for k, v in getattr(loss, "__dict__", {}).items() if k[0] != "_" and k != "training"
    }
    if isinstance(loss, nn.Module):
        held |= dict(loss.state_dict(keep_vars=True))
    name = type(loss).__qualname__
    name = name if where.startswith("torch.nn.") else f"{where}.{name}"
    return f"{name}({_words(held)})"


def _words(settings: dict[Any, Any]) -> str:
    items = sorted(settings.items(), key=str)
    parts = [f"{k}={v!r}" if isinstance(v, _PLAIN) else str(k) for k, v in items]
    if not all(isinstance(value, _PLAIN) for _, value in items):
        parts.append(digest_of(*(value for _, value in items)))
    return ", ".join(parts)


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
    known = [cls for cls in _STANDARD if isinstance(loss, cls)]
    own = any(type(loss).forward is cls.forward for cls in known)
    return own and loss.reduction in {"mean", "sum", "none", "batchmean"}
