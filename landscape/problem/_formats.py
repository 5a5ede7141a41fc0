"""Checkpoint files and folders as data: nothing in them is executed, and what is wrong is said.

Files of `torch.save`, TorchScript, pickle, safetensors and NumPy, told apart by their content; shards
and Hugging Face folders; folders of `torch.distributed.checkpoint`.
"""

from __future__ import annotations

import io
import json
import pickle
import re
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

from landscape.errors import CheckpointError, did_you_mean
from landscape.problem import _safe_pickle
from landscape.problem._safe_pickle import Placeholder

_SUFFIXES = {".pt", ".pth", ".safetensors", ".ckpt", ".bin", ".npz"}
_LISTED = 8
SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)(\.\w+)")
# What a Hugging Face folder is read from, in this order.
_IN_FOLDERS = tuple(
    f"{stem}.{suffix}"
    for stem in ("adapter_model", "model", "pytorch_model", "diffusion_pytorch_model")
    for suffix in ("safetensors.index.json", "safetensors", "bin.index.json", "bin")
)
_AS_NPZ = "numpy.savez('weights.npz', **{name: array})"
_KERAS = f"load it with keras.models.load_model, and write its arrays under torch's names and in torch's layouts by {_AS_NPZ}"
# First bytes, suffixes, name, and how to go on.
_FOREIGN: tuple[tuple[bytes, tuple[str, ...], str, str], ...] = (
    (
        b"GGUF",
        (".gguf",),
        "a GGUF file, of quantised weights",
        "convert it with transformers: "
        "AutoModelForCausalLM.from_pretrained(folder, gguf_file=name).save_pretrained(new_folder)",
    ),
    (b"\x89HDF\r\n\x1a\n", (".h5", ".hdf5", ".keras"), "a Keras (HDF5) file", _KERAS),
    (
        b"",
        (".onnx",),
        "an ONNX graph",
        "convert it: import onnx; numpy.savez('weights.npz', "
        "**{t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer})",
    ),
    (
        b"",
        (".msgpack",),
        "a Flax (msgpack) file",
        "convert it: read it with "
        f"flax.serialization.msgpack_restore, and write its arrays by {_AS_NPZ}",
    ),
    (
        b"",
        (".pb", ".tflite", ".index"),
        "a TensorFlow file",
        f"convert it: read it with tf.train.load_checkpoint, and write its arrays by {_AS_NPZ}",
    ),
    (
        b"",
        (".distcp", ".metadata"),
        "one file of a torch.distributed.checkpoint folder",
        "give the folder",
    ),
    (b"version https://git-lfs", (), "a Git LFS pointer", "fetch the file itself: git lfs pull"),
    (b"<", (".html",), "a web page", "download the file itself"),
    (b"\x1f\x8b", (".gz", ".tgz"), "compressed", "unpack it: gunzip, or tar -xzf"),
    (b"\x93NUMPY", (".npy",), "a single NumPy array", f"write names too: {_AS_NPZ}"),
)
_FOREIGN_FOLDERS = {
    "zero_to_fp32.py": ("DeepSpeed ZeRO", "run in it: python zero_to_fp32.py . weights"),
    "saved_model.pb": ("TensorFlow", _FOREIGN[4][3]),
    "_CHECKPOINT_METADATA": (
        "Orbax (JAX)",
        f"restore it with orbax.checkpoint, and write its arrays by {_AS_NPZ}",
    ),
}


def read_checkpoint(path: str | PathLike[str], *, unsafe_pickle: bool = False) -> Any:
    """Read a checkpoint file or folder to the CPU, without executing anything in it.

    Args:
        path: a file that ``torch.save``, safetensors or NumPy wrote, the index of shards, or a
            folder of Hugging Face or `torch.distributed.checkpoint`.
        unsafe_pickle: unpickle whatever it holds, which runs any code that it contains.

    Returns:
        What it holds: tensors in nested containers, and placeholders for other objects.

    Raises:
        CheckpointError: if there is no such file, or it is truncated, or no checkpoint, or would
            run code.
    """
    file = Path(path)
    try:
        if file.is_dir():
            return _read_folder(file, unsafe_pickle)
        if not file.is_file():
            raise CheckpointError(_no_such_file(file))
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
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(file, unsafe_pickle)
    if head.startswith(b"\x80"):
        return _read_torch(file, unsafe_pickle)
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    raise CheckpointError(_foreign(file, head))


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(file, device="cpu")
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        msg = f"{file} is no whole safetensors file ({error}); is it truncated?"
        raise CheckpointError(msg) from error


def _read_zip(file: Path, unsafe_pickle: bool) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise CheckpointError(_damaged(file, error)) from error
    if all(name.endswith(".npy") for name in names):
        return _read_numpy(file)
    kind = ""
    if "config.json" in names and any(name.endswith(".h5") for name in names):
        kind, advice = "a Keras file", _KERAS
    elif not any(name.endswith("data.pkl") for name in names):
        kind = "no archive of torch.save, TorchScript or NumPy"
        advice = f"it holds {listing(names)}"
        if file.suffix == ".pt2" or any("exported_program" in name for name in names):
            kind = "a program of torch.export"
            advice = (
                "write its weights: torch.save(torch.export.load(file).state_dict, 'weights.pt')"
            )
    if kind:
        msg = f"{file} is {kind}; {advice}"
        raise CheckpointError(msg)
    return _read_torch(file, unsafe_pickle)


def _read_numpy(file: Path) -> dict[str, Tensor]:
    found = {}
    try:
        with np.load(file, allow_pickle=False) as archive:
            for name in archive.files:
                array = archive[name]
                if array.dtype.kind == "V":
                    msg = f"{name} is of a type that NumPy does not know, such as bfloat16; save it as float32"
                    raise ValueError(msg)
                if array.dtype.kind in "biufc":  # not the texts beside them
                    found[name] = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        msg = f"{file} is no NumPy archive of plain arrays: {error}"
        raise CheckpointError(msg) from error
    return found


def _read_torch(file: Path, unsafe_pickle: bool) -> Any:
    try:
        # From a stream: of a path torch would look at the suffix.
        with file.open("rb") as stream:
            return torch.load(stream, map_location="cpu", weights_only=not unsafe_pickle)
    except Exception as error:
        # Damaged files raise almost anything (EOFError, RuntimeError, struct.error, KeyError, …),
        # and on the unsafe path so does foreign code.
        if unsafe_pickle:
            msg = f"{file} cannot be unpickled: {type(error).__name__}: {error}"
            raise CheckpointError(msg) from error
    try:
        return _read_as_data(file)
    except _safe_pickle.ForbiddenError as error:
        msg = (
            f"{file} is not loaded: it holds more than tensors, and unpickling that would run "
            f"code (it asks for {error}). Save model.state_dict() instead; or, only if you "
            "trust whoever made the file, allow it with unsafe_pickle=True (--unsafe-pickle)"
        )
        raise CheckpointError(msg) from error
    except Exception as error:
        raise CheckpointError(_damaged(file, error)) from error


def _read_as_data(file: Path) -> Any:
    """Read what torch's own safe reader refuses: other classes, other protocols, TorchScript."""
    with file.open("rb") as stream:
        if stream.peek(2)[:2] == b"PK":
            # Not by torch.load, which would run a TorchScript program.
            reader = torch._C.PyTorchFileReader(str(file))
            return torch.serialization._load(reader, "cpu", _safe_pickle, encoding="utf-8")
        first = _safe_pickle.load(stream, encoding="latin1")
        if first != torch.serialization.MAGIC_NUMBER:
            return first  # a plain pickle
        stream.seek(0)
        return torch.load(stream, "cpu", pickle_module=_safe_pickle, weights_only=False)


def _read_folder(folder: Path, unsafe_pickle: bool) -> Any:
    names = sorted(part.name for part in folder.iterdir())
    if ".metadata" in names:
        return _read_distributed(folder)
    files = [name for name in names if Path(name).suffix in _SUFFIXES]
    indices = [name for name in names if name.endswith(".index.json")]
    usual = [name for name in _IN_FOLDERS if name in names]
    alone = indices if len(indices) == 1 else files if len(files) == 1 else []
    for name in (*usual, *alone):
        return read_checkpoint(folder / name, unsafe_pickle=unsafe_pickle)
    shards = [match for match in map(SHARD.fullmatch, files) if match]
    if len({(s[1], s[3], s[4]) for s in shards}) == 1:
        stem, first, last, suffix = shards[0].groups()
        numbers = range(1, int(last) + 1)
        every = [f"{stem}-{i:0{len(first)}}-of-{last}{suffix}" for i in numbers]
        return _read_shards(folder, every, str(folder), unsafe_pickle)
    for name, (kind, advice) in _FOREIGN_FOLDERS.items():
        if name in names:
            msg = f"{folder} is a folder of {kind}; {advice}"
            raise CheckpointError(msg)
    msg = f"{folder} is a directory; name a file in it: {listing(files) or 'none fits'}"
    raise CheckpointError(msg)


def _read_index(index: Path, unsafe_pickle: bool) -> dict[str, Any]:
    try:
        weight_map = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        files = sorted(set(map(str, weight_map.values())))
    except (ValueError, KeyError, TypeError) as error:
        msg = f"{index} is no index of shards: it has no weight_map from names to files"
        raise CheckpointError(msg) from error
    tensors = _read_shards(index.parent, files, str(index), unsafe_pickle)
    absent = sorted(weight_map.keys() - tensors.keys())
    if absent:
        msg = (
            f"{index} names tensors that its shards do not hold ({len(absent)}): {listing(absent)}"
        )
        raise CheckpointError(msg)
    return tensors


def _read_shards(
    folder: Path, files: list[str], origin: str, unsafe_pickle: bool
) -> dict[str, Any]:
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        msg = (
            f"{origin} is a checkpoint of {len(files)} shards, {len(missing)} of which are missing "
            f"({listing(missing)}); copy them beside the others"
        )
        raise CheckpointError(msg)
    tensors: dict[str, Any] = {}
    for name in files:
        tensors |= read_checkpoint(folder / name, unsafe_pickle=unsafe_pickle)
    return tensors


def _read_distributed(folder: Path) -> dict[str, Any]:
    """Read a folder of torch.distributed.checkpoint in one process, whatever number saved it."""
    try:
        with (folder / ".metadata").open("rb") as stream:
            metadata = _safe_pickle.load(stream).attributes()
        stored = {key: value.attributes() for key, value in metadata["storage_data"].items()}
        files = {str(value["relative_path"]) for value in stored.values()}
        missing = sorted(name for name in files if not (folder / name).is_file())
        if missing:
            msg = (
                f"{folder} is a torch.distributed.checkpoint of {len(files)} files, "
                f"{len(missing)} of which are missing ({listing(missing)}): each process wrote its "
                "own; copy them all"
            )
            raise CheckpointError(msg)
        return _assembled(folder, metadata, stored)
    except CheckpointError:
        raise
    except Exception as error:  # as of files of torch.save
        msg = (
            f"{folder} is no whole folder of torch.distributed.checkpoint ({error}); try python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pt"
        )
        raise CheckpointError(msg) from error


def _assembled(
    folder: Path, metadata: dict[str, Any], stored: dict[Placeholder, dict[str, Any]]
) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    pieces: dict[tuple[str, Any], dict[str, Any]] = {}
    for key, where in stored.items():
        label = key.attributes()
        pieces[label["fqn"], tuple(label.get("offset") or ())] = where
    for name, described in metadata["state_dict_metadata"].items():
        if "size" not in described.attributes() or name.startswith("optim"):
            continue  # no tensor, or none of the model's
        size, dtype = described.attributes()["size"], described.attributes()["properties"].state[0]
        spans = [chunk.attributes() for chunk in described.attributes()["chunks"]]
        if sum(prod(span["sizes"]) for span in spans) != prod(size):
            msg = f"{folder} holds only parts of {name}: was its saving interrupted?"
            raise CheckpointError(msg)
        parts = [_piece(folder, pieces[name, tuple(span["offsets"])]) for span in spans]
        whole = parts[0] if len(parts) == 1 else torch.empty(size, dtype=dtype)
        for part, span in zip(parts, spans, strict=True):
            ends = zip(span["offsets"], span["sizes"], strict=True)
            whole[tuple(slice(first, first + n) for first, n in ends)] = part
        *path, last = map(str, (metadata.get("planner_data") or {}).get(name, (name,)))
        entry = tree
        for step in path:
            entry = entry.setdefault(step, {})
        entry[last] = whole
    return tree


def _piece(folder: Path, where: dict[str, Any]) -> Tensor:
    if where.get("transform_descriptors"):
        msg = f"it is written through {where['transform_descriptors']}"
        raise ValueError(msg)
    with (folder / where["relative_path"]).open("rb") as stream:
        stream.seek(where["offset"])
        content = io.BytesIO(stream.read(where["length"]))
    return torch.load(content, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]


def _damaged(file: Path, error: Exception) -> str:
    first = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0].rstrip(".")
    if isinstance(error, (pickle.UnpicklingError, EOFError)):
        first = "its pickle breaks off"
    return (
        f"{file} ({file.stat().st_size:,} bytes) is truncated or no checkpoint: "
        f"{first}; copy or save it again"
    )


def _foreign(file: Path, head: bytes) -> str:
    for magic, suffixes, kind, advice in _FOREIGN:
        if (magic and head.startswith(magic)) or file.suffix in suffixes or file.name in suffixes:
            return f"{file} is {kind}; {advice}"
    return (
        f"{file} is no checkpoint: neither a file that torch.save wrote nor a safetensors file nor a "
        f"NumPy archive (it starts with {head[:8]!r})"
    )


def _no_such_file(file: Path) -> str:
    siblings = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
    near = did_you_mean(file.name, siblings)
    return f"no such checkpoint file: {file}{near}"


def listing(names: Iterable[str]) -> str:
    """Join the first names, and count the others."""
    shown = list(names)
    rest = len(shown) - _LISTED
    return ", ".join(shown[:_LISTED]) + (f", … and {rest} more" if rest > 0 else "")
