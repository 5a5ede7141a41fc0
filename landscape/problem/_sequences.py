"""Sequences of token ids: read from a file, and batched as models of transformers take them."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from landscape.errors import DataError, did_you_mean, first_line, missing_dependency, one_of
from landscape.problem._calling import main_output

TASKS = ("causal-lm", "masked-lm", "sequence-classification", "token-classification")
IGNORED = -100  # label of what is not counted, in transformers and in torch
LONGEST, N_BLOCKS = 1024, 256
_OFFSET = (
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "roberta-prelayernorm",
    "longformer",
)
"""Tokens of a sequence, and sequences of a file of token ids, where nothing else is said."""


def library(name: str, *, extra: str, purpose: str) -> Any:
    """Import an optional library, or say how it is installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise missing_dependency(package, extra=extra, purpose=purpose) from error


def in_order(source: Any) -> Any:
    """Return a DataLoader that shuffles as one over the same examples that does not."""
    if not isinstance(source, DataLoader) or type(source.sampler) is not RandomSampler:
        return source
    kept = {name: getattr(source, name) for name in ("batch_size", "collate_fn", "num_workers")}
    return DataLoader(source.dataset, **kept)


# Losses and batches


def token_loss(output: Any, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross entropy of each sequence, summed over its counted tokens; their number."""
    logits = main_output(output, "token_loss")
    logits = logits.float() if logits.dtype.itemsize < 4 else logits  # as transformers does
    losses = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none")
    return losses.view(target.shape).sum(1, dtype=torch.float64), (target != IGNORED).sum(1)


@dataclass(frozen=True)
class Reading:
    """How batches by name become pairs (inputs, target) for a task of transformers."""

    task: str
    config: Any
    names: frozenset[str]  # that forward takes
    n_ids: int

    @property
    def kind(self) -> str:
        """Kind of a classification of sequences, chosen as transformers does."""
        of_one = "regression" if self.config.num_labels == 1 else "single_label_classification"
        return str(self.config.problem_type or of_one)

    def loss(self) -> Callable[..., Any]:
        """Return the loss of a pair."""
        if self.task != "sequence-classification":
            return token_loss
        if self.kind == "regression":
            return nn.MSELoss()
        several = self.kind == "multi_label_classification"
        return nn.BCEWithLogitsLoss() if several else nn.CrossEntropyLoss()

    def parts(self, batch: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor]:
        """Return the inputs and the labels of a batch, as the model itself takes them."""
        inputs = {name: batch[name] for name in sorted(self.names & set(batch))}
        if "input_ids" not in inputs and "inputs_embeds" not in inputs:
            msg = f"a batch has no input_ids, only {', '.join(map(str, batch))}: tokenise the text"
            raise DataError(msg)
        labels = batch.get("labels", batch.get("label"))
        if labels is None and self.task == "causal-lm":
            mask = inputs.get("attention_mask", torch.ones(()))
            labels = inputs["input_ids"].where(mask != 0, IGNORED)
        if labels is None:
            msg = (
                f"a batch has no labels, only {', '.join(map(str, batch))}: {self.task} needs them"
            )
            raise DataError(msg)
        of_tokens = self.task in {"causal-lm", "masked-lm"}
        _check_ids("input_ids", inputs.get("input_ids"), self.n_ids)
        if of_tokens or self.task == "token-classification":
            _check_ids("labels", labels, self.n_ids if of_tokens else self.config.num_labels)
        elif self.kind == "single_label_classification":
            labels = labels.view(-1).long()
        else:
            labels = labels.view(-1, self.config.num_labels).double()
        return inputs, labels

    def pair(self, batch: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor]:
        """Return the inputs and the target, which for a causal model is the next token."""
        inputs, labels = self.parts(batch)
        if self.task == "causal-lm":
            labels = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        return inputs, labels


def _check_ids(name: str, ids: Tensor | None, n: int) -> None:
    if ids is None or not ids.numel():
        return
    low, high = int(ids.where(ids != IGNORED, 0).min()), int(ids.max())
    if low < 0 or high >= n:
        msg = (
            f"{name} outside of the model's {n:,} (0 to {n - 1:,}): {low if low < 0 else high}; "
            "are the data of another tokenizer, or is a .bin file of another width (save a .npy)?"
        )
        raise DataError(msg)


class Pairs:
    """Batches by name, from a source that can be read again, as pairs."""

    def __init__(self, source: Iterable[Any], reading: Reading) -> None:
        self._source, self._reading = source, reading

    def __iter__(self) -> Iterator[Any]:
        return map(self._reading.pair, self._source)


@dataclass
class Rows(Dataset[Any]):
    """Examples by name, of any lengths, that are padded to the longest of a batch."""

    rows: Any
    reading: Reading

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]

    def padded(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return a batch of some rows; the mask is made where there is none."""
        known = [n for n in rows[0] if n in self.reading.names | {"label", "labels"}]
        columns = {n: [torch.as_tensor(row[n]) for row in rows] for n in known}
        if "input_ids" in columns and "attention_mask" in self.reading.names:
            ones = [torch.ones_like(ids) for ids in columns["input_ids"]]
            columns.setdefault("attention_mask", ones)
        own = getattr(self.reading.config, "pad_token_id", None)
        filling = {"input_ids": max(own or 0, 0), "labels": IGNORED}
        return {n: _stacked(column, filling.get(n, 0)) for n, column in columns.items()}

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        """Return a pair of some rows."""
        return self.reading.pair(self.padded(rows))


def _stacked(column: list[Tensor], filling: int) -> Tensor:
    if column[0].ndim == 0:
        return torch.stack(column)
    return nn.utils.rnn.pad_sequence(column, batch_first=True, padding_value=filling)


# Files


@dataclass(frozen=True)
class Source:
    """A file of data, and how much of it is read."""

    file: Path
    reading: Reading
    tokenizer: Callable[[], Any]
    length: int | None = None
    examples: int | None = None

    def rows(self, split: str) -> list[dict[str, Any]]:
        """Read the rows, spread evenly over the file where not all of them are asked for."""
        if not self.file.exists():
            siblings = [p.name for p in self.file.parent.glob("*")]
            msg = f"no such file of data: {self.file}{did_you_mean(self.file.name, siblings)}"
            raise DataError(msg)
        if self.file.suffix in {".bin", ".npy"}:
            return self._masked(self._blocks())
        table = _table(self.file, split)
        rows = [table[i] for i in _spread(len(table), self.examples)]
        return self._masked(rows if "input_ids" in table[0] else self._tokenised(rows))

    @property
    def _longest(self) -> int:
        config = self.reading.config
        own = getattr(config, "max_position_embeddings", None) or LONGEST
        if config.model_type in _OFFSET:  # whose positions begin behind that of the padding
            own -= (config.pad_token_id or 0) + 1
        return min(self.length or LONGEST, own)

    def _blocks(self) -> list[dict[str, Any]]:
        """Cut a stream of token ids into sequences of one length."""
        if self.reading.task not in TASKS[:2]:
            msg = f"{self.file} holds no labels for {self.reading.task}: give a .csv or .jsonl file"
            raise DataError(msg)
        narrow = self.reading.n_ids <= 2**16
        try:
            if self.file.suffix == ".npy":
                ids = np.load(self.file, mmap_mode="r").reshape(-1)
            else:
                ids = np.memmap(self.file, dtype="<u2" if narrow else "<u4", mode="r")
        except (ValueError, OSError) as error:  # odd, empty, of objects, or none
            msg = f"{self.file} holds no token ids: {first_line(error)}"
            raise DataError(msg) from error
        if ids.dtype.kind not in "iu":
            msg = f"{self.file} holds numbers of type {ids.dtype}, and token ids are whole"
            raise DataError(msg)
        n, length = len(ids), self._longest
        if n < length:
            msg = f"{self.file} holds {n:,} tokens, and a sequence has {length:,}: give --length"
            raise DataError(msg)
        chosen = _spread(n // length, self.examples or N_BLOCKS)
        blocks = [ids[i * length : (i + 1) * length].astype(np.int64) for i in chosen]
        if self.file.suffix == ".bin" and narrow and not any(b[1::2].any() for b in blocks):
            msg = f"every second token of {self.file} is 0: it is of 32 bits, so save it as .npy"
            raise DataError(msg)
        return [{"input_ids": block} for block in blocks]

    def _tokenised(self, rows: list[Any]) -> list[dict[str, Any]]:
        tokenizer, task, config = self.tokenizer(), self.reading.task, self.reading.config
        if getattr(config, "pad_token_id", None) is None:  # by which GPT-2 finds where a text ends
            own = tokenizer.pad_token_id
            config.pad_token_id = tokenizer.eos_token_id if own is None else own
        texts = [_column(self.file, row, "text") for row in rows]
        options = {"truncation": True, "max_length": min(self._longest, tokenizer.model_max_length)}
        made = tokenizer(texts, is_split_into_words=isinstance(texts[0], list), **options)
        encoded = [{name: values[i] for name, values in made.items()} for i in range(len(rows))]
        if task in TASKS[:2]:
            return encoded
        for i, (row, kept) in enumerate(zip(rows, encoded, strict=True)):
            label = _column(self.file, row, "label", "labels")
            if task == "sequence-classification":
                kept["labels"] = self._label(label)
                continue
            if not (isinstance(label, list) and isinstance(texts[i], list)):
                msg = f"{self.file}: token-classification needs lists of words (text) and of labels"
                raise DataError(msg)
            places = made.word_ids(i)  # a word is counted at its first token
            starts = [p is not None and p != last for p, last in zip(places, [None, *places])]  # noqa: B905
            kept["labels"] = [
                self._label(label[p]) if first else IGNORED
                for p, first in zip(places, starts, strict=True)
            ]
        return encoded

    def _label(self, value: Any) -> Any:
        """Return the number of a class, or the numbers of a regression."""
        if isinstance(value, list):
            return [float(one) for one in value]
        if self.reading.kind == "regression" and self.reading.task == "sequence-classification":
            return float(value)
        known = self.reading.config.label2id
        if value not in known and (isinstance(value, int) or str(value).isdecimal()):
            return int(value)
        return known[one_of(str(value), known, what="label")]

    def _masked(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Mask tokens as transformers trains with: 15 % are predicted, drawn once."""
        if self.reading.task != "masked-lm" or "labels" in rows[0]:
            return rows
        transformers = library("transformers", extra="hub", purpose="masking tokens")
        mask = transformers.DataCollatorForLanguageModeling(self.tokenizer())
        return [{name: column[0] for name, column in mask([row]).items()} for row in rows]


def _spread(n: int, most: int | None) -> list[int]:
    m = n if most is None else min(n, most)
    return [i * n // m for i in range(m)]


def _table(file: Path, split: str) -> Any:
    """Read the rows of a file, or of a folder that datasets saved."""
    if file.is_dir():
        purpose = f"{file}, a folder of save_to_disk,"
        saved = library("datasets", extra="hub", purpose=purpose).load_from_disk(str(file))
        table = saved[one_of(split, saved, what="split")] if isinstance(saved, dict) else saved
    elif file.suffix in {".csv", ".jsonl"}:
        try:
            with file.open(encoding="utf-8", newline="") as lines:
                rows = csv.DictReader(lines) if file.suffix == ".csv" else map(json.loads, lines)
                table = list(rows)
        except (ValueError, csv.Error) as error:
            msg = f"{file} cannot be read: {first_line(error)}"
            raise DataError(msg) from error
        if not all(isinstance(row, dict) for row in table):
            msg = f'{file}: each line is one row, such as {{"text": …}}'
            raise DataError(msg)
    else:
        msg = (
            f"{file}: data are a .bin or .npy file of token ids, a .csv or .jsonl file with text, "
            "or a folder of datasets' save_to_disk"
        )
        raise DataError(msg)
    if not len(table):
        msg = f"{file} has no rows"
        raise DataError(msg)
    return table


def _column(file: Path, row: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if name in row:
            return row[name]
    near = did_you_mean(names[0], row)
    msg = f"{file} has no column {names[0]!r}{near}; its columns are {', '.join(map(str, row))}"
    raise DataError(msg)
