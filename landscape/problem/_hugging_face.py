"""Models of Hugging Face, from the folders that its libraries write."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from landscape.errors import (
    CheckpointError,
    InvalidArgumentError,
    LossError,
    ProblemError,
    did_you_mean,
    first_line,
    one_of,
)
from landscape.problem._batches import is_map_style
from landscape.problem._formats import listing, read_checkpoint
from landscape.problem._live import preserved, unwrapped
from landscape.problem._sequences import TASKS, Pairs, Reading, Rows, Source, in_order, library
from landscape.problem.data import move
from landscape.problem.problem import Problem
from landscape.randomness import forked_rng

_ON_THE_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_OF_PEFT = {"CAUSAL_LM": TASKS[0], "SEQ_CLS": TASKS[2], "TOKEN_CLS": TASKS[3]}
_TOKENIZERS = ("tokenizer*", "vocab*", "*.model")
_CHECKED = 4  # sequences


def _transformers(name: str = "transformers") -> Any:
    return library(name, extra="hub", purpose="a folder of Hugging Face")


# The problem


def transformers_problem(
    model: nn.Module, data: Any, *, task: str | None = None, **options: Any
) -> Problem:
    """Build a problem; see `Problem.from_transformers`."""
    reading = reading_of(model, task)
    source = in_order(data)
    as_rows = is_map_style(source) or (isinstance(source, list) and _is_row(source[:1]))
    batches = Rows(source, reading) if as_rows else Pairs(source, reading)
    problem = Problem(model, reading.loss(), batches, **options)
    if not hasattr(problem.model, "peft_config"):  # whose adapters load over the base that it has
        problem.reader = partial(_state_in, task=reading.task, adapter=False)
    if isinstance(batches, Rows):
        rows = [batches[i] for i in range(min(len(batches), _CHECKED))]
        source = [batches.padded(rows)] if rows else []
    for batch in islice(source, 1):
        _check_own_loss(problem, reading, batch)
    return problem


def reading_of(model: nn.Module, task: str | None) -> Reading:
    """Return how a model takes its batches."""
    inside: Any = unwrapped(model)
    inside = inside.get_base_model() if hasattr(inside, "peft_config") else inside
    if not (hasattr(inside, "get_input_embeddings") and hasattr(inside, "config")):
        msg = f"expected a model of transformers, got a {type(model).__name__}; use ls.Problem"
        raise ProblemError(msg)
    classes = [cls.__name__ for cls in type(inside).__mro__]
    task = _task_of(classes, task, f"the model {classes[0]}")
    names = frozenset(inspect.signature(inside.forward).parameters) - {"labels", "kwargs"}
    return Reading(task, inside.config, names, int(inside.get_input_embeddings().num_embeddings))


def _is_row(first: list[Any]) -> bool:
    ids = first[0].get("input_ids") if first and isinstance(first[0], Mapping) else None
    return ids is not None and torch.as_tensor(ids).ndim == 1


@torch.no_grad()
def _check_own_loss(problem: Problem, reading: Reading, batch: Any) -> None:
    """Compare the loss that is measured with the model's own, of a few sequences."""
    model: Any = problem.model
    own = next(model.parameters())
    few = {name: value[:_CHECKED] for name, value in batch.items()}
    inputs, labels = move(reading.parts(few), own.device, own.dtype)
    pair = move(reading.pair(few), own.device, own.dtype)
    with preserved(model), forked_rng(0), _quietly():
        model.eval()
        terms, _ = problem.loss(model, pair)
        stated = model(**inputs, labels=labels).loss
    if stated is not None:
        computed = float(terms.total) / float(terms.weight) if terms.weight else math.nan
        if math.isnan(stated) or math.isclose(stated, computed, rel_tol=1e-5, abs_tol=1e-5):
            return
        stated = f"{float(stated):.6g}, and not the {computed:.6g} of {reading.task}"
    msg = (
        f"the loss that {type(model).__name__} itself returns for its labels is {stated}: it has "
        "other terms, or none; say in a problem file what the loss is (landscape init --kind "
        "huggingface)"
    )
    raise LossError(msg)


def _task_of(classes: Iterable[str], given: str | None, holder: str) -> str:
    """Return the task of a model by the names of its classes; refuse another one."""
    auto = _transformers("transformers.models.auto.modeling_auto")
    known = {
        task: set(getattr(auto, f"MODEL_FOR_{_upper(task)}_MAPPING_NAMES").values())
        for task in TASKS
    }
    fits = [task for task in TASKS if known[task].intersection(classes)]
    if given is not None:
        one_of(given, TASKS, what="task")
        if given in fits or not fits:
            return given
        msg = f"{holder} has a head for {fits[0]}, not for {given}: leave --task out"
        raise InvalidArgumentError(msg)
    if not fits:
        msg = (
            f"{holder} has no head whose task is known: give --task ({', '.join(TASKS)}) if its "
            "weights have one; for another, write a problem file (landscape init)"
        )
        raise ProblemError(msg)
    return fits[0]


def _upper(task: str) -> str:
    return task.upper().replace("-", "_")


# Folders


def find_folder(where: str, *, download: bool = True) -> Path:
    """Return a folder, or that of ``org/model@revision`` on the hub, which is downloaded."""
    folder = Path(where).expanduser()
    if folder.is_dir():
        return folder
    on_hub = _ON_THE_HUB.fullmatch(where)
    if folder.exists() or on_hub is None or folder.parent.is_dir():
        siblings = [p.name for p in folder.parent.glob("*/")] if folder.parent.is_dir() else []
        msg = f"no such folder of a model: {where}{did_you_mean(folder.name, siblings)}"
        raise ProblemError(msg)
    hub = library("huggingface_hub", extra="hub", purpose=f"{where}, which is no folder here,")
    options = {"revision": on_hub[2], "local_files_only": not download}
    try:
        for weights in ("*.safetensors", "*.bin"):
            patterns = ["*.json", "*.txt", "*.model", weights]
            found = Path(hub.snapshot_download(on_hub[1], allow_patterns=patterns, **options))
            if any(found.glob(weights)):
                return found
    except Exception as error:  # of the network, or that there is no such model
        msg = f"{where} is no folder here, and is not had from the hub: {first_line(error)}"
        raise ProblemError(msg) from error
    msg = f"{where} holds no weights (.safetensors or .bin)"
    raise ProblemError(msg)


def _settings(folder: Path, name: str) -> dict[str, Any] | None:
    """Read one of the JSON files of a folder; None: there is none."""
    try:
        return dict(json.loads((folder / name).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, OSError) as error:
        msg = f"{folder / name} cannot be read: {first_line(error)}"
        raise CheckpointError(msg) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers from printing."""
    logging = _transformers("transformers.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Word what a library raises."""
    try:
        with _quietly():
            yield
    except Exception as error:
        msg = f"{folder} is not read by its library: {type(error).__name__}: {first_line(error)}"
        raise CheckpointError(msg) from error


def _pretrained(
    folder: Path, task: str, *, may_lack: Iterable[str] = (), **options: Any
) -> nn.Module:
    """Read a model with all of its weights, in float32 unless they are in float64."""
    transformers = _transformers()
    settings = _settings(folder, "config.json") or {}
    stored = settings.get("dtype", settings.get("torch_dtype"))
    dtype = torch.float64 if stored == "float64" else torch.float32
    head = task.title().replace("-", "").replace("Lm", "LM")
    auto = getattr(transformers, f"AutoModelFor{head}")
    options |= {"dtype": dtype, "local_files_only": True, "trust_remote_code": False}
    with _reading(folder):
        model, about = auto.from_pretrained(folder, output_loading_info=True, **options)
    if lacking := [n for n in about["missing_keys"] if not any(part in n for part in may_lack)]:
        msg = (
            f"{folder} holds no weights for {listing(sorted(lacking))} of a "
            f"{type(model).__name__}: was it saved with another head? It has "
            f"{', '.join(settings.get('architectures') or ['none that it names'])}"
        )
        raise CheckpointError(msg)
    model.config.use_cache = False
    if hasattr(model, "set_experts_implementation"):  # the fused one has no second derivative
        model.set_experts_implementation("eager")
    return model  # type: ignore[no-any-return]


def _adapted(folder: Path, task: str, settings: dict[str, Any], *, alone: bool) -> nn.Module:
    """Read an adapter of PEFT over its base: merged, or with the adapter alone trainable."""
    own = settings.get("modules_to_save") or ()
    heads = [
        tensor
        for name, tensor in (read_checkpoint(folder) if own else {}).items()
        if tensor.ndim == 2 and any(part in name for part in own)
    ]
    labels = {"num_labels": len(heads[-1])} if heads and task in TASKS[2:] else {}
    base = _pretrained(_base_of(folder, settings), task, may_lack=own, **labels)
    peft = library("peft", extra="hub", purpose=f"{folder}, an adapter of PEFT,")
    with _reading(folder):
        model = peft.PeftModel.from_pretrained(base, folder, is_trainable=True)
        if alone:
            return model  # type: ignore[no-any-return]
        merged = model.merge_and_unload()
    return merged.requires_grad_(True)  # type: ignore[no-any-return]


def _base_of(folder: Path, settings: Mapping[str, Any]) -> Path:
    name = str(settings.get("base_model_name_or_path"))
    try:
        beside = folder / name
        return beside if beside.is_dir() else find_folder(name, download=False)
    except ProblemError as error:
        msg = (
            f"{folder} is an adapter of {name}, which is no folder here: {error}. Write its folder "
            "into adapter_config.json (base_model_name_or_path)"
        )
        raise CheckpointError(msg) from error


def load_model(folder: Path, task: str, *, adapter: bool = False) -> nn.Module:
    """Read the model of a folder; an adapter merged into its base, or as what is trainable."""
    settings = _settings(folder, "adapter_config.json")
    if settings is None and adapter:
        msg = f"{folder} holds no adapter (adapter_config.json), so --params adapter explores none"
        raise InvalidArgumentError(msg)
    if settings is not None:
        return _adapted(folder, task, settings, alone=adapter)
    task_in(folder, task)
    return _pretrained(folder, task)


def task_in(folder: Path, given: str | None) -> str:
    """Return the task of the model in a folder; refuse another one."""
    settings = _settings(folder, "adapter_config.json")
    base = folder if settings is None else _base_of(folder, settings)
    config = _settings(base, "config.json")
    if config is None:
        msg = f"{base} holds no config.json: give a folder of save_pretrained or of the Trainer"
        raise CheckpointError(msg)
    stated = _OF_PEFT.get(str((settings or {}).get("task_type")))
    if stated is None:
        classes = config.get("architectures") or []
        return _task_of(classes, given, f"{base} ({', '.join(classes) or 'no architectures'})")
    if given not in (None, stated):
        msg = f"{folder} is an adapter for {stated}, not for {given}: leave --task out"
        raise InvalidArgumentError(msg)
    return stated


def _tokenizer(folders: Iterable[Path]) -> Any:
    """Read the tokenizer in the first folder that has one: transformers makes up an empty one."""
    for folder in folders:
        if any(any(folder.glob(pattern)) for pattern in _TOKENIZERS):
            with _reading(folder):
                auto = _transformers().AutoTokenizer
                return auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    msg = (
        f"{' and '.join(map(str, folders))} hold no tokenizer: write it there by "
        "tokenizer.save_pretrained(folder), or give token ids as data (.bin or .npy)"
    )
    raise CheckpointError(msg)


def _state_in(checkpoint: str | PathLike[str], *, task: str, adapter: bool) -> Any:
    """Return the weights in a folder of the library; anything else as it is."""
    where = str(checkpoint).removeprefix("hf:")
    files = [Path(where) / name for name in ("adapter_config.json", "config.json")]
    if where == str(checkpoint) and not any(file.is_file() for file in files):
        return checkpoint
    return load_model(find_folder(where), task, adapter=adapter).state_dict()


def library_problem(
    where: str,
    *,
    split: str,
    data: str | PathLike[str] | Mapping[str, str | PathLike[str]] | None = None,
    task: str | None = None,
    length: int | None = None,
    examples: int | None = None,
    adapter: bool = False,
    **options: Any,
) -> Problem:
    """Build the problem of ``hf:FOLDER`` on a file of data, or one for each split."""
    files = data if isinstance(data, Mapping) else {"train": data}
    if not data or split not in files:
        msg = (
            f"hf:{where} has no data of the split {split!r}: give --data {split}=FILE "
            f"(data={{{split!r}: file}}), a .bin or .npy file of token ids, a .csv or .jsonl file "
            "with text, or a folder of datasets"
        )
        raise InvalidArgumentError(msg)
    folder = find_folder(where)
    task = task_in(folder, task)
    model = load_model(folder, task, adapter=adapter)
    settings = _settings(folder, "adapter_config.json")
    places = [folder] if settings is None else [folder, _base_of(folder, settings)]
    file, tokenizer = Path(str(files[split])).expanduser(), cache(partial(_tokenizer, places))
    rows = Source(file, reading_of(model, task), tokenizer, length, examples).rows(split)
    stated: dict[str, Any] = {"task": task, "name": Path(where).name, "split": split}
    problem = transformers_problem(model, rows, **stated | options)
    if adapter:
        problem.parameters = "adapter"
        problem.reader = partial(_state_in, task=task, adapter=True)
    return problem
