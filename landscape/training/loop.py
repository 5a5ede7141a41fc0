"""The training loop."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from landscape.checks import whole
from landscape.errors import DataError, InvalidArgumentError, NonFiniteError, ProblemError
from landscape.optim import SAM, frozen_statistics
from landscape.problem.data import describe, move
from landscape.problem.losses import Loss, make_loss
from landscape.problem.problem import known_device
from landscape.problem.task import load_task, users_code
from landscape.progress import progress_bar
from landscape.training.data import Batches, cut_batch, label_seed, with_noisy_labels
from landscape.training.outcome import Epoch, Trained, save_checkpoint
from landscape.training.settings import TrainingSettings, lr_factor, make_optimizer
from landscape.training.state import Run, identify_start, resume, write_state


def train(
    task: Any,
    *,
    settings: TrainingSettings | None = None,
    state: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    save_every: int = 0,
    progress: bool | None = None,
    **changes: Any,
) -> Trained:
    """Train a model, with an optimizer of torch, or with SAM or a variant of it around one.

    One seed gives the same initial weights, the same order of the data and the same dropout masks
    to all optimizers; torch's global RNG is left as it was.

    Tensors and map-style data sets are shuffled anew in every epoch and cut into batches here; a
    last batch of a single example joins the one before it, because BatchNorm has no variance to
    divide by. A DataLoader, or any other re-iterable of batches, is used as it comes.

    With a state file, a training that was killed resumes after its last finished epoch and ends
    with the same bits, as far as its randomness is torch's. The file stays, and a finished training
    is read back from it: delete it when the result is safe.

    Args:
        task: has ``model()``, ``data(split)`` and ``loss`` or ``batch_loss``, as a problem file; or
            the name of a built-in problem or of a file.
        settings: the settings; None: the defaults.
        state: file that holds the training between two epochs, to resume from.
        checkpoint: name of the files that ``save_every`` writes, see `checkpoint_of_epoch`.
        save_every: a checkpoint after every so many epochs, and of the start; 0: none.
        progress: whether to draw a bar; None: only where stderr is a terminal.
        **changes: single settings, the names of `TrainingSettings`: ``optimizer="sam"``,
            ``epochs=10``, ….

    Returns:
        The model in eval mode, with a log, the settings and the cost.

    Raises:
        InvalidArgumentError: if a setting is out of range or names something unknown.
        ProblemError: if the task cannot be trained; `landscape.errors.DataError` among them, as
            for batches that ``micro_batch`` cannot cut.
        CheckpointError: if the state is that of another training.
        NonFiniteError: if the loss becomes NaN or infinite.

    Cost: one gradient per batch and epoch, with SAM's family one more for each ascent step. The
    gradients of the micro-batches of a batch count as one; they take one more forward pass.

    References: SAM and m-SAM: Foret et al. 2021, arXiv 2010.01412; ASAM: Kwon et al. 2021, arXiv
    2102.11600; GSAM: Zhuang et al. 2022, arXiv 2203.08065; unnormalised SAM: Andriushchenko and
    Flammarion 2022, arXiv 2206.06232.

    >>> from types import SimpleNamespace
    >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> line = SimpleNamespace(
    ...     model=lambda: nn.Linear(1, 1), data=lambda split: (x, 2 * x + 1), loss=nn.MSELoss()
    ... )
    >>> trained = train(line, epochs=300, lr=0.1, weight_decay=0.0, batch_size=4)
    >>> round(trained.model.weight.item(), 3), round(trained.model.bias.item(), 3)
    (2.0, 1.0)
    """
    started = time.perf_counter()
    if isinstance(task, (str, Path)):
        task = load_task(task)
    settings = dataclasses.replace(settings or TrainingSettings(), **changes)
    record = settings.record()
    _check_save_every(save_every, checkpoint, epochs=record["epochs"])
    seeds = np.random.SeedSequence(record["seed"]).generate_state(3)
    initial_seed, order_seed, noise_seed = (int(seed) for seed in seeds)
    loss_options = {name: getattr(task, name, None) for name in ("loss", "batch_loss", "examples")}
    loss = make_loss(**loss_options, batch_axis=getattr(task, "batch_axis", 0))
    device = known_device(settings.device)
    file = getattr(task, "file", None)  # whose line an error names
    locating = nullcontext if file is None else functools.partial(users_code, str(file))
    with _seeded(device, initial_seed), locating():
        model = _check_model(task.model()).to(device)
    with _seeded(device, noise_seed):
        with locating():
            source = task.data(settings.split)
        run = _new_run(model, source, loss, record, order_seed, resumable=state is not None)
        if state is not None:
            resume(Path(state), run)
        seconds_before = run.seconds
        for epoch in _epochs(run, progress=progress):
            run.seconds = seconds_before + time.perf_counter() - started
            if checkpoint is not None and save_every and epoch % save_every == 0:
                _save_epoch(run, checkpoint, epoch)
            # Last: a resumed training does not repeat what was written before.
            if state is not None:
                write_state(Path(state), run)
        run.seconds = seconds_before + time.perf_counter() - started
    run.model.eval()
    return run.result()


def checkpoint_of_epoch(path: str | os.PathLike[str], epoch: int, *, epochs: int) -> Path:
    """Return the name of the checkpoint after an epoch.

    Args:
        path: name of the last checkpoint.
        epoch: 0 for the initial weights.
        epochs: of the whole training.

    Returns:
        The name, whose alphabetical order is that of the epochs.

    >>> checkpoint_of_epoch("sam.pt", 5, epochs=40).name
    'sam-epoch-05.pt'
    """
    path = Path(path)
    return path.with_name(f"{path.stem}-epoch-{epoch:0{len(str(epochs))}d}{path.suffix}")


def _check_save_every(save_every: int, checkpoint: Any, *, epochs: int) -> None:
    whole("save_every", save_every, least=0, advice="0 saves the last weights only")
    if save_every and checkpoint is None:
        msg = "save_every needs a name for the files: give checkpoint, too"
        raise InvalidArgumentError(msg)
    if save_every and not epochs:
        msg = (
            f"save_every={save_every} needs epochs after which to save, got epochs=0; "
            "leave save_every out, or train for at least one epoch"
        )
        raise InvalidArgumentError(msg)


def _new_run(
    model: nn.Module, data: Any, loss: Loss, settings: Mapping[str, Any], seed: int, resumable: bool
) -> Run:
    model.train()
    _check_micro_batch(model, settings.get("micro_batch"))
    share = settings.get("label_noise", 0.0)
    source = with_noisy_labels(data, share, seed=label_seed(settings["seed"]))
    optimizer = make_optimizer(model, settings)
    factor = lr_factor(settings["schedule"], settings["epochs"])
    return Run(
        model=model,
        loss=loss,
        optimizer=optimizer,
        scheduler=LambdaLR(optimizer, factor),
        batches=Batches(source, settings["batch_size"], seed=seed),
        settings=settings,
        start=identify_start(model, source, loss) if resumable else {},
    )


def _save_epoch(run: Run, path: str | os.PathLike[str], epoch: int) -> None:
    settings = {**run.settings, "epoch": epoch}
    name = checkpoint_of_epoch(path, epoch, epochs=run.settings["epochs"])
    save_checkpoint(dataclasses.replace(run.result(), settings=settings), name)


def _epochs(run: Run, *, progress: bool | None) -> Iterator[int]:
    """Train, and yield the number of epochs done: at the start, and after each."""
    remaining = range(len(run.log) + 1, run.settings["epochs"] + 1)
    if not run.log:
        yield 0
    name = run.settings["optimizer"]
    for epoch in progress_bar(remaining, what=name, total=len(remaining), show=progress):
        started = time.perf_counter()
        lr = float(run.optimizer.param_groups[0]["lr"])
        train_loss, gradients = _one_epoch(run)
        if not math.isfinite(train_loss):
            msg = (
                f"the training loss of epoch {epoch} is {train_loss}; "
                f"try a smaller learning rate than {run.settings['lr']:g}"
            )
            raise NonFiniteError(msg)
        run.gradients += gradients
        seconds = time.perf_counter() - started
        run.log.append(Epoch(epoch=epoch, train_loss=train_loss, lr=lr, seconds=seconds))
        run.scheduler.step()
        yield epoch


def _one_epoch(run: Run) -> tuple[float, int]:
    """Train; return the mean loss at the weights before each step, and the number of gradients."""
    total = weight = 0.0
    gradients = 0
    for batch in run.batches:
        batch_total, batch_weight, n_gradients = _step(run, batch)
        total += batch_total
        weight += batch_weight
        gradients += n_gradients
    if gradients == 0:
        msg = "the training data hold no example; is the split empty, or used up after one pass?"
        raise DataError(msg)
    return total / weight if weight else math.nan, gradients


def _step(run: Run, batch: Any) -> tuple[float, float, int]:
    """Do one step; return sum and weight of the loss at the old weights, and number of gradients.

    With micro-batches this is m-SAM: each is perturbed by the gradient of its own loss, and the
    gradient of the step is Σ wᵢ ∇Lᵢ(w + εᵢ) / Σ wᵢ, wᵢ being the divisor of the micro-batch's loss:
    its number of examples, or less with class weights or ignored targets.
    """
    model, loss, optimizer = run.model, run.loss, run.optimizer
    micro_batch = run.settings.get("micro_batch")
    first = next(model.parameters())
    batch = move(batch, first.device, first.dtype)
    if micro_batch is None or not isinstance(optimizer, SAM):
        closure = _Closure(model, loss, optimizer, batch)
        optimizer.step(closure)
        return *closure.passes[0], len(closure.passes)
    pieces = cut_batch(batch, micro_batch, loss.batching)
    n = loss.batching.size(batch)
    closures = [
        _Closure(model, loss, optimizer, p, share=loss.batching.size(p) / n) for p in pieces
    ]
    optimizer.step_micro_batches(closures, weights=_weights(model, loss, pieces))
    total, weight = (sum(c) for c in zip(*(c.passes[0] for c in closures), strict=True))
    return total, weight, len(closures[0].passes)


def _check_micro_batch(model: nn.Module, micro_batch: int | None) -> None:
    """Refuse micro-batches of one example where a layer normalises over the batch."""
    if micro_batch != 1:
        return
    names = [n for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.training]
    if names:
        msg = (
            f"micro_batch=1 leaves BatchNorm (layer {names[0]!r}) a single example to take the "
            "mean and the variance of; give micro_batch of at least 2, or a model without BatchNorm"
        )
        raise InvalidArgumentError(msg)


@dataclass
class _Closure:
    # Computes the loss of a batch and its gradient, and keeps (total, weight) of each pass.
    model: nn.Module
    loss: Loss
    optimizer: Optimizer
    batch: Any
    share: float = 1.0
    passes: list[tuple[float, float]] = field(default_factory=list)

    def __call__(self) -> float:
        self.optimizer.zero_grad()
        terms, _ = self.loss(self.model, self.batch)
        weight = float(terms.weight)
        # A summed loss grows with the batch: a micro-batch estimates that of the whole.
        mean = terms.total / (self.share if self.loss.sums else weight or 1.0)
        mean.backward()  # type: ignore[no-untyped-call]
        self.passes.append((terms.total.item(), weight))
        return mean.item()


def _weights(model: nn.Module, loss: Loss, pieces: Sequence[Any]) -> list[float] | None:
    # The divisor of a loss is known from a forward pass only, which must leave running statistics
    # and random numbers as they are.
    if len(pieces) == 1:
        return None
    if loss.sums:
        return [float(loss.batching.size(piece)) for piece in pieces]
    device = next(model.parameters()).device
    forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with frozen_statistics(model), forked:
        weights = [float(loss(model, piece)[0].weight) for piece in pieces]
    return weights if any(weights) else None  # all targets ignored: every gradient is zero


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's global generators inside, and leave them as they were."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        # Not torch.manual_seed: it would seed the devices that are not forked, too.
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _check_model(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        msg = f"the task's model() must return a torch.nn.Module, got {describe(model)}"
        raise ProblemError(msg)
    if not any(p.requires_grad for p in model.parameters()):
        msg = "the task's model has no parameter that requires a gradient: nothing to train"
        raise ProblemError(msg)
    return model
