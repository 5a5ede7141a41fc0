"""The training data: shuffled anew in every epoch, cut into batches, with label noise."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from landscape.checks import is_real, whole
from landscape.errors import DataError, InvalidArgumentError
from landscape.problem._batches import as_batches
from landscape.problem._batching import Batching
from landscape.problem.data import describe
from landscape.problem.task import Task
from landscape.randomness import seeded


class Batches:
    """The training batches; each iteration is one epoch, in an order of its own."""

    def __init__(self, source: Any, batch_size: int, *, seed: int) -> None:
        self._unshuffled = as_batches(source, batch_size)  # refuses what is no data
        self._source = source
        self._batch_size = batch_size
        self._generator = seeded(seed)

    def __iter__(self) -> Iterator[Any]:
        source = self._source
        if is_arrays(source):
            parts = [torch.as_tensor(part) for part in source]
            return (tuple(part[i] for part in parts) for i in self._order(len(parts[0])))
        if isinstance(source, Dataset) and not isinstance(source, IterableDataset):
            order = self._order(len(source))  # type: ignore[arg-type]
            return iter(DataLoader(source, batch_sampler=[i.tolist() for i in order]))
        return iter(self._unshuffled)

    @property
    def generators(self) -> list[torch.Generator]:
        """The generators that the order is drawn from, besides torch's global one."""
        parts = (self._source, getattr(self._source, "sampler", None))
        of_source = [getattr(part, "generator", None) for part in parts]
        unique = {id(g): g for g in of_source if isinstance(g, torch.Generator)}
        return [self._generator, *unique.values()]

    def _order(self, n: int) -> list[Tensor]:
        order = torch.randperm(n, generator=self._generator)
        return list(torch.split(order, _lengths(n, self._batch_size))) if n else []


def is_arrays(source: Any) -> bool:
    """Return whether the data are a tuple of tensors or arrays."""
    return isinstance(source, tuple) and all(isinstance(a, (Tensor, np.ndarray)) for a in source)


def cut_batch(batch: Any, size: int, batching: Batching | None = None) -> list[Any]:
    """Cut a batch into micro-batches; a last one of a single example joins the one before it.

    >>> [part["x"].tolist() for part in cut_batch({"x": torch.arange(5)}, 2)]
    [[0, 1], [2, 3, 4]]
    """
    batching = batching or Batching()
    n = batching.known_size(batch)
    if n != 1 and not batching.can_split(batch):
        msg = (
            "micro_batch needs batches whose parts all have one row for each example, got "
            f"{describe(batch)}; leave what belongs to the batch as a whole out of it, say "
            "batch_axis, or leave micro_batch out"
        )
        raise DataError(msg)
    ends = np.cumsum([0, *_lengths(batching.size(batch), size)]).tolist()
    return [batching.part(batch, first, last) for first, last in itertools.pairwise(ends)]


def _lengths(n: int, size: int) -> list[int]:
    # BatchNorm has no variance to divide by in a single example.
    lengths = [min(size, n - start) for start in range(0, n, size)]
    if len(lengths) > 1 and lengths[-1] == 1 and size > 1:
        lengths[-2:] = [size + 1]
    return lengths


# Label noise


def noisy_labels(labels: Tensor, share: float, *, seed: int) -> Tensor:
    """Return the labels with a share of them replaced by a wrong class.

    round(share · n) labels are drawn without replacement, and each becomes one of the other
    classes that occur, all equally likely. With one seed, the labels replaced at a smaller share
    are replaced at a larger one too, by the same classes.

    Args:
        labels: whole numbers, shape (n,).
        share: share of the labels, 0 to 1.
        seed: seed of the draw, at least 0.

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
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        msg = (
            "label noise needs one whole number for each example, got labels of shape "
            f"{tuple(labels.shape)} and type {labels.dtype}; leave the noise out"
        )
        raise DataError(msg)
    # The classes that occur, in order, and the index of each label's class.
    classes, index = torch.unique(labels, sorted=True, return_inverse=True)
    generator = seeded(seed)
    order = torch.randperm(len(labels), generator=generator)
    steps = torch.randint(1, max(2, len(classes)), (len(labels),), generator=generator)
    chosen = order[: round(share * len(labels))]
    if len(chosen) and len(classes) < 2:
        msg = "label noise needs at least two classes to choose from, got one; leave the noise out"
        raise DataError(msg)
    noisy = labels.clone()
    noisy[chosen] = classes[(index[chosen] + steps[chosen]) % len(classes)]
    return noisy


def with_label_noise(task: Task, share: float, *, seed: int = 0, split: str = "train") -> Task:
    """Return a task with the noisy labels of a training, to measure on the data it was trained on.

    Args:
        task: the result of `landscape.problem.load_task`.
        share: share of the labels, 0 to 1.
        seed: seed of the training.
        split: split that was trained on; the others stay clean.

    Returns:
        The task.

    Raises:
        InvalidArgumentError: if the share or the seed is out of range.
    """
    noise_seed = label_seed(seed)
    share = label_share(share)

    def data(part: str) -> Any:
        source = task.data(part)
        return with_noisy_labels(source, share, seed=noise_seed) if part == split else source

    return dataclasses.replace(task, data=data)


def with_noisy_labels(source: Any, share: float, *, seed: int) -> Any:
    """Replace a share of the labels of a training set."""
    if share == 0:
        return source
    map_style = isinstance(source, Dataset) and not isinstance(source, IterableDataset)
    if map_style and hasattr(source, "__len__"):
        return Relabelled(source, noisy_labels(labels_of(source), share, seed=seed))
    if not is_arrays(source) or len(source) != 2:
        msg = (
            "label noise needs the training data as a pair (inputs, labels) of tensors or arrays, "
            f"or as a map-style Dataset of such pairs, got {describe(source)}; let data(split) "
            "return one of these (of a DataLoader its .dataset), or put the noise there"
        )
        raise DataError(msg)
    inputs, labels = (torch.as_tensor(part) for part in source)
    return inputs, noisy_labels(labels, share, seed=seed)


class Relabelled(Dataset[Any]):
    """A data set of pairs with other labels."""

    def __init__(self, source: Any, labels: Tensor) -> None:
        self.source = source
        self.labels = labels
        # The generator of its examples, if any: resuming a training restores its state.
        self.generator = getattr(source, "generator", None)

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        """Return an input and its new label."""
        return _pair(self.source, index)[0], self.labels[index]


def labels_of(source: Any) -> Tensor:
    """Return the labels of a map-style data set.

    They are ``.targets``, ``.labels`` or the second of ``.tensors`` if the examples agree, which a
    ``target_transform`` may change; otherwise every example is read.
    """
    stored = _stored_labels(source)
    # An augmentation may draw random numbers, which must not change those of the training.
    with torch.random.fork_rng(devices=[]):
        if stored is not None and _agree(stored, source):
            return stored
        labels = [_label(source, i) for i in range(len(source))]
    return torch.stack(labels) if labels else torch.zeros(0, dtype=torch.int64)


def label_seed(seed: int) -> int:
    """Return the seed of the label noise of a training with this seed."""
    return int(np.random.SeedSequence(whole("seed", seed, least=0)).generate_state(4)[3])


def _stored_labels(source: Any) -> Tensor | None:
    tensors = getattr(source, "tensors", ())
    second = tensors[1] if isinstance(tensors, tuple) and len(tensors) == 2 else None
    for value in (getattr(source, "targets", None), getattr(source, "labels", None), second):
        labels = _as_tensor(value)  # None of class names, or of boxes of several lengths
        if labels is not None and labels.shape == (len(source),) and not labels.is_floating_point():
            return labels
    return None


def _agree(labels: Tensor, source: Any) -> bool:
    # Compared with the first example of each class.
    _, first = np.unique(labels.cpu().numpy(), return_index=True)
    examples = ((_label(source, int(i)), labels[i]) for i in first)
    return all(a.dtype == b.dtype and bool(a == b) for a, b in examples)


def _as_tensor(value: Any) -> Tensor | None:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _label(source: Any, index: int) -> Tensor:
    value = _pair(source, index)[1]
    label = _as_tensor(value)
    if label is None or label.ndim or label.is_floating_point() or label.is_complex():
        msg = (
            f"label noise needs one whole number for each example, got {describe(value)} as the "
            f"label of example {index}; leave the noise out, or number the classes"
        )
        raise DataError(msg)
    return label


def _pair(source: Any, index: int) -> Any:
    example = source[index]
    if not isinstance(example, (tuple, list)) or len(example) != 2:
        msg = (
            f"label noise needs a data set whose examples are pairs (input, label), got "
            f"{describe(example)}; leave the noise out, or put it into the data set"
        )
        raise DataError(msg)
    return example


def label_share(share: Any) -> float:
    """Return a share of labels as a float in [0, 1]."""
    if not is_real(share) or not 0 <= float(share) <= 1:
        msg = (
            f"label_noise is a share of the labels, a number from 0 to 1, got {share!r}; "
            "0.2 replaces every fifth label, 0 none"
        )
        raise InvalidArgumentError(msg)
    return float(share)
