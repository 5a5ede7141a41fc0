"""`Problem`: a model with its weights, a loss and data; what every measurement takes."""

from __future__ import annotations

import copy
import functools
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from landscape._version import __version__
from landscape.errors import InvalidArgumentError, ProblemError, one_of
from landscape.problem._batches import BATCH_SIZE, MAX_EXAMPLES, Batches
from landscape.problem._checkpoint import load_weights
from landscape.problem._live import (
    Flat,
    flat_copy,
    preserved,
    state_of,
    tensors_by_name,
    trainable_names,
    unwrapped,
)
from landscape.problem._parameters import ParameterSpace, is_dtensor, whole_of
from landscape.problem.data import move
from landscape.problem.digest import Content
from landscape.problem.losses import Loss, NormalisedLogits, count_examples, make_loss
from landscape.randomness import forked_rng
from landscape.results import Provenance, Signature

DTYPES = {"float32": torch.float32, "float64": torch.float64}
MODES = ("eval", "train")


@dataclass(frozen=True)
class Footprint:
    """What a pass with gradients keeps of a batch until its backward pass, as its size says."""

    once: float  # bytes, whatever the batch
    each: float  # bytes for each byte of the batch

    def of(self, batch_bytes: int) -> float:
        """Return the bytes that are kept of a batch."""
        return self.once + self.each * batch_bytes

    def share(self, batch_bytes: int, limit: float) -> float:
        """Return the part of a batch of which a limit is kept; half of it is left for examples."""
        return max(limit - self.once, limit / 2) / max(self.each * batch_bytes, 1e-9)


@dataclass
class Trials:
    """Results of the self-tests of a problem."""

    additive: bool | None = None  # the loss of a batch is the sum of its parts'; None: not tested
    runs_parts: bool = False  # the model runs on a part of the first batch
    writes_inputs: bool = False  # the model or the loss changes its inputs in place
    writes_unseen: bool = False  # a forward pass writes buffers behind autograd's back
    footprint: Footprint | None = None  # None: not known, or batches are not to be cut


class Problem:
    """A model with its weights, a loss and a data set.

    A measurement writes weights into the model itself and gives it back bit for bit. The model's
    own weights are read when it starts; `at` names other weights.

    Attributes:
        model: the live module; what is wrapped by torch.compile or DistributedDataParallel is the
            module inside.
        name: what people call these weights.
        path: absolute path of the file that they were read from; empty: of none.
        parameters: the pattern that they were chosen by; empty: all that are trainable.
        loss: the loss, as sums and weights.
        metrics, split, mode, device, dtype: as given, or the default.
        reader: what `at` reads a file or folder by first: the weights in what a library writes in a
            way of its own, else the path as it is.
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
        examples: Callable[[Any], int] | None = None,
        batch_axis: Any = 0,
        max_examples: int = MAX_EXAMPLES,
    ) -> None:
        """Put a problem together; the data are read at the first measurement.

        Args:
            model: any module; parameters with ``requires_grad=False`` stay where they are.
            loss: a loss module of torch, or a function (output, target) of what the model
                returned, that returns the mean over the batch, one loss per example, or a pair
                (sum, weight).
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
            examples: counts the examples of a batch, where its tensors do not agree on one size.
            batch_axis: axis of the examples in the tensors of a batch, 1 for (time, batch, …); or
                axes in the nesting of a batch, (1, 0) for (inputs, target), None for what has none.
            max_examples: stop with an error where data without a length give more.

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
        self.model = model = unwrapped(model)
        self.parameters = ""
        self.loss: Loss = make_loss(loss, batch_loss, examples=examples, batch_axis=batch_axis)
        self.metrics = dict(metrics or {})
        self.name = name or type(model).__name__
        self.path = ""
        self.split = split
        self.mode = one_of(mode, MODES, what="mode")
        first = next(model.parameters(), None)
        own = torch.device("cpu") if first is None else first.device
        self.device = own if device is None else known_device(device)
        self.dtype = _dtype(dtype, model)
        options: dict[str, Any] = {"batch_size": batch_size, "max_examples": max_examples}
        options |= {"device": self.device, "dtype": self.dtype, "freeze": freeze_data}
        self._data = _LazyBatches(functools.partial(Batches, data, **options))
        self.batching = self.loss.batching
        self.trials = Trials()
        self.derivatives: dict[str, Any] = {}  # what the tests of derivatives have said
        self._state: dict[str, Tensor] | None = None
        self.flat_weights: Flat = {}
        self._extra: dict[str, Any] = {}
        self.reader: Callable[[str | PathLike[str]], Any] = lambda path: path
        if any(is_lazy(tensor) for _, tensor in tensors_by_name(model)):
            self._infer_shapes()
        self._space = ParameterSpace.of(model)

    @property
    def space(self) -> ParameterSpace:
        """The parameters that are explored; where they are split, this process's parts of them."""
        return self._space.split()

    @classmethod
    def from_transformers(
        cls, model: nn.Module, data: Any, *, task: str | None = None, **options: Any
    ) -> Problem:
        """Build the problem of a model of transformers, with the loss of its task.

        The loss is the model's own, Σ over tokens (or examples) / number that count: the next token
        for a causal model, labels of −100 and padding left out. That both agree is tested on the
        first sequences.

        Args:
            model: any model with a head for one of the tasks; of PEFT with its adapter, of which
                the parameters that require a gradient are explored.
            data: a DataLoader or a list of batches by name (``input_ids``, ``attention_mask``,
                ``labels``), or a Dataset of such examples, which are padded. A DataLoader that
                shuffles is read in the order of its Dataset.
            task: ``causal-lm``, ``masked-lm``, ``sequence-classification`` or
                ``token-classification``; by default that of the model's class.
            **options: those of `Problem` but the loss.

        Returns:
            The problem; `at` takes folders of ``save_pretrained`` and of the Trainer too.

        Raises:
            ProblemError: if the model's own loss is another one, or its class has no such task.
            DataError: if ids are outside of the vocabulary, or labels are missing.
            InvalidArgumentError: if the model has a head for another task.
        """
        from landscape.problem._hugging_face import transformers_problem

        return transformers_problem(model, data, task=task, **options)

    @classmethod
    def from_lightning(
        cls, module: nn.Module, data: Any, *, step: str = "training_step", **options: Any
    ) -> Problem:
        """Build the problem of a LightningModule, with the loss that its step returns.

        A step returns the mean over its batch, so that a batch weighs as many as it has examples.
        The loss of each example is then not known, nor what is measured from it: the empirical
        Fisher matrix, and standard errors by examples.

        Args:
            module: the LightningModule.
            data: a DataLoader, or a list of batches as the step takes them. A DataLoader that
                shuffles is read in the order of its Dataset.
            step: ``training_step``, ``validation_step`` or ``test_step``: it returns a tensor or a
                dictionary with ``loss``.
            **options: those of `Problem` but the loss.

        Returns:
            The problem; `at` takes ``.ckpt`` files.

        Raises:
            ProblemError: if the module has no such step, or optimises by hand.
        """
        from landscape.problem._lightning import lightning_problem

        return lightning_problem(module, data, step=step, **options)

    def _infer_shapes(self) -> None:
        """Run the model on the first batch, from which lazy layers learn their shapes."""
        modes = [(part, part.training) for part in self.model.modules()]
        own = next(p.dtype for p in self.model.parameters() if p.is_floating_point())
        batch = move(next(iter(self.batches)), self.device, own)
        with torch.no_grad(), forked_rng(0):
            self.loss(self.model.eval(), batch)
        for part, mode in modes:
            part.training = mode

    @property
    def batches(self) -> Batches:
        """The data, read and checked at the first use, and shared with `at`."""
        if self._data.batches is None:
            with preserved(self.model):
                count = functools.partial(count_examples, self.loss, self.model)
                self._data.batches = self._data.read(batching=self.batching, count=count)
        return self._data.batches

    def state(self) -> dict[str, Tensor]:
        """Return parameters and buffers, by all of their names; not to be written to."""
        return state_of(self.model) if self._state is None else self._state

    @property
    def is_at_checkpoint(self) -> bool:
        """Whether the weights are those of a checkpoint, and not the live model's own."""
        return self._state is not None

    @property
    def weights(self) -> Tensor:
        """A copy of the current weights as one flat vector, shape (n,); of split ones the part."""
        state = self.state()
        flat = self.space.flatten({name: state[name] for name in self.space.names})
        return flat.to(self.device, self.dtype)

    def at(
        self,
        checkpoint: str | PathLike[str] | Mapping[str, Any] | nn.Module | Problem,
        *,
        name: str | None = None,
        key: str | None = None,
        unsafe_pickle: bool = False,
        partial: bool = False,
    ) -> Problem:
        """Return the same problem at the weights of a checkpoint; this one stays as it is.

        Args:
            checkpoint: a file of torch, safetensors or NumPy, the index or the folder of shards, a
                folder of Hugging Face or `torch.distributed.checkpoint`, a state dict, a module,
                or a problem at other weights.
            name: what to call these weights; by default the file's name.
            key: which entry of a nested checkpoint to read, or which network by the prefix of its
                names, for example ``ema``, ``teacher`` or ``module.encoder_q``.
            unsafe_pickle: unpickle whatever the file holds, which runs any code in it.
            partial: where the checkpoint has no weights, keep those of this problem; a warning
                lists them.

        Returns:
            A problem that shares the model, the loss and the data with this one.

        Raises:
            CheckpointError: if the checkpoint cannot be read, or does not fit.
        """
        if any(map(is_dtensor, self.model.parameters())):
            msg = (
                "the parameters of the model are shards (DTensors of fully_shard): load the "
                "checkpoint into the model, by torch.distributed.checkpoint, and make a Problem of "
                "it again"
            )
            raise ProblemError(msg)
        other = self._with(derivatives={}, path="")
        source: Any = checkpoint
        if isinstance(checkpoint, Problem):
            source = _persistent(checkpoint.model, checkpoint.state())
            other.name, other.path = checkpoint.name, checkpoint.path
        elif isinstance(checkpoint, nn.Module):
            inside = unwrapped(checkpoint)
            source = _persistent(inside, state_of(inside))
        elif not isinstance(checkpoint, Mapping):
            other.name, other.path = Path(checkpoint).name, os.path.abspath(checkpoint)
            source = self.reader(checkpoint)
        other.name = name or other.name
        with preserved(self.model):
            if self._state is not None:  # which adapters and parts go over
                with torch.no_grad():
                    for tensor_name, tensor in tensors_by_name(self.model):
                        tensor.copy_(self._state[tensor_name])
                self.restore_extra_state()
            load_weights(self.model, source, key=key, unsafe_pickle=unsafe_pickle, partial=partial)
            other._state, other.flat_weights = flat_copy(self.model)
            other._extra = {
                n: part.get_extra_state()
                for n, part in self.model.named_modules()
                if type(part).set_extra_state is not nn.Module.set_extra_state
            }
        return other

    def restore_extra_state(self) -> None:
        """Hand each layer with extra state that of the checkpoint, while the model is measured."""
        for name, extra in self._extra.items():
            self.model.get_submodule(name).set_extra_state(extra)

    def named(self, name: str) -> Problem:
        """Return the same problem, its weights called by another name."""
        return self._with(name=name)

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
        # As none may share a key: of two patterns either may match, of two choices both have to.
        parameters = " & ".join(filter(None, [self.parameters, ", ".join(patterns)]))
        space = self._space.only(patterns)
        # The graph of some parameters is smaller than that of all.
        trials = copy.copy(self.trials)
        return self._with(_space=space, parameters=parameters, derivatives={}, trials=trials)

    def on_examples(self, first: int, last: int) -> Problem:
        """Return the same problem on examples ``first`` to ``last`` − 1, in the order of the data.

        Args:
            first: index of the first example, from 0.
            last: index after the last one.

        Returns:
            A problem that shares everything else; its batches are those of the whole, cut.

        Raises:
            InvalidArgumentError: if there are no such examples.
        """
        n = self.batches.n_examples
        if not 0 <= first < last <= n:
            msg = f"examples {first} to {last} were asked for, and the data have 0 to {n:,}"
            raise InvalidArgumentError(msg)
        return self._on(list(self.batching.between(self.batches, first, last)))

    def with_examples(self, indices: Sequence[int]) -> Problem:
        """Return the same problem on some of the examples.

        Args:
            indices: ascending, in the order of the data, from 0.

        Returns:
            A problem that shares everything else; the examples are in one batch where their shapes
            allow it, and else in one each.
        """
        return self._on(self.batching.chosen(self.batches, indices))

    def _on(self, pieces: list[Any]) -> Problem:
        """Return the same problem on other batches."""
        read = functools.partial(Batches, pieces, device=self.device, dtype=self.dtype, freeze=True)
        # What the tests say of a part does not hold for the whole: other batches may be padded.
        return self._with(_data=_LazyBatches(read), trials=copy.copy(self.trials))

    def with_normalised_logits(self) -> Problem:
        """Return the same problem with a loss that scaling all logits does not change.

        Returns:
            A problem that shares everything else with this one, see `normalised_logits`.

        Raises:
            LossError: if the loss is not one of classes by their logits.
        """
        return self._with(loss=NormalisedLogits(self.loss), trials=Trials(), derivatives={})

    @property
    def checkpoint_hash(self) -> str:
        """Digest of parameters and buffers, the same for the same values in any file format."""
        content, state = Content(), self.state()
        trainable, saved = trainable_names(self.model), self.model.state_dict()
        for name in sorted(saved.keys() & state.keys()):
            content.add((name, name in trainable, whole_of(state[name])))
        for name in sorted(state.keys() - saved.keys()):
            content.add((name, whole_of(state[name])))
        return content.hexdigest()

    def provenance(self, signature: Signature | None = None) -> Provenance:
        """Return where a number measured now comes from."""
        return Provenance(
            checkpoint=self.name,
            checkpoint_hash=self.checkpoint_hash,
            data_fingerprint=self.batches.fingerprint,
            problem_fingerprint="" if signature is None else signature.identity,
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

    def _with(self, **attributes: Any) -> Problem:
        other = copy.copy(self)
        vars(other).update(attributes)
        return other

    def __repr__(self) -> str:
        return (
            f"Problem({self.name!r}: {type(self.model).__name__} with {self.space.n:,} "
            f"parameters, {self.split} data, {self.mode} mode, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device})"
        )


@dataclass
class _LazyBatches:
    """The data that problems on different checkpoints share, read at the first use."""

    read: Callable[..., Batches]
    batches: Batches | None = None


def _persistent(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return a state dict with values from a state, which stays as it is."""
    copies = {name: tensor.clone() for name, tensor in state.items()}
    return {name: copies.get(name, value) for name, value in model.state_dict().items()}


def known_device(device: str | torch.device) -> torch.device:
    """Return a device that can be computed on, or raise."""
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        msg = f"unknown device {device!r}; known: cpu, cuda, cuda:0, mps, …"
        raise InvalidArgumentError(msg) from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        msg = f"device {device} was asked for, but this torch sees no CUDA device; use cpu"
        raise InvalidArgumentError(msg)
    return chosen


def _dtype(dtype: str | torch.dtype | None, model: nn.Module) -> torch.dtype:
    if dtype is None:
        own = next(p.dtype for p in model.parameters() if p.is_floating_point())
        return own if own in DTYPES.values() else torch.float32
    return DTYPES[one_of(str(dtype).removeprefix("torch."), DTYPES, what="dtype")]


def check_problem(problem: object) -> None:
    """Refuse a bare model, which has neither loss nor data."""
    if not isinstance(problem, Problem):
        msg = (
            f"expected a Problem, got {type(problem).__name__}; give the model with its loss and "
            "its data: problem = ls.Problem(model, loss, data)"
        )
        raise InvalidArgumentError(msg)
