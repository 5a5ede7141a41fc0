"""Training of a curve between two weight vectors whose loss is low all along it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import NonFiniteError
from landscape.evaluate import Evaluator, normalisers
from landscape.measurement import Run, Work
from landscape.progress import progress_bar
from landscape.randomness import seeded, whole_seed
from landscape.results import FloatArray, TrainedCurve
from landscape.study import MAX_ARRAY_BYTES
from landscape.surface._curves import Curve

MOMENTUM = 0.9


def train_curve(
    work: Work,
    straight: Curve,
    *,
    end: str,
    settings: Mapping[str, Any],
    run: Run,
) -> tuple[Curve, FloatArray]:
    """Minimise E L(w(t)), t uniform on (0, 1), over the bends of a curve; its ends stay.

    SGD with momentum takes one step per batch, each on the mean loss of the batch at a t of its
    own, plus ½ weight_decay ‖w(t)‖². The learning rate falls from lr to 0 in half a period of a
    cosine, one value per epoch. Dropout is off in eval mode; BatchNorm normalises with the
    statistics of the batch. The batches are those of the problem, in an order drawn anew for every
    epoch where they are kept in memory, else as they come. Each epoch has a generator of its own,
    so that training that is taken up again gives the same bits.

    Cost: one gradient pass per epoch.

    References:
        Garipov, Izmailov, Podoprikhin, Vetrov, Wilson (2018), arXiv:1802.10026, section 3.
    """
    evaluator, epochs, lr = work.evaluator, settings["epochs"], settings["lr"]
    study = run.study
    saved = None if study is None else study.find(TrainedCurve.kind, work.provenance, settings)
    bends, losses = straight.bends.clone(), list[float]()
    if isinstance(saved, TrainedCurve):
        bends, losses = torch.from_numpy(saved.bends).to(bends, copy=True), saved.losses.tolist()
    curve = dataclasses.replace(straight, bends=bends.requires_grad_(True))
    optimizer = torch.optim.SGD([bends], lr=lr, momentum=settings["momentum"])
    if isinstance(saved, TrainedCurve) and saved.velocity.size:
        velocity = torch.from_numpy(saved.velocity).to(straight.bends)
        optimizer.state[bends]["momentum_buffer"] = velocity
    in_memory = _in_memory(evaluator.problem.batches)
    left = range(len(losses) + 1, epochs + 1)
    with torch.enable_grad(), _batch_statistics(evaluator):
        for epoch in progress_bar(
            left, what=f"{straight.kind} curve", total=len(left), show=run.progress
        ):
            loss = _one_epoch(evaluator, curve, optimizer, in_memory, epoch, settings)
            if not (math.isfinite(loss) and bool(torch.isfinite(bends).all())):
                msg = (
                    f"the mean loss along the curve in epoch {epoch} is {loss}, or a bend is no "
                    f"longer finite; try a smaller learning rate than {lr:g}"
                )
                raise NonFiniteError(msg)
            losses.append(loss)
            if study is not None and bends.nbytes <= MAX_ARRAY_BYTES:
                velocity = optimizer.state[bends].get("momentum_buffer", bends.new_empty(0))
                study.save(
                    TrainedCurve(
                        end=end,
                        curve=straight.kind,
                        bends=bends.detach().cpu().numpy().copy(),
                        velocity=velocity.detach().cpu().numpy().copy(),
                        losses=np.array(losses, dtype=np.float64),
                        epochs=epochs,
                        settings=settings,
                        cost=evaluator.cost,
                        provenance=work.provenance,
                    )
                )
    return dataclasses.replace(straight, bends=bends.detach()), np.array(losses)


def objective(
    evaluator: Evaluator,
    curve: Curve,
    batch: Any,
    *,
    index: int,
    t: float,
    weight_decay: float = 0.0,
) -> tuple[float, Tensor]:
    """Evaluate the objective of one training step, and its gradient by the bends."""
    with torch.enable_grad():
        point = curve.at(t)
    terms, slope = evaluator.batch_gradient(point.detach(), batch, index)
    # A batch in which every target is ignored has weight 0, and pulls nowhere.
    share = 1.0 if evaluator.problem.loss.sums else 1.0 / (float(terms.weight) or 1.0)
    slope = share * slope
    if weight_decay:
        slope = slope + weight_decay * point.detach()
    (gradient,) = torch.autograd.grad(point, curve.bends, slope)
    return share * float(terms.total.detach()), gradient


def _one_epoch(
    evaluator: Evaluator,
    curve: Curve,
    optimizer: torch.optim.SGD,
    in_memory: list[Any] | None,
    epoch: int,
    settings: Mapping[str, Any],
) -> float:
    """Take one step on each batch; return the mean loss over them, each where it was met."""
    batches = evaluator.problem.batches
    key = np.random.SeedSequence((whole_seed(settings["seed"]) % 2**64, epoch)).generate_state(1)
    generator = seeded(int(key[0]))
    places = torch.rand(batches.n_batches, dtype=torch.float64, generator=generator).tolist()
    order = torch.randperm(batches.n_batches, generator=generator).tolist()
    steps: Iterable[tuple[int, Any]] = enumerate(batches)
    if in_memory is not None:
        steps = [(index, in_memory[index]) for index in order]
    (group,) = optimizer.param_groups
    group["lr"] = settings["lr"] * cosine(epoch - 1, settings["epochs"])
    losses = []
    for t, (index, batch) in zip(places, steps, strict=True):
        decay = settings["weight_decay"]
        mean, curve.bends.grad = objective(
            evaluator, curve, batch, index=index, t=t, weight_decay=decay
        )
        optimizer.step()
        losses.append(mean)
    evaluator.passes["gradients"] += 1
    return float(np.mean(losses))


def cosine(epoch: int, epochs: int) -> float:
    """Return the learning rate of an epoch relative to the first: half a period of a cosine.

    >>> cosine(0, 10), round(cosine(5, 10), 12)
    (1.0, 0.5)
    """
    return 0.5 * (1.0 + math.cos(math.pi * epoch / epochs))


def _in_memory(batches: Iterable[Any]) -> list[Any] | None:
    # Batches that are kept are the same objects on every pass; others are read again each time.
    return list(batches) if next(iter(batches)) is next(iter(batches)) else None


@contextmanager
def _batch_statistics(evaluator: Evaluator) -> Iterator[None]:
    evaluator.write()  # in turn, before modes are changed
    layers = normalisers(evaluator.problem.model).values()
    modes = [layer.training for layer in layers]
    try:
        for layer in layers:
            layer.train()
        yield
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.train(mode)
