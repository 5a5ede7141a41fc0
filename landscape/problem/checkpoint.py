"""Checkpoint files, read as data: nothing in them is executed.

State dicts in ``.pt``, ``.pth`` (any torch version, saved on any device) and ``.safetensors``
files, bare or nested among other things, with the prefixes that DataParallel, DDP and
torch.compile leave behind.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from landscape.errors import CheckpointError, did_you_mean

StateDict = dict[str, Tensor]

# Where training scripts put the weights, in the order of preference when several fit as well.
_USUAL_KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "ema",
    "ema_state_dict",
    "model_ema",
)
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.")
# Written by wrappers or by newer versions of a layer, and without effect on a landscape.
_IGNORED = ("n_averaged", "_metadata")
_OPTIONAL = ("num_batches_tracked",)
_LISTED = 8


def load_weights(
    model: nn.Module,
    source: str | PathLike[str] | Mapping[str, Any] | nn.Module,
    *,
    key: str | None = None,
    unsafe_pickle: bool = False,
) -> None:
    """Load a checkpoint into a model, in place.

    Args:
        model: what the weights are for; its dtype and device stay.
        source: a file, a (possibly nested) state dict, or a module.
        key: which entry of a nested checkpoint to read (``ema``); None: the one that fits best.
        unsafe_pickle: unpickle whatever the file holds, which runs any code that it contains.

    Raises:
        CheckpointError: if it cannot be read, does not fit, or holds NaN or infinity.
    """
    if isinstance(source, nn.Module):
        tree: Any = source.state_dict()
        origin = type(source).__name__
    elif isinstance(source, Mapping):
        tree, origin = source, "the state dict"
    else:
        tree, origin = read_checkpoint(source, unsafe_pickle=unsafe_pickle), str(source)
    expected = model.state_dict()
    state = find_state_dict(tree, expected, key=key, origin=origin)
    _load(state, model, expected, origin)
    _check_finite(model, origin)


def read_checkpoint(path: str | PathLike[str], *, unsafe_pickle: bool = False) -> Any:
    """Read a checkpoint file to the CPU, without executing anything in it.

    Args:
        path: a ``.safetensors`` file, or what ``torch.save`` wrote.
        unsafe_pickle: unpickle whatever it holds, which runs any code that it contains.

    Returns:
        What the file holds: tensors in nested containers.

    Raises:
        CheckpointError: if there is no such file, or it is truncated, or no checkpoint, or would
            run code.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(_no_such_file(file))
    with file.open("rb") as stream:
        head = stream.read(16)
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    if not head:
        msg = f"{file} is empty (0 bytes): was the disk full when it was saved?"
        raise CheckpointError(msg)
    if not head.startswith((b"PK\x03\x04", b"\x80")):
        if head[8:9] == b"{":
            return _read_safetensors(file)
        msg = (
            f"{file} is no checkpoint: neither a file that torch.save wrote nor a safetensors "
            f"file (it starts with {head[:8]!r})"
        )
        raise CheckpointError(msg)
    return _read_torch(file, unsafe_pickle=unsafe_pickle)


def find_state_dict(
    tree: Any, expected: Mapping[str, Tensor], *, key: str | None = None, origin: str = "it"
) -> StateDict:
    """Find the state dict in a checkpoint that fits a model best, under the model's own names.

    Args:
        tree: what a checkpoint file holds.
        expected: the model's own state dict.
        key: the entry to read, nested ones by dots; None: the one that fits best.
        origin: what the tree came from, for messages.

    Returns:
        Tensors by the model's names, wrappers' prefixes stripped.

    Raises:
        CheckpointError: if there is none.
    """
    if isinstance(tree, nn.Module):
        tree = tree.state_dict()
    found = dict(_state_dicts(tree))
    if key is not None:
        if key not in found:
            names = [name or "(top level)" for name in found]
            near = did_you_mean(key, names)
            msg = f"{origin} has no state dict {key!r}{near}; it has: {_listing(names) or 'none'}"
            raise CheckpointError(msg)
        found = {key: found[key]}
    if not found:
        msg = f"{origin} holds no state dict (names to tensors); found {_outline(tree)}"
        raise CheckpointError(msg)
    candidates = {
        name: {own_name(k, expected): tensor for k, tensor in state.items()}
        for name, state in found.items()
    }

    def fit(name: str) -> tuple[int, int]:
        last = name.rsplit(".", 1)[-1]
        rank = _USUAL_KEYS.index(last) if last in _USUAL_KEYS else len(_USUAL_KEYS)
        return len(candidates[name].keys() & expected.keys()), -rank

    best = candidates[max(candidates, key=fit)]
    return {name: value for name, value in best.items() if name not in _IGNORED}


def own_name(name: str, expected: Iterable[str]) -> str:
    """Strip the prefixes that wrappers add, as far as the model has no such name itself.

    Args:
        name: a name in the checkpoint.
        expected: the model's own names.

    Returns:
        The model's name for it, or the plainest one if there is none.

    >>> own_name("module._orig_mod.fc.weight", {"fc.weight"})
    'fc.weight'
    """
    known = expected if isinstance(expected, Mapping) else set(expected)
    if name in known:
        return name
    plain = name.replace("_orig_mod.", "")
    while plain.startswith("module.") and plain not in known:
        plain = plain.removeprefix("module.")
    tried = plain
    while tried not in known and tried.startswith(_WRAPPERS):
        tried = tried.split(".", 1)[1]
    return tried if tried in known else plain


def _state_dicts(tree: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, StateDict]]:
    """Walk a checkpoint for mappings from names to tensors."""
    if not isinstance(tree, Mapping) or depth > 3:
        return
    tensors = {k: v for k, v in tree.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors:
        yield path, tensors
    for name, part in tree.items():
        if isinstance(name, str):
            inner = part.state_dict() if isinstance(part, nn.Module) else part
            yield from _state_dicts(inner, f"{path}.{name}" if path else name, depth + 1)


def _read_safetensors(file: Path) -> StateDict:
    try:
        return safetensors.torch.load_file(file, device="cpu")
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        msg = f"{file} is no whole safetensors file ({error}); is it truncated?"
        raise CheckpointError(msg) from error


def _read_torch(file: Path, *, unsafe_pickle: bool) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=not unsafe_pickle)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error) and "Unsupported" not in str(error):
            raise CheckpointError(_damaged(file, error)) from error
        msg = (
            f"{file} is not loaded: it holds more than tensors, and unpickling that would run "
            f"code ({_first_reason(error)}). Save model.state_dict() instead; or, only if you "
            "trust whoever made the file, allow it with unsafe_pickle=True (--unsafe-pickle)"
        )
        raise CheckpointError(msg) from error
    except Exception as error:
        # Damaged files raise almost anything (EOFError, RuntimeError, struct.error, KeyError, …),
        # and on the unsafe path so does foreign code.
        if unsafe_pickle:
            msg = f"{file} cannot be unpickled: {type(error).__name__}: {error}"
            raise CheckpointError(msg) from error
        raise CheckpointError(_damaged(file, error)) from error


def _damaged(file: Path, error: Exception) -> str:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    if "TorchScript" in str(error):
        return f"{file} is a TorchScript program, not weights; save model.state_dict() instead"
    return (
        f"{file} ({file.stat().st_size:,} bytes) is truncated or no checkpoint: "
        f"{first.rstrip('.')}; copy or save it again"
    )


def _first_reason(error: Exception) -> str:
    text = str(error)
    for mark in ("Unsupported global: GLOBAL ", "GLOBAL "):
        if mark in text:
            return f"it asks for {text.split(mark, 1)[1].split()[0]}"
    return text.split("\n", 1)[0][:160]


def _no_such_file(file: Path) -> str:
    if file.is_dir():
        inside = sorted(p.name for p in file.iterdir() if p.suffix in _SUFFIXES)
        return f"{file} is a directory; name a file in it: {_listing(inside) or 'none fits'}"
    siblings = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
    near = did_you_mean(file.name, siblings)
    return f"no such checkpoint file: {file}{near}"


_SUFFIXES = {".pt", ".pth", ".safetensors", ".ckpt", ".bin"}


def _load(state: StateDict, model: nn.Module, expected: Mapping[str, Tensor], origin: str) -> None:
    """Load, or raise with every misfit listed."""
    misshaped = [
        f"{name} {tuple(state[name].shape)}, the model has {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and isinstance(tensor, Tensor) and state[name].shape != tensor.shape
    ]
    fitting = {n: t for n, t in state.items() if n not in expected or t.shape == expected[n].shape}
    # By torch itself, so that the layers' own rules for files of older versions apply.
    report = model.load_state_dict(fitting, strict=False)
    aliases = _aliases(model)
    missing = [
        name
        for name in report.missing_keys
        if name not in state
        and not name.endswith((*_OPTIONAL, "_extra_state"))
        and not any(other in state for other in aliases.get(name, ()))
    ]
    unexpected = list(report.unexpected_keys)
    if not (missing or unexpected or misshaped):
        return
    missing = [name + did_you_mean(name, unexpected, most=1) for name in missing]
    unexpected = [name + did_you_mean(name, expected, most=1) for name in unexpected]
    parts = [
        f"{label} ({len(names)}): {_listing(names)}"
        for label, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("wrong shape", misshaped),
        )
        if names
    ]
    n_same = len(state.keys() & expected.keys())
    msg = (
        f"{origin} does not fit the model {type(model).__name__}: {n_same} of {len(expected)} "
        f"names agree.\n  " + "\n  ".join(parts)
    )
    raise CheckpointError(msg)


def _aliases(model: nn.Module) -> dict[str, list[str]]:
    """List the other names of tied tensors; safetensors files keep only one of them."""
    by_tensor: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            by_tensor.setdefault(id(tensor), []).append(name)
    return {name: names for names in by_tensor.values() for name in names if len(names) > 1}


def _check_finite(model: nn.Module, origin: str) -> None:
    bad = [
        name
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, Tensor)
        and tensor.is_floating_point()
        and not bool(torch.isfinite(tensor).all())
    ]
    if bad:
        msg = (
            f"{origin} holds NaN or infinity in {len(bad)} tensors ({_listing(bad)}): the "
            "training has diverged; choose an earlier checkpoint"
        )
        raise CheckpointError(msg)


def _listing(names: Iterable[str]) -> str:
    shown = list(names)
    rest = len(shown) - _LISTED
    return ", ".join(shown[:_LISTED]) + (f", … and {rest} more" if rest > 0 else "")


def _outline(tree: Any) -> str:
    if isinstance(tree, Mapping):
        return f"a {type(tree).__name__} with the keys {_listing(map(str, tree)) or '(none)'}"
    return f"a {type(tree).__name__}"
