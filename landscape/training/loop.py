"""The training itself: the same for every optimizer but for the optimizer."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from landscape.checks import whole
from landscape.errors import DataError, InvalidArgumentError, NonFiniteError, ProblemError
from landscape.problem.data import describe
from landscape.problem.losses import Loss, make_loss
from landscape.problem.problem import known_device
from landscape.problem.task import load_task, users_code
from landscape.progress import progress_bar
from landscape.training.batches import Batches
from landscape.training.checkpoints import save_checkpoint
from landscape.training.labels import label_seed, with_noisy_labels
from landscape.training.records import Epoch, Task, Trained
from landscape.training.resuming import Run, start_of, take_up, write_state
from landscape.training.settings import checked, lr_factor, make_optimizer
from landscape.training.steps import check_micro_batch, step


def train(
    task: Task | str | Path,
    *,
    optimizer: str = "sgd",
    base: str = "sgd",
    epochs: int = 40,
    lr: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    rho: float | None = None,
    p: float = 2.0,
    adaptive: str = "elementwise",
    eta: float = 0.01,
    gsam_alpha: float = 0.4,
    ascent_steps: int = 1,
    micro_batch: int | None = None,
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
    """Train a model, with an optimizer of torch, or with SAM or a variant of it around one.

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
        task: has ``model()``, ``data(split)`` and ``loss`` or ``batch_loss``, as a problem file; or
            the name of a built-in problem or of a file.
        optimizer: ``sgd``, ``adam``, ``adamw``; or of SAM's family ``sam``, ``asam`` (T = |w| + η,
            see `landscape.optim.Ascent`), ``gsam`` (less of the gradient's part across that of
            w + ε) or ``usam`` (ε = ρg, not normalised). What an optimizer does not read is neither
            checked nor recorded with it, but for ``ascent_steps`` and ``micro_batch``, which are
            refused outside of SAM's family.
        base: the optimizer that descends inside SAM: ``sgd``, ``adam`` or ``adamw``.
        epochs: passes over the training data; 0 gives the initial weights.
        lr: learning rate at the start; None: 0.05, or 0.002 for Adam and AdamW.
        momentum: of SGD, in [0, 1).
        weight_decay: of the optimizer that descends (added to the gradient by SGD and Adam, apart
            from it by AdamW); not part of the loss that SAM perturbs.
        rho: radius of SAM's neighbourhood; None: 0.2, or 0.5 for asam, and for p = 2 only. 0 is
            the base optimizer.
        p: norm of SAM's neighbourhood; 2 only for usam.
        adaptive: T of asam: ``elementwise`` or ``filterwise``.
        eta: η of asam, at least 0.
        gsam_alpha: α of gsam, at least 0; 0 is sam.
        ascent_steps: gradients that SAM's family spends on finding ε.
        micro_batch: m of m-SAM: each batch is cut into micro-batches of m examples, each with a
            perturbation of its own; a last one of a single example joins the one before it. None:
            the whole batch.
        batch_size: examples in a batch, where the batches are cut here.
        schedule: ``cosine`` (from lr to 0 in half a period, one value per epoch) or ``constant``.
        seed: at least 0.
        label_noise: share of the training labels that are replaced, see `noisy_labels`, in a pair
            of tensors or in a map-style data set of pairs; the task's own data stay as they are.
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
        ProblemError: if the task cannot be trained; `landscape.errors.DataError` among them, as
            for batches that ``micro_batch`` cannot cut.
        CheckpointError: if the state is that of another training.
        NonFiniteError: if the loss becomes NaN or infinite.

    Cost: one gradient per batch and epoch, with SAM's family one more for each ascent step. The
    gradients of the micro-batches of a batch count as one together; with them comes one forward
    pass per batch, see `landscape.training.steps.step`.

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
    settings = checked(
        {
            **{"optimizer": optimizer, "base": base, "epochs": epochs, "lr": lr, "rho": rho},
            **{"momentum": momentum, "weight_decay": weight_decay, "p": p, "split": split},
            **{"batch_size": batch_size, "schedule": schedule, "seed": seed, "device": device},
            **{"adaptive": adaptive, "eta": eta, "gsam_alpha": gsam_alpha},
            **{"ascent_steps": ascent_steps, "micro_batch": micro_batch},
            "label_noise": label_noise,
        }
    )
    every = _every(save_every, checkpoint, epochs=settings["epochs"])
    file = None if state is None else Path(state)
    said = {name: getattr(task, name, None) for name in ("loss", "batch_loss", "examples")}
    loss = make_loss(**said, batch_axis=getattr(task, "batch_axis", 0))
    where = known_device(device)
    initial, order, noise = (int(s) for s in np.random.SeedSequence(seed).generate_state(3))
    with _seeded(where, initial), _of_user(task):
        model = _made(task.model()).to(where)
    with _seeded(where, noise):
        with _of_user(task):
            source = task.data(split)
        run = _begun(model, source, loss, settings, order=order, resumable=file is not None)
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


def _every(save_every: int, checkpoint: Any, *, epochs: int) -> int:
    every = whole("save_every", save_every, least=0, advice="0 saves the last weights only")
    if every and checkpoint is None:
        msg = "save_every needs a name for the files: give checkpoint, too"
        raise InvalidArgumentError(msg)
    if every and not epochs:
        msg = (
            f"save_every={every} needs epochs after which to save, got epochs=0; "
            "leave save_every out, or train for at least one epoch"
        )
        raise InvalidArgumentError(msg)
    return every


def _begun(
    model: nn.Module,
    data: Any,
    loss: Loss,
    settings: Mapping[str, Any],
    *,
    order: int,
    resumable: bool,
) -> Run:
    model.train()
    check_micro_batch(model, settings.get("micro_batch"))
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
        start=start_of(model, source, loss) if resumable else {},
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
    if not run.log:
        yield 0
    for epoch in progress_bar(left, what=name, total=len(left), show=progress):
        started = time.perf_counter()
        lr = float(run.optimizer.param_groups[0]["lr"])
        train_loss, spent = _one_epoch(run, loss)
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


def _one_epoch(run: Run, loss: Loss) -> tuple[float, int]:
    # Returns the mean loss at the weights before each step, and the number of gradients.
    total = weight = 0.0
    gradients = 0
    micro_batch = run.settings.get("micro_batch")
    for batch in run.batches:
        done = step(run.model, loss, run.optimizer, batch, micro_batch=micro_batch)
        total += done.total
        weight += done.weight
        gradients += done.gradients
    if gradients == 0:
        msg = "the training data hold no example; is the split empty, or used up after one pass?"
        raise DataError(msg)
    return total / weight if weight else math.nan, gradients


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


def _of_user(task: Any) -> AbstractContextManager[None]:
    """Show the user's own line where a problem file fails; other tasks raise what they raise."""
    file = getattr(task, "file", None)
    return nullcontext() if file is None else users_code(str(file))


def _made(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        msg = f"the task's model() must return a torch.nn.Module, got {describe(model)}"
        raise ProblemError(msg)
    if not any(p.requires_grad for p in model.parameters()):
        msg = "the task's model has no parameter that requires a gradient: nothing to train"
        raise ProblemError(msg)
    return model
