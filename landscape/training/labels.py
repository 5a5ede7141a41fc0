"""Label noise: a fixed share of the training labels replaced by wrong ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import DataError
from landscape.problem.data import describe
from landscape.problem.task import Task
from landscape.training.settings import label_share, whole


def noisy_labels(labels: Tensor, share: float, *, seed: int) -> Tensor:
    """Return the labels with a share of them replaced by a wrong class.

    round(share · n) labels are drawn without replacement, and each becomes one of the other
    classes that occur, all equally likely. With one seed, the labels replaced at a smaller share
    are replaced at a larger one too, by the same classes. No global generator is touched.

    Args:
        labels: whole numbers, shape (n,).
        share: 0 to 1.
        seed: at least 0.

    Returns:
        A new tensor of the same shape and type.

    Raises:
        InvalidArgumentError: if the share or the seed is out of range.
        DataError: if the labels are no classes, or there is only one class.

    Reference: symmetric noise, as in Foret et al. 2021, arXiv 2010.01412, section 3.3.

    >>> clean = torch.arange(10) % 2
    >>> noisy = noisy_labels(clean, 0.2, seed=0)
    >>> int((noisy != clean).sum())
    2
    """
    share = label_share(share)
    seed = whole("seed", seed, least=0)
    classes, index = _classes(labels)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    steps = torch.randint(1, max(2, len(classes)), (len(labels),), generator=generator)
    chosen = order[: round(share * len(labels))]
    if len(chosen) and len(classes) < 2:
        msg = "label noise needs at least two classes to choose from, got one; leave the noise out"
        raise DataError(msg)
    noisy = labels.clone()
    noisy[chosen] = classes[(index[chosen] + steps[chosen]) % len(classes)]
    return noisy


def with_label_noise(task: Task, share: float, *, seed: int = 0) -> Task:
    """Return a task whose training labels are noisy, to measure on what was trained on.

    A training with label noise leaves the task alone, so that measurements see the clean labels
    unless they are made on this one.

    Args:
        task: what `landscape.problem.load_task` read.
        share: 0 to 1.
        seed: that of the training.

    Returns:
        A task with the same labels as the training; every split but ``train`` stays clean.

    Raises:
        InvalidArgumentError: if the share or the seed is out of range.

    >>> from landscape.problem import load_task
    >>> noisy = with_label_noise(load_task("digits"), 0.2)
    >>> bool((noisy.data("test")[1] == load_task("digits").data("test")[1]).all())
    True
    """
    noise_seed = label_seed(seed)
    share = label_share(share)

    def data(split: str) -> Any:
        source = task.data(split)
        return with_noisy_labels(source, share, seed=noise_seed) if split == "train" else source

    return dataclasses.replace(task, data=data)


def with_noisy_labels(source: Any, share: float, *, seed: int) -> Any:
    """Replace a share of the labels of a training set.

    Args:
        source: a pair (inputs, labels) of tensors or arrays; anything if the share is 0.
        share: 0 to 1.
        seed: of the noise.

    Returns:
        The pair with new labels.

    Raises:
        DataError: if it is no such pair.
    """
    if share == 0:
        return source
    arrays = isinstance(source, tuple) and all(isinstance(a, (Tensor, np.ndarray)) for a in source)
    if not arrays or len(source) != 2:
        msg = (
            "label noise needs the training data as a pair (inputs, labels) of tensors or arrays, "
            f"got {describe(source)}; let data(split) return such a pair, or put the noise there"
        )
        raise DataError(msg)
    inputs, labels = (torch.as_tensor(part) for part in source)
    return inputs, noisy_labels(labels, share, seed=seed)


def label_seed(seed: int) -> int:
    """Return the seed of the label noise that belongs to the seed of a training.

    Args:
        seed: at least 0.

    Returns:
        A seed that no other part of the training has.

    Raises:
        InvalidArgumentError: if it is out of range.
    """
    return int(np.random.SeedSequence(whole("seed", seed, least=0)).generate_state(4)[3])


def _classes(labels: Tensor) -> tuple[Tensor, Tensor]:
    # The classes that occur, in order, and for each label the place of its class.
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        msg = (
            "label noise needs one whole number for each example, got labels of shape "
            f"{tuple(labels.shape)} and type {labels.dtype}; leave the noise out"
        )
        raise DataError(msg)
    classes, index = torch.unique(labels, sorted=True, return_inverse=True)
    return classes, index
