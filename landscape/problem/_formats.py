"""Checkpoint files and folders as data: nothing in them is executed, and what is wrong is said."""

from __future__ import annotations

import io
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from landscape.errors import CheckpointError, did_you_mean, first_line
from landscape.problem import _safe_pickle

_SUFFIXES = {".pt", ".pth", ".safetensors", ".ckpt", ".bin", ".npz"}
_LISTED = 8
SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)(\.\w+)")
# What a Hugging Face folder is read from, in this order.
_IN_FOLDERS = [
    f"{stem}.{suffix}"
    for stem in ("adapter_model", "model", "pytorch_model", "diffusion_pytorch_model")
    for suffix in ("safetensors.index.json", "safetensors", "bin.index.json", "bin")
]


_AS_ARRAYS = (
    "{}; read it with {}, and write its arrays under torch's names and in torch's layouts: "
    "numpy.savez('weights.npz', **{{name: array}})"
)
# Other formats by first bytes, or by how the name of the file, or of one in the folder, ends. A
# pair names the format and what reads it as arrays.
_OTHERS: dict[str | bytes, str | tuple[str, str]] = {
    ".onnx": ("an ONNX graph", "onnx.load and onnx.numpy_helper.to_array"),
    ".msgpack": ("a Flax (msgpack) file", "flax.serialization.msgpack_restore"),
    ".pb": ("a TensorFlow model", "tf.train.load_checkpoint"),
    ".index": ("a TensorFlow checkpoint", "tf.train.load_checkpoint"),
    "_CHECKPOINT_METADATA": ("an Orbax (JAX) checkpoint", "orbax.checkpoint"),
    ".keras": ("a Keras file", "keras.models.load_model"),
    b"\x89HDF\r\n\x1a\n": ("an HDF5 (Keras) file", "keras.models.load_model, or h5py"),
    b"\x93NUMPY": ("a single NumPy array", "numpy.load"),
    b"GGUF": "a GGUF file of quantised weights; dequantise it by transformers: "
    "from_pretrained(folder, gguf_file=name).save_pretrained(new_folder)",
    ".pt2": "a program of torch.export; save its weights: "
    "torch.save(torch.export.load(file).state_dict, 'weights.pt')",
    ".distcp": "one file of a torch.distributed.checkpoint folder; give the folder",
    "zero_to_fp32.py": "a DeepSpeed ZeRO folder; run in it: python zero_to_fp32.py . weights",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself by git lfs pull",
    b"<": "a web page; download the file itself",
    b"\x1f\x8b": "compressed; unpack it by gunzip or tar -xzf",
}


def read_checkpoint(path: str | PathLike[str], *, unsafe_pickle: bool = False) -> Any:
    """Read a file, an index of shards or a folder to the CPU as tensors in nested containers."""
    file = Path(path)
    try:
        if file.is_dir():
            return _read_folder(file, unsafe_pickle)
        if not file.is_file():
            siblings = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
            msg = f"no such checkpoint file: {file}{did_you_mean(file.name, siblings)}"
            raise CheckpointError(msg)
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(32)
    except OSError as error:
        msg = f"{file} cannot be read: {error.strerror or error}"
        raise CheckpointError(msg) from error
    if not head:
        msg = f"{file} is empty (0 bytes): was the disk full when it was saved?"
        raise CheckpointError(msg)
    if file.name.endswith(".index.json"):
        return _read_index(file, unsafe_pickle)
    # By what it holds, not by its name. A safetensors file starts with the length of its header.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size:
        return _read_safetensors(file)
    if file.name == ".metadata":
        return _read_folder(file.parent, unsafe_pickle)
    if head.startswith((b"PK\x03\x04", b"\x80")) and file.suffix != ".distcp":
        return _read_archive(file, unsafe_pickle)
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    msg = f"{file} is " + (
        _other_format(file.name, head)
        or "no checkpoint: neither a file that torch.save wrote nor a safetensors file nor a NumPy "
        f"archive (it starts with {head[:8]!r})"
    )
    raise CheckpointError(msg)


def _other_format(name: str, head: bytes = b"") -> str | None:
    for mark, about in _OTHERS.items():
        if name.endswith(mark) if isinstance(mark, str) else head.startswith(mark):
            return about if isinstance(about, str) else _AS_ARRAYS.format(*about)
    return None


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(file, device="cpu")
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        msg = f"{file} is no whole safetensors file ({error}); is it truncated?"
        raise CheckpointError(msg) from error


def _read_archive(file: Path, unsafe_pickle: bool) -> Any:
    """Read what torch.save, TorchScript, pickle or NumPy wrote."""
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
            if all(name.endswith(".npy") for name in names):
                return _read_numpy(file)
            if not any(name.endswith("data.pkl") for name in names):
                exported = any(name.endswith("archive_format") for name in names)
                kind = ".keras" if "config.json" in names else ".pt2" if exported else file.name
                msg = f"{file} is {_other_format(kind) or 'an archive of ' + listing(names)}"
                raise CheckpointError(msg)
        with warnings.catch_warnings(), file.open("rb") as stream:
            warnings.simplefilter("ignore")  # of other protocols, and of TorchScript
            # From a stream: of a path torch would look at the suffix.
            if unsafe_pickle:
                return torch.load(stream, map_location="cpu", weights_only=False)
            return _read_as_data(file)
    except CheckpointError:
        raise
    except _safe_pickle.ForbiddenError as error:
        msg = (
            f"{file} is not loaded: it holds more than tensors, and unpickling that would run "
            f"code (it asks for {error}). Save model.state_dict() instead; or, only if you "
            "trust whoever made the file, allow it with unsafe_pickle=True (--unsafe-pickle)"
        )
    except Exception as error:
        # Damaged files raise almost anything (EOFError, RuntimeError, struct.error, KeyError, …),
        # and on the unsafe path so does foreign code.
        first = first_line(error).split(". ")[0].rstrip(".")
        if isinstance(error, (pickle.UnpicklingError, EOFError)):
            first = "its pickle breaks off"
        kind = f"{file} ({file.stat().st_size:,} bytes) is truncated or no checkpoint"
        msg = f"{kind}: {first}; copy or save it again"
        if unsafe_pickle:
            msg = f"{file} cannot be unpickled: {type(error).__name__}: {error}"
    raise CheckpointError(msg)


def _read_as_data(file: Path) -> Any:
    with file.open("rb") as stream:
        if stream.peek(2)[:2] == b"PK":
            # Not by torch.load, which would run a TorchScript program.
            reader = torch._C.PyTorchFileReader(str(file))
            return torch.serialization._load(reader, "cpu", _safe_pickle, encoding="utf-8")  # type: ignore[no-untyped-call]
        first = _safe_pickle.load(stream, encoding="latin1")
        if first != torch.serialization.MAGIC_NUMBER:
            return first  # a plain pickle
        stream.seek(0)
        return torch.serialization._legacy_load(stream, "cpu", _safe_pickle, encoding="utf-8")  # type: ignore[no-untyped-call]


def _read_numpy(file: Path) -> dict[str, Tensor]:
    with np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    if unknown := [name for name, array in arrays.items() if array.dtype.kind == "V"]:
        kind = "of a type that NumPy does not know, such as bfloat16"
        msg = f"{file} has arrays {kind} ({listing(unknown)}); save them as float32"
        raise CheckpointError(msg)
    return {
        name: torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
        for name, array in arrays.items()
        if array.dtype.kind in "biufc"
    }


def _read_folder(folder: Path, unsafe_pickle: bool) -> Any:
    names = sorted(part.name for part in folder.iterdir())
    if ".metadata" in names:
        return _read_distributed(folder)
    files = [name for name in names if Path(name).suffix in _SUFFIXES]
    indices = [name for name in names if name.endswith(".index.json")]
    for usual in ([name for name in _IN_FOLDERS if name in names][:1], indices, files):
        if len(usual) == 1:
            return read_checkpoint(folder / usual[0], unsafe_pickle=unsafe_pickle)
    shards = [match for match in map(SHARD.fullmatch, files) if match]
    if len({(s[1], s[3], s[4]) for s in shards}) == 1:
        stem, first, last, suffix = shards[0].groups()
        numbers = range(1, int(last) + 1)
        every = [f"{stem}-{i:0{len(first)}}-of-{last}{suffix}" for i in numbers]
        return _read_shards(folder, every, unsafe_pickle)
    other = next(filter(None, map(_other_format, names)), "a directory; name a file in it: ")
    inside = (listing(files) or "none fits") if other.endswith(": ") else ""
    msg = f"{folder} is {other}{inside}"
    raise CheckpointError(msg)


def _read_index(index: Path, unsafe_pickle: bool) -> dict[str, Any]:
    try:
        weight_map = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        files = sorted(set(map(str, weight_map.values())))
    except (ValueError, KeyError, TypeError) as error:
        msg = f"{index} is no index of shards: it has no weight_map from names to files"
        raise CheckpointError(msg) from error
    tensors = _read_shards(index.parent, files, unsafe_pickle)
    if absent := sorted(weight_map.keys() - tensors.keys()):
        msg = f"{index} names {len(absent)} tensors that no shard holds: {listing(absent)}"
        raise CheckpointError(msg)
    return tensors


def _read_shards(folder: Path, files: list[str], unsafe_pickle: bool) -> dict[str, Any]:
    _check_complete(folder, files, "shards")
    tensors: dict[str, Any] = {}
    for name in files:
        tensors |= read_checkpoint(folder / name, unsafe_pickle=unsafe_pickle)
    return tensors


def _check_complete(folder: Path, files: list[str], kind: str) -> None:
    if missing := [name for name in files if not (folder / name).is_file()]:
        msg = (
            f"{folder} holds a checkpoint of {len(files)} {kind}, {len(missing)} of which are "
            f"missing: {listing(missing)}; copy them beside the others"
        )
        raise CheckpointError(msg)


def _read_distributed(folder: Path) -> dict[str, Any]:
    """Read a folder of torch.distributed.checkpoint in one process, whatever number saved it."""
    try:
        with (folder / ".metadata").open("rb") as stream:
            metadata = _safe_pickle.load(stream).attributes()
        stored = [(k.attributes(), v.attributes()) for k, v in metadata["storage_data"].items()]
        files = sorted({where["relative_path"] for _, where in stored})
        _check_complete(folder, files, "files (each process wrote its own)")
        tree: dict[str, Any] = {}
        pieces = {(key["fqn"], tuple(key.get("offset") or ())): where for key, where in stored}
        paths = metadata.get("planner_data") or {}
        for name, described in metadata["state_dict_metadata"].items():
            about = described.attributes()
            if "size" in about and not name.startswith("optim"):
                *path, last = map(str, paths.get(name, (name,)))
                entry = tree
                for step in path:
                    entry = entry.setdefault(step, {})
                entry[last] = _assembled(folder, name, about, pieces)
        return tree
    except CheckpointError:
        raise
    except Exception as error:  # as in damaged files of torch.save
        msg = (
            f"{folder} is no whole folder of torch.distributed.checkpoint ({error!r}); try: python "
            f"-m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pt"
        )
        raise CheckpointError(msg) from error


def _assembled(
    folder: Path, name: str, about: dict[str, Any], pieces: dict[tuple[str, Any], dict[str, Any]]
) -> Tensor:
    """Put the chunks of a tensor together."""
    spans = [chunk.attributes() for chunk in about["chunks"]]
    if sum(prod(span["sizes"]) for span in spans) != prod(about["size"]):
        msg = f"{folder} holds only parts of {name}: was its saving interrupted?"
        raise CheckpointError(msg)
    whole = torch.empty(tuple(about["size"]), dtype=about["properties"].state[0])
    for span in spans:
        where = pieces[name, tuple(span["offsets"])]
        with (folder / where["relative_path"]).open("rb") as stream:
            stream.seek(where["offset"])
            content = io.BytesIO(stream.read(where["length"]))
        ends = zip(span["offsets"], span["sizes"], strict=True)
        # Chunks that went through an extension, such as compression, are no files of torch.save.
        part = torch.load(content, map_location="cpu", weights_only=True)
        whole[tuple(slice(first, first + n) for first, n in ends)] = part
    return whole


def listing(names: Iterable[str]) -> str:
    """Join the first names, and count the others."""
    shown = list(names)
    rest = len(shown) - _LISTED
    return ", ".join(shown[:_LISTED]) + (f", … and {rest} more" if rest > 0 else "")
