"""Running statistics of BatchNorm at weights other than those that they were gathered at.

A checkpoint's running mean and variance belong to its own weights. At other weights they can be
left as they are (``frozen``), gathered anew from the data (``recalibrated``), or, between
checkpoints that each have their own, interpolated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from landscape.errors import DataError, InvalidArgumentError, NonFiniteError, ProblemError
from landscape.evaluate._evaluator import Evaluator
from landscape.problem import Problem

STATISTICS = ("frozen", "recalibrated", "interpolated")


def normalisers(model: nn.Module) -> dict[str, _BatchNorm]:
    """Find the BatchNorm layers with running statistics, by name."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    }


def recalibrated(evaluator: Evaluator, vector: Tensor) -> dict[str, Tensor]:
    """Gather the running statistics at other weights, from the data that are measured.

    Mean and variance of each layer's inputs over all examples (pooled over the batches, in
    float64; the variance with n − 1), while every BatchNorm layer normalises with the statistics
    of its batch; dropout stays off. With one batch they are exact; with several they depend a
    little on where the batches are cut. One forward pass.

    References:
        Garipov, Izmailov, Podoprikhin, Vetrov, Wilson (2018), arXiv:1802.10026, section A.2;
        Chan, Golub, LeVeque (1983), American Statistician 37, for the pooling.
    """
    problem = evaluator.problem
    if problem.mode == "train":
        msg = "in train mode BatchNorm uses the statistics of each batch: there is none to gather"
        raise InvalidArgumentError(msg)
    layers = normalisers(problem.model)
    if not layers:
        return {}
    moments = {name: _Moments() for name in layers}
    evaluator.write(vector)
    with torch.no_grad(), _gathering(layers, moments):
        for i, batch in enumerate(problem.batches):
            try:
                evaluator.on_batch(vector, batch, i, problem.loss)
            except ProblemError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                msg = (
                    f"a batch of {problem.batching.size(batch)} example has no variance to gather "
                    "for BatchNorm; choose a batch size that leaves no single example over"
                )
                raise DataError(msg) from error
    evaluator.passes["forwards"] += 1
    return {
        f"{name}.{key}".lstrip("."): value.to(problem.device, problem.dtype)
        for name, own in moments.items()
        if own.n  # or its buffers are used otherwise than by calling the layer
        for key, value in own.result().items()
    }


def interpolated(
    own: Mapping[str, Tensor], others: Mapping[str, tuple[float, Mapping[str, Tensor]]]
) -> dict[str, Tensor]:
    """Combine the floating-point buffers of checkpoints at coordinates t: b + Σ t (b′ − b)."""
    return {
        name: buffer + sum(t * (theirs[name].to(buffer) - buffer) for t, theirs in others.values())
        for name, buffer in own.items()
        if buffer.is_floating_point()
    }


def check_variances(buffers: Mapping[str, Tensor], where: str) -> None:
    """Refuse a running variance that is negative or not finite."""
    for name, buffer in buffers.items():
        if name.endswith("running_var") and not bool(
            (torch.isfinite(buffer) & (buffer >= 0)).all()
        ):
            msg = (
                f"{name} is {float(buffer.min()):.3g} at {where}: interpolated beyond the "
                "checkpoints, a variance can fall below zero; stay between them, or use "
                "statistics='recalibrated'"
            )
            raise NonFiniteError(msg)


def float_buffers(problem: Problem) -> dict[str, Tensor]:
    """Return the floating-point buffers at a checkpoint, on its problem's device, in its type."""
    state = problem.state()
    return {
        name: state[name].to(problem.device, problem.dtype)
        for name, buffer in problem.model.named_buffers()
        if buffer.is_floating_point()
    }


class _Moments:
    """Mean and sum of squared deviations of each channel, pooled batch by batch."""

    def __init__(self) -> None:
        self.n = 0
        self._mean = self._squares = torch.zeros(())

    def add(self, inputs: Tensor) -> None:
        axes = [axis for axis in range(inputs.ndim) if axis != 1]
        n = inputs.numel() // inputs.shape[1]
        if n == 0:
            return
        variance, mean = torch.var_mean(inputs.detach(), dim=axes, correction=0)
        known, total = self._mean.to(mean.device, torch.float64), self.n + n
        shift = mean.double() - known
        self._squares = (
            self._squares.to(known) + n * variance.double() + shift**2 * (self.n * n / total)
        )
        self._mean = known + shift * (n / total)
        self.n = total

    def result(self) -> dict[str, Tensor]:
        variance = self._squares / max(self.n - 1, 1)
        return {"running_mean": self._mean, "running_var": variance}


@contextmanager
def _gathering(layers: Mapping[str, _BatchNorm], moments: Mapping[str, _Moments]) -> Iterator[None]:
    def hook(name: str) -> Any:
        return lambda layer, args, kwargs: moments[name].add(args[0] if args else kwargs["input"])

    handles = [
        layer.register_forward_pre_hook(hook(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    modes = [(layer, layer.training) for layer in layers.values()]
    try:
        for layer in layers.values():
            layer.train()
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer, mode in modes:
            layer.train(mode)
