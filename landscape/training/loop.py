"""The training itself: the same for every optimizer but for the optimizer."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from landscape.errors import DataError, InvalidArgumentError, NonFiniteError, ProblemError
from landscape.params import known_device
from landscape.problem.data import describe, move
from landscape.problem.losses import Loss, make_loss
from landscape.progress import progress_bar
from landscape.training.batches import Batches
from landscape.training.checkpoints import save_checkpoint
from landscape.training.labels import label_seed, with_noisy_labels
from landscape.training.records import Epoch, Task, Trained
from landscape.training.resuming import Run, start_of, take_up, write_state
from landscape.training.settings import checked, lr_factor, make_optimizer, whole


def train(
    task: Task,
    *,
    optimizer: str = "sgd",
    base: str = "sgd",
    epochs: int = 40,
    lr: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    rho: float = 0.2,
    p: float = 2.0,
    batch_size: int = 64,
    schedule: str = "cosine",
    seed: int = 0,
    label_noise: float = 0.0,
    split: str = "train",
    device: str | torch.device = "cpu",
    state: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    save_every: int = 0,
    progress: bool | None = None,
) -> Trained:
    """Train a model, with an optimizer of torch or with SAM around it.

    One seed gives the same initial weights, the same order of the data and the same dropout masks
    to all, so that the optimizer is all that differs. Each part has a generator of its own, and
    torch's global RNG is left as it was.

    Tensors and map-style data sets are shuffled anew in every epoch and cut into batches here.
    Every example is used in every epoch: the last batch may be short, but one that would hold a
    single example joins the batch before it, because BatchNorm has no variance to divide by.
    A DataLoader, or any other re-iterable of batches, is used as it comes.

    With a file for the state, a training that was killed at any instant goes on from its last
    finished epoch and ends with the same bits, as far as its randomness is torch's. The file
    stays, and a finished training is read back from it: delete it when the result is safe.

    Args:
        task: has ``model()``, ``data(split)`` and ``loss`` or ``batch_loss``, as a problem file.
        optimizer: ``sgd``, ``adam``, ``adamw`` or ``sam``.
        base: the optimizer that descends inside SAM: ``sgd``, ``adam`` or ``adamw``.
        epochs: passes over the training data; 0 gives the initial weights.
        lr: learning rate at the start; None: 0.05, or 0.002 for Adam and AdamW.
        momentum: of SGD, in [0, 1).
        weight_decay: of the optimizer that descends (added to the gradient by SGD and Adam, apart
            from it by AdamW); not part of the loss that SAM perturbs.
        rho: radius of SAM's neighbourhood; the others do not read it.
        p: norm of SAM's neighbourhood.
        batch_size: examples in a batch, where the batches are cut here.
        schedule: ``cosine`` (from lr to 0 in half a period, one value per epoch) or ``constant``.
        seed: at least 0.
        label_noise: share of the training labels that are replaced, see `noisy_labels`; the
            task's own data stay as they are.
        split: which part of the data to train on.
        device: where to train.
        state: file that holds the training between two epochs, to go on from.
        checkpoint: name of the files that ``save_every`` writes, see `checkpoint_of_epoch`.
        save_every: a checkpoint after every so many epochs, and of the start; 0: none.
        progress: whether to draw a bar; None: only where stderr is a terminal.

    Returns:
        The model in eval mode, with a log, the settings and the cost.

    Raises:
        InvalidArgumentError: if a setting is out of range or names something unknown.
        ProblemError: if the task cannot be trained; `landscape.errors.DataError` among them.
        CheckpointError: if the state is that of another training.
        NonFiniteError: if the loss becomes NaN or infinite.

    Cost: one gradient per batch and epoch, two with SAM.

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
    settings = checked(
        {
            **{"optimizer": optimizer, "base": base, "epochs": epochs, "lr": lr, "rho": rho},
            **{"momentum": momentum, "weight_decay": weight_decay, "p": p, "split": split},
            **{"batch_size": batch_size, "schedule": schedule, "seed": seed, "device": device},
            "label_noise": label_noise,
        }
    )
    every = whole("save_every", save_every, least=0)
    if every and checkpoint is None:
        msg = "save_every needs a name for the files: give checkpoint, too"
        raise InvalidArgumentError(msg)
    file = None if state is None else Path(state)
    loss = make_loss(getattr(task, "loss", None), getattr(task, "batch_loss", None))
    where = known_device(device)
    initial, order, noise = (int(s) for s in np.random.SeedSequence(seed).generate_state(3))
    with _seeded(where, initial):
        model = _made(task.model()).to(where)
    with _seeded(where, noise):
        run = _begun(model, task.data(split), settings, order=order)
        if file is not None:
            take_up(file, run)
        before = run.seconds
        for epoch in _epochs(run, loss, progress=progress):
            run.seconds = before + time.perf_counter() - started
            if checkpoint is not None and every and epoch % every == 0:
                _save_epoch(run, checkpoint, epoch)
            # Last, so that what is resumed has written everything before.
            if file is not None:
                write_state(file, run)
        run.seconds = before + time.perf_counter() - started
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


def _begun(model: nn.Module, data: Any, settings: Mapping[str, Any], *, order: int) -> Run:
    noise = settings.get("label_noise", 0.0)
    source = with_noisy_labels(data, noise, seed=label_seed(settings["seed"]))
    optimizer = make_optimizer(model, settings)
    factor = lr_factor(settings["schedule"], settings["epochs"])
    return Run(
        model=model,
        optimizer=optimizer,
        scheduler=LambdaLR(optimizer, factor),
        batches=Batches(source, settings["batch_size"], seed=order),
        settings=settings,
        start=start_of(model, source),
    )


def _save_epoch(run: Run, path: str | os.PathLike[str], epoch: int) -> None:
    settings = {**run.settings, "epoch": epoch}
    name = checkpoint_of_epoch(path, epoch, epochs=run.settings["epochs"])
    save_checkpoint(dataclasses.replace(run.result(), settings=settings), name)


def _epochs(run: Run, loss: Loss, *, progress: bool | None) -> Iterator[int]:
    """Train, and yield the number of epochs done: at the start, and after each."""
    settings = run.settings
    name, epochs = settings["optimizer"], settings["epochs"]
    left = range(len(run.log) + 1, epochs + 1)
    run.model.train()
    if not run.log:
        yield 0
    for epoch in progress_bar(left, what=name, total=len(left), show=progress):
        started = time.perf_counter()
        lr = float(run.optimizer.param_groups[0]["lr"])
        train_loss, spent = _one_epoch(run.model, loss, run.optimizer, run.batches)
        if not math.isfinite(train_loss):
            msg = (
                f"the training loss of epoch {epoch} is {train_loss}; "
                f"try a smaller learning rate than {settings['lr']:g}"
            )
            raise NonFiniteError(msg)
        run.gradients += spent
        seconds = time.perf_counter() - started
        run.log.append(Epoch(epoch=epoch, train_loss=train_loss, lr=lr, seconds=seconds))
        run.scheduler.step()
        yield epoch


def _one_epoch(
    model: nn.Module, loss: Loss, optimizer: Optimizer, batches: Iterable[Any]
) -> tuple[float, int]:
    # Returns the mean loss at the weights before each step, and the number of gradients.
    total = weight = 0.0
    gradients = 0
    for batch in batches:
        passes: list[tuple[float, float]] = []
        optimizer.step(_closure(model, loss, optimizer, batch=batch, passes=passes))
        at_w, *_ = passes
        total += at_w[0]
        weight += at_w[1]
        gradients += len(passes)
    if gradients == 0:
        msg = "the training data hold no example; is the split empty, or used up after one pass?"
        raise DataError(msg)
    return total / weight if weight else math.nan, gradients


def _closure(
    model: nn.Module,
    loss: Loss,
    optimizer: Optimizer,
    *,
    batch: Any,
    passes: list[tuple[float, float]],
) -> Callable[[], float]:
    first = next(model.parameters())
    there = move(batch, first.device, first.dtype)

    def closure() -> float:
        optimizer.zero_grad()
        terms, _ = loss(model, there)
        weight = float(terms.weight)
        mean = terms.total if loss.sums else terms.total / (weight or 1.0)
        mean.backward()  # type: ignore[no-untyped-call]
        passes.append((terms.total.item(), weight))
        return mean.item()

    return closure


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


def _made(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        msg = f"the task's model() must return a torch.nn.Module, got {describe(model)}"
        raise ProblemError(msg)
    if not any(p.requires_grad for p in model.parameters()):
        msg = "the task's model has no parameter that requires a gradient: nothing to train"
        raise ProblemError(msg)
    return model
