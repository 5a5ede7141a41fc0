"""`Problem`: a model with its weights, a loss and data; what every measurement takes."""

from __future__ import annotations

import copy
import os
import platform
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape._version import __version__
from landscape.errors import InvalidArgumentError, ProblemError, one_of
from landscape.params import ParameterSpace, known_device, preserved
from landscape.problem.checkpoint import load_weights
from landscape.problem.data import BATCH_SIZE, Batches
from landscape.problem.digest import Content
from landscape.problem.logits import NormalisedLogits
from landscape.problem.losses import Loss, make_loss
from landscape.problem.parts import examples_between
from landscape.results import Provenance, Signature

DTYPES = {"float32": torch.float32, "float64": torch.float64}
MODES = ("eval", "train")


class Problem:
    """A model with its weights, a loss and a data set.

    The model is never changed by a measurement. Its weights are read when a measurement starts,
    so that a model that is still in training can be measured again and again.

    Attributes:
        model: the module.
        name: what people call these weights.
        path: absolute path of the file that they were read from; empty: of none.
        space: the parameters that are explored.
        parameters: the pattern that they were chosen by; empty: all that are trainable.
        loss: the loss, as sums and weights.
        metrics: further means over the examples, by name.
        split: the part of the data.
        mode: ``eval`` or ``train``.
        device: where everything is computed.
        dtype: the floating-point type of everything that is computed.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Any] | None = None,
        data: Any = None,
        *,
        batch_loss: Callable[[nn.Module, Any], Any] | None = None,
        metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
        name: str | None = None,
        split: str = "train",
        mode: str = "eval",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        batch_size: int = BATCH_SIZE,
        freeze_data: bool = False,
    ) -> None:
        """Put a problem together; the data are read at the first measurement.

        Args:
            model: any module; parameters with ``requires_grad=False`` stay where they are.
            loss: a loss module of torch, or a function (output, target) that returns the mean
                over the batch or one loss per example.
            data: a DataLoader (not shuffled), a Dataset, a pair of tensors, or a list of batches.
            batch_loss: instead of ``loss``: a function (model, batch) that returns per-example
                losses, a pair (sum, weight), or the mean over the batch.
            metrics: functions with the arguments of the loss, returning per-example values or
                their mean.
            name: what to call these weights; the model's class by default.
            split: what to call this part of the data.
            mode: ``eval`` (BatchNorm with its running statistics, no dropout) or ``train``
                (statistics of the batch, dropout with fixed masks; running statistics untouched).
            device: where to compute; by default where the model is.
            dtype: ``float32`` or ``float64``; by default the model's own, else float32.
            batch_size: for data that come without batches.
            freeze_data: keep what one pass over the data gives, also when the next would differ.

        Raises:
            ProblemError: if the model is no module, or a part is missing.
        """
        given: object = model
        if not isinstance(given, nn.Module):
            msg = f"the model must be a torch.nn.Module, not {type(given).__name__}"
            raise ProblemError(msg)
        if data is None:
            msg = "the problem has no data: give a DataLoader, a Dataset or a pair of tensors"
            raise ProblemError(msg)
        self.model = model
        self.space = ParameterSpace.of(model)
        self.parameters = ""
        self.loss: Loss = make_loss(loss, batch_loss)
        self.metrics = dict(metrics or {})
        self.name = name or type(model).__name__
        self.path = ""
        self.split = split
        self.mode = one_of(mode, MODES, what="mode")
        self.device = next(model.parameters()).device if device is None else known_device(device)
        self.dtype = _dtype(dtype, model)
        self._data = _LazyBatches(data, self.device, self.dtype, batch_size, freeze_data)

    @property
    def batches(self) -> Batches:
        """The data, read and checked at the first use, and shared with `at`."""
        if self._data.batches is None:
            with preserved(self.model):
                self._data.batches = self._data.read()
        return self._data.batches

    @property
    def additive(self) -> bool | None:
        """Whether the loss of a batch is the mean of its parts' losses; None: not checked yet."""
        return self._data.additive

    @additive.setter
    def additive(self, value: bool) -> None:
        self._data.additive = value

    @property
    def writes_inputs(self) -> bool:
        """Whether the model or the loss changes its inputs in place, so that it needs copies."""
        return self._data.writes_inputs

    @writes_inputs.setter
    def writes_inputs(self, value: bool) -> None:
        self._data.writes_inputs = value

    @property
    def weights(self) -> Tensor:
        """A copy of the current weights as one flat vector, shape (n,)."""
        return self.space.read(self.model, device=self.device, dtype=self.dtype)

    def at(
        self,
        checkpoint: str | PathLike[str] | Mapping[str, Any] | nn.Module,
        *,
        name: str | None = None,
        key: str | None = None,
        unsafe_pickle: bool = False,
    ) -> Problem:
        """Return the same problem at the weights of a checkpoint; this one stays as it is.

        Args:
            checkpoint: a file, a state dict, or a module.
            name: what to call these weights; by default the file's name.
            key: which entry of a nested checkpoint to read, for example ``ema``.
            unsafe_pickle: unpickle whatever the file holds, which runs any code in it.

        Returns:
            A problem that shares the loss and the data with this one.

        Raises:
            CheckpointError: if the checkpoint cannot be read, or does not fit.
            ProblemError: if the model cannot be copied.
        """
        other = copy.copy(self)
        try:
            other.model = copy.deepcopy(self.model, _derived_tensors(self.model))
        except Exception as error:
            msg = f"the model {type(self.model).__name__} cannot be copied: {error}"
            raise ProblemError(msg) from error
        load_weights(other.model, checkpoint, key=key, unsafe_pickle=unsafe_pickle)
        is_file = isinstance(checkpoint, (str, PathLike))
        other.name = name or (Path(checkpoint).name if is_file else self.name)  # type: ignore[arg-type]
        other.path = os.path.abspath(checkpoint) if is_file else ""  # type: ignore[arg-type]
        return other

    def named(self, name: str) -> Problem:
        """Return the same problem under another name.

        Args:
            name: what to call these weights.

        Returns:
            A problem that shares everything else with this one.
        """
        other = copy.copy(self)
        other.name = name
        return other

    def only(self, *patterns: str) -> Problem:
        """Return the same problem with some of the parameters; the others stay where they are.

        Args:
            *patterns: names of parameters or of modules, ``*`` and ``?`` standing for anything,
                such as ``head`` or ``*.weight``.

        Returns:
            A problem that shares everything else with this one.

        Raises:
            InvalidArgumentError: if a pattern matches no parameter; the message lists them.
        """
        other = copy.copy(self)
        other.space = self.space.only(patterns)
        # As none may share a key: of two patterns either may match, of two choices both have to.
        other.parameters = " & ".join(filter(None, [self.parameters, ", ".join(patterns)]))
        return other

    def on_examples(self, first: int, last: int) -> Problem:
        """Return the same problem on some of the examples, in the order of the data.

        Args:
            first: index of the first example, from 0.
            last: index after the last one.

        Returns:
            A problem that shares everything else with this one; its data are examples ``first``
            to ``last`` − 1, in the batches of the whole, cut where need be.

        Raises:
            InvalidArgumentError: if there are no such examples.
        """
        n = self.batches.n_examples
        if not 0 <= first < last <= n:
            msg = f"examples {first} to {last} were asked for, and the data have 0 to {n:,}"
            raise InvalidArgumentError(msg)
        other = copy.copy(self)
        pieces = examples_between(self.batches, first, last)
        other._data = _LazyBatches(pieces, self.device, self.dtype, BATCH_SIZE, True)
        other._data.additive = self._data.additive
        other._data.writes_inputs = self._data.writes_inputs
        return other

    def with_normalised_logits(self) -> Problem:
        """Return the same problem with a loss of normalised logits, see `normalised_logits`.

        Its loss does not change when all logits are scaled, as they are by longer training.

        Returns:
            A problem that shares everything else with this one.

        Raises:
            LossError: if the loss is not one of classes by their logits.
        """
        other = copy.copy(self)
        other.loss = NormalisedLogits(self.loss)
        return other

    @property
    def signature(self) -> Signature:
        """What the problem computes now, in a few numbers; measured at each use.

        Not kept: what a model reads from globals or files may change. Cost: four passes over at
        most 64 examples.
        """
        from landscape.evaluate_signature import measure_signature

        return measure_signature(self)

    @property
    def checkpoint_hash(self) -> str:
        """Digest of parameters and buffers, the same for the same values in any file format."""
        content = Content()
        trainable = set(ParameterSpace.of(self.model).names)
        state = self.model.state_dict()
        for name, tensor in sorted(state.items()):
            if isinstance(tensor, Tensor):
                content.add((name, name in trainable, tensor))
        for name, tensor in sorted(self.model.named_buffers(remove_duplicate=False)):
            if name not in state:
                content.add((name, tensor))
        return content.hexdigest()

    def provenance(self) -> Provenance:
        """Return where a number measured now comes from.

        Returns:
            The record, with the current time.
        """
        signature = self.signature
        return Provenance(
            checkpoint=self.name,
            checkpoint_hash=self.checkpoint_hash,
            data_fingerprint=self.batches.fingerprint,
            problem_fingerprint=signature.identity,
            split=self.split,
            mode=self.mode,
            device=self.device.type,
            dtype=str(self.dtype).removeprefix("torch."),
            n_parameters=self.space.n,
            n_examples=self.batches.n_examples,
            versions={
                "landscape-sharpness": __version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            parameters=self.parameters,
            loss=self.loss.name,
            signature=signature,
        )

    def __repr__(self) -> str:
        return (
            f"Problem({self.name!r}: {type(self.model).__name__} with {self.space.n:,} "
            f"parameters, {self.split} data, {self.mode} mode, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device})"
        )


class _LazyBatches:
    """The data that problems on different checkpoints share, read at the first use."""

    def __init__(
        self, source: Any, device: torch.device, dtype: torch.dtype, size: int, freeze: bool
    ) -> None:
        self.additive: bool | None = None
        self.writes_inputs = False
        self.batches: Batches | None = None
        self._arguments = (source, device, dtype, size, freeze)

    def read(self) -> Batches:
        source, device, dtype, size, freeze = self._arguments
        return Batches(source, device=device, dtype=dtype, batch_size=size, freeze=freeze)


def _derived_tensors(model: nn.Module) -> dict[int, Any]:
    """Copy what hooks have computed from parameters, which deepcopy refuses to do, as a memo."""
    derived = [
        value
        for part in model.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    return {id(tensor): tensor.detach().clone() for tensor in derived}


def _dtype(dtype: str | torch.dtype | None, model: nn.Module) -> torch.dtype:
    if dtype is None:
        own = next(p.dtype for p in model.parameters() if p.is_floating_point())
        return own if own in DTYPES.values() else torch.float32
    if dtype in DTYPES.values():
        return dtype  # type: ignore[return-value]
    return DTYPES[one_of(str(dtype).removeprefix("torch."), DTYPES, what="dtype")]
