"""The state dict in a checkpoint, found and fitted to a model.

Bare or nested among other things, with the prefixes that DataParallel, DDP, Lightning and
torch.compile leave behind.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import CheckpointError, CheckpointWarning, did_you_mean
from landscape.problem.checkpoint_file import listing, read_checkpoint

__all__ = ["find_state_dict", "load_weights", "own_name", "read_checkpoint"]

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


def load_weights(
    model: nn.Module,
    source: str | PathLike[str] | Mapping[str, Any] | nn.Module,
    *,
    key: str | None = None,
    unsafe_pickle: bool = False,
    partial: bool = False,
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
    on_purpose = {
        name: tensor.clone() for name, tensor in expected.items() if not _is_finite(tensor)
    }
    state = find_state_dict(tree, expected, key=key, origin=origin)
    _check_ties(state, model, origin)
    _load(state, model, expected, origin)
    _check_finite(model, on_purpose, origin)


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
        found = _under(key, found, origin)
    if not found:
        msg = f"{origin} holds no state dict (names to tensors); found {_outline(tree)}"
        raise CheckpointError(msg)
    candidates = {name: _own_names(state, expected) for name, state in found.items()}

    def fit(name: str) -> tuple[int, int]:
        last = name.rsplit(".", 1)[-1]
        rank = _USUAL_KEYS.index(last) if last in _USUAL_KEYS else len(_USUAL_KEYS)
        return len(candidates[name].keys() & expected.keys()), -rank

    best = max(candidates, key=fit)
    rivals = [name for name in candidates if fit(name) == fit(best)]
    if len(rivals) > 1 and fit(best)[0]:
        msg = (
            f"{origin} holds several state dicts that fit the model alike: {listing(rivals)}; "
            f"choose one, for example by key={rivals[0]!r} (--key {rivals[0]})"
        )
        raise CheckpointError(msg)
    others = [name for name in candidates if name != best and fit(name)[0] == fit(best)[0] > 0]
    if key is None and others:
        msg = (
            f"{origin} holds several state dicts that fit the model: {best!r} is taken, not "
            f"{listing(others)}; choose by key={others[0]!r} (--key {others[0]})"
        )
        warnings.warn(msg, CheckpointWarning, stacklevel=2)
    return _renamed(found[best], candidates[best], expected, origin)


def _under(key: str, found: Mapping[str, StateDict], origin: str) -> dict[str, StateDict]:
    """Keep the state dicts that a key names: the entry itself, or what is nested in it."""
    chosen = {
        name: state for name, state in found.items() if name == key or name.startswith(f"{key}.")
    }
    if not chosen:
        names = [name or "(top level)" for name in found]
        near = did_you_mean(key, names)
        msg = f"{origin} has no state dict {key!r}{near}; it has: {listing(names) or 'none'}"
        raise CheckpointError(msg)
    return chosen


def _own_names(state: StateDict, expected: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Group the names of a state dict by the model's own name, also where that one is wrapped."""
    own = {_without_wrappers(name): name for name in expected}
    grouped: dict[str, list[str]] = {}
    for name in state:
        plain = own_name(name, own)
        grouped.setdefault(name if name in expected else own.get(plain, plain), []).append(name)
    return grouped


def _renamed(
    state: StateDict, grouped: Mapping[str, list[str]], expected: Mapping[str, Tensor], origin: str
) -> StateDict:
    """Give the tensors the model's own names; the exact name wins, others must not compete."""
    for own, names in grouped.items():
        if own in expected and own not in names and len(names) > 1:
            msg = (
                f"{origin} holds {own} under {len(names)} names, {listing(names)}; hand over the "
                "state dict of the one model that is meant"
            )
            raise CheckpointError(msg)
    return {
        own: state[own if own in names else names[0]]
        for own, names in grouped.items()
        if own not in _IGNORED
    }


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
    if plain not in known:
        plain = _without_wrappers(plain)
    tried = plain
    while tried not in known and tried.startswith(_WRAPPERS):
        tried = tried.split(".", 1)[1]
    return tried if tried in known else plain


def _without_wrappers(name: str) -> str:
    plain = name.replace("_orig_mod.", "")
    while plain.startswith("module."):
        plain = plain.removeprefix("module.")
    return plain


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


def _load(state: StateDict, model: nn.Module, expected: Mapping[str, Tensor], origin: str) -> None:
    """Load, or raise with every misfit listed."""
    misshaped = [
        f"{name} {tuple(state[name].shape)}, the model has {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and isinstance(tensor, Tensor) and state[name].shape != tensor.shape
    ]
    fitting = {n: t for n, t in state.items() if n not in expected or t.shape == expected[n].shape}
    # By torch itself, so that the layers' own rules for files of older versions apply.
    try:
        report = model.load_state_dict(fitting, strict=False)
    except RuntimeError as error:
        msg = f"{origin} does not fit the model {type(model).__name__}: {error}"
        raise CheckpointError(msg) from error
    aliases = _aliases(model)
    missing = [
        name
        for name in report.missing_keys
        if name not in state
        and name not in _IGNORED
        and not name.endswith((*_OPTIONAL, "_extra_state"))
        and not any(other in state for other in aliases.get(name, ()))
    ]
    unexpected = list(report.unexpected_keys)
    if not (missing or unexpected or misshaped):
        return
    missing = [name + did_you_mean(name, unexpected, most=1) for name in missing]
    unexpected = [name + did_you_mean(name, expected, most=1) for name in unexpected]
    parts = [
        f"{label} ({len(names)}): {listing(names)}"
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


def _check_ties(state: StateDict, model: nn.Module, origin: str) -> None:
    """Refuse values that differ for one tensor: whichever came last would win."""
    for name, others in _aliases(model).items():
        for other in others:
            if name in state and other in state and not torch.equal(state[name], state[other]):
                msg = (
                    f"{name} and {other} are one tensor in the model {type(model).__name__}, but "
                    f"{origin} holds other values for each; build the model without tying them"
                )
                raise CheckpointError(msg)


def _is_finite(tensor: Any) -> bool:
    floating = isinstance(tensor, Tensor) and (tensor.is_floating_point() or tensor.is_complex())
    return not floating or bool(torch.isfinite(tensor).all())


def _check_finite(model: nn.Module, on_purpose: Mapping[str, Tensor], origin: str) -> None:
    """Refuse NaN and infinity, except in what the fresh model holds so: a mask of -inf."""
    bad = [
        name
        for name, tensor in model.state_dict().items()
        if not _is_finite(tensor)
        and not (name in on_purpose and torch.equal(tensor, on_purpose[name]))
    ]
    if bad:
        msg = (
            f"{origin} holds NaN or infinity in {len(bad)} tensors ({listing(bad)}): the "
            "training has diverged; choose an earlier checkpoint"
        )
        raise CheckpointError(msg)


def _outline(tree: Any) -> str:
    if isinstance(tree, Mapping):
        return f"a {type(tree).__name__} with the keys {listing(map(str, tree)) or '(none)'}"
    return f"a {type(tree).__name__}"
