"""The state dict in a checkpoint, found and fitted to a model.

Bare or nested among other things, under a prefix, as averages in a list, or as adapters alone.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.errors import CheckpointError, CheckpointWarning, did_you_mean
from landscape.problem._formats import SHARD, listing, read_checkpoint
from landscape.problem._safe_pickle import Placeholder

__all__ = ["load_weights", "read_checkpoint"]

StateDict = dict[str, Tensor]

# Where training scripts put the weights, in the order of preference when several fit as well.
_USUAL_KEYS = (
    "",
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
_INSIDE = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Written by wrappers or by newer versions of a layer, and without effect on a landscape.
_IGNORED = ("n_averaged", "_metadata")
_OPTIONAL = ("num_batches_tracked", "_extra_state")
_ADAPTER = re.compile(
    r"(^|[._])(lora|ia3|vera|oft|hada|loha|lokr|dora|adapters?|prompt_embeddings)[._]"
)
# PEFT writes its files without the name of the adapter: lora_A.default.weight, ia3_l.default.
_PEFT = re.compile(
    r"((?:^|\.)(?:lora|ia3|vera|oft|hada)_\w+)\.(?!weight$|bias$)\w+|\.modules_to_save\.\w+"
)
_QUANTISED = re.compile(
    r"(^|\.)(qweight|qzeros|SCB|absmax|quant_map|quant_state|weight_format|_packed_params|"
    r"weight_(scale|scale_inv|packed))(\.|$)"
)


@dataclass(frozen=True)
class _Network:
    """Tensors of a checkpoint that may be the model's: an entry of it, and a prefix in there."""

    entry: str
    prefix: str
    state: StateDict
    fit: tuple[int, int]  # names that agree in shape too, and in name
    outside: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        return ".".join(filter(None, [self.entry, self.prefix.rstrip(".")]))

    @property
    def rank(self) -> tuple[int, bool]:
        last = self.entry.rsplit(".", 1)[-1]
        known = last in _USUAL_KEYS
        return _USUAL_KEYS.index(last) if known else len(_USUAL_KEYS), bool(self.prefix)


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
        source: a file or folder, a (possibly nested) state dict, or a module.
        key: entry of a nested checkpoint, or prefix of names in it (``ema``, ``teacher.backbone``);
            None: the one that fits best.
        unsafe_pickle: unpickle whatever the file holds, which runs any code that it contains.
        partial: keep the model's own weights where the checkpoint has none.

    Raises:
        CheckpointError: if it cannot be read, does not fit, or holds NaN or infinity.
    """
    is_file = isinstance(source, (str, PathLike))
    tree: Any = read_checkpoint(source, unsafe_pickle=unsafe_pickle) if is_file else source  # type: ignore[arg-type]
    origin = str(source) if is_file else "the state dict"
    if isinstance(source, nn.Module):
        origin = type(source).__name__
    expected = model.state_dict()
    on_purpose = {n: t.clone() for n, t in expected.items() if not _is_finite(t)}
    network = _find_network(tree, model, expected, key, origin)
    _check_values(network, model, expected, origin)
    _load(network, model, expected, origin, partial=partial, by_key=key is not None)
    _check_finite(model, on_purpose, origin)


# Finding


def _find_network(
    tree: Any, model: nn.Module, expected: Mapping[str, Tensor], key: str | None, origin: str
) -> _Network:
    networks = []
    for entry, tensors in _entries(tree):
        networks += list(_networks(entry, tensors, model, expected, key))
    if not networks:
        msg = f"{origin} holds no state dict (names to tensors); found {_outline(tree)}"
        raise CheckpointError(msg)
    chosen = networks if key is None else _under(key, networks, origin)
    best = max(network.fit for network in chosen)
    rivals = sorted((n for n in chosen if n.fit == best), key=lambda n: n.rank)
    winner = rivals[0]
    others = [n for n in rivals[1:] if best[1] and not _same(n.state, winner.state)]
    alike = [n.address for n in others if n.rank == winner.rank]
    if alike:
        alike.insert(0, winner.address)
        msg = (
            f"{origin} holds several state dicts that fit the model alike: {listing(alike)}; "
            f"choose one, for example by key={alike[0]!r} (--key {alike[0]})"
        )
        raise CheckpointError(msg)
    if key is None and others:
        msg = (
            f"{origin} holds several state dicts that fit the model: "
            f"{winner.address or 'the top level'!r} is taken, not "
            f"{listing(n.address for n in others)}; choose by key={others[0].address!r} "
            f"(--key {others[0].address})"
        )
        warnings.warn(msg, CheckpointWarning, stacklevel=2)
    return winner


def _under(key: str, networks: list[_Network], origin: str) -> list[_Network]:
    """Return the networks whose address is the key, starts with it, or has it inside."""
    for pattern in (r"{}$", r"{}\.", r".*\.{}(\.|$)"):
        match = re.compile(pattern.format(re.escape(key))).match
        if chosen := [network for network in networks if match(network.address)]:
            return chosen
    best = max(network.fit for network in networks)
    names = [n.address or "(top level)" for n in networks if not n.prefix or n.fit == best]
    msg = f"{origin} has no state dict {key!r}{did_you_mean(key, names)}; it has: {listing(names)}"
    raise CheckpointError(msg)


def _networks(
    entry: str,
    tensors: Any,
    model: nn.Module,
    expected: Mapping[str, Tensor],
    key: str | None,
) -> Iterator[_Network]:
    """List what the model's weights may be in one entry: all of it, or the names under a prefix."""
    if isinstance(tensors, list):
        if averages := _averages(tensors, model):
            yield _Network(entry, "", averages, (len(averages), len(averages)))
        return
    own = _own_names(expected)
    plain = {name: _INSIDE.sub("", name) for name in tensors}
    n_under: dict[str, int] = {"": 0}
    for name in plain.values():
        starts = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
        for start in starts:
            if name[start:] in own:
                n_under[name[:start]] = n_under.get(name[:start], 0) + 1
        if key and (found := re.search(rf"(^|\.){re.escape(key)}\.", name)):
            n_under.setdefault(name[: found.end()], 0)
    for prefix, n in n_under.items():
        inside = [name for name in plain if plain[name].startswith(prefix)]
        of_key = key and f".{key}." in f".{prefix}"
        # Chance agreements in small parts are no network.
        if prefix and not of_key and 2 * n < len(expected) and len(inside) < len(plain):
            continue
        state: StateDict = {}
        for name in sorted(inside, key=lambda name: plain[name] != name):
            rest = plain[name][len(prefix) :]
            state.setdefault(own.get(rest, rest), tensors[name])
        fitting = state.keys() & expected.keys()
        n_same = sum(_same_shape(state[name], expected[name]) for name in fitting)
        outside = tuple(name for name in plain if not plain[name].startswith(prefix))
        yield _Network(entry, prefix, state, (n_same, len(fitting)), outside)


def _own_names(expected: Iterable[str]) -> dict[str, str]:
    """Map the names that files use to the model's own, where that is wrapped or has adapters."""
    own: dict[str, str] = {}
    for change in (
        lambda name: name,
        lambda name: _INSIDE.sub("", name),
        lambda name: re.sub(r"^(module\.)+", "", _INSIDE.sub("", name)),
        lambda name: _PEFT.sub(r"\1", name),
    ):
        changed: dict[str, list[str]] = {}
        for name in expected:
            changed.setdefault(change(name), []).append(name)
        own = {short: names[0] for short, names in changed.items() if len(names) == 1} | own
    return own


def _averages(values: list[Tensor], model: nn.Module) -> StateDict | None:
    """Name the tensors of a list, which torch_ema keeps in the order of the parameters."""
    named = list(model.named_parameters())
    for chosen in (named, [(n, p) for n, p in named if p.requires_grad]):
        if len(chosen) == len(values) and all(
            _same_shape(value, p) for value, (_, p) in zip(values, chosen, strict=True)
        ):
            return {name: value for value, (name, _) in zip(values, chosen, strict=True)}
    return None


def _entries(tree: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Walk a checkpoint for mappings from names to tensors, and for lists of tensors."""
    if isinstance(tree, nn.Module):
        tree = tree.state_dict()
    if isinstance(tree, Placeholder) and tree.state is not None:
        tree = dict(_flat(tree, path)) | tree
    if isinstance(tree, (list, tuple)):
        if tree and all(isinstance(part, Tensor) for part in tree):
            yield path, list(tree)
            return
        tree = {str(i): part for i, part in enumerate(tree) if isinstance(part, Mapping)}
    if not isinstance(tree, Mapping) or depth > 3:
        return
    found = {k: _tensor(v, f"{path}.{k}") for k, v in tree.items() if isinstance(k, str)}
    if tensors := {name: tensor for name, tensor in found.items() if tensor is not None}:
        yield path, tensors
    for name, part in tree.items():
        if isinstance(name, str) and found[name] is None:
            yield from _entries(part, f"{path}.{name}" if path else name, depth + 1)


def _flat(
    thing: Placeholder, path: str, prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, Any]]:
    """List the tensors of a pickled module or a TorchScript program by their names."""
    for name, value in thing.attributes().items():
        if isinstance(value, Placeholder) and _tensor(value, path) is None:
            if depth < 30:
                yield from _flat(value, path, f"{prefix}{name}.", depth + 1)
        elif value is not None:
            yield f"{prefix}{name}", value


def _tensor(value: Any, name: str) -> Tensor | None:
    """Return what is a tensor or an array of numbers; refuse one shard of a larger tensor."""
    if isinstance(value, Placeholder):
        array = value.array()
        if array is not None:
            return torch.from_numpy(array)
        local, size, spec = _local_part(value)
    elif isinstance(value, np.ndarray):
        return torch.from_numpy(value) if value.dtype.kind in "biufc" else None
    else:
        local, size = getattr(value, "_local_tensor", None), getattr(value, "shape", ())
        spec = getattr(value, "_spec", None)
    if not isinstance(local, Tensor):
        return value if isinstance(value, Tensor) else None
    placements = spec.attributes()["placements"] if isinstance(spec, Placeholder) else spec
    if tuple(local.shape) != tuple(size) or "Partial" in repr(placements):
        msg = (
            f"{name.lstrip('.')} is one process's part {tuple(local.shape)} of a tensor "
            f"{tuple(size)}; save the whole by torch.distributed.checkpoint (and give its folder), "
            "or by get_model_state_dict with StateDictOptions(full_state_dict=True)"
        )
        raise CheckpointError(msg)
    return local


def _local_part(value: Placeholder) -> tuple[Any, Any, Any]:
    """Return the local tensor, the whole size and the layout of a DTensor or a ShardedTensor."""
    if "_local_tensor" in (attributes := value.attributes()):
        return attributes["_local_tensor"], value.args[2], attributes.get("_spec")
    if "ShardedTensor" in repr(value) and isinstance(value.state, tuple):
        shards, metadata = value.state[:2]
        if len(shards) == 1:
            return shards[0].attributes()["tensor"], metadata.attributes()["size"], None
    return None, (), None


# Loading


def _check_values(
    network: _Network, model: nn.Module, expected: Mapping[str, Tensor], origin: str
) -> None:
    """Refuse quantised values, and values that differ for one tensor."""
    state = network.state
    marks = [n for n in state if _QUANTISED.search(n) and n not in expected]
    marks += [name for name, tensor in state.items() if tensor.is_quantized]
    if marks:
        msg = (
            f"{origin} holds quantised weights ({listing(marks)}), as GPTQ, AWQ, bitsandbytes and "
            "torch.ao write them, and the model computes in floating point; write them dequantised "
            "(transformers: model.dequantize().save_pretrained(folder)), or give the checkpoint "
            "from before"
        )
        raise CheckpointError(msg)
    whole = [
        f"{name} ({str(state[name].dtype).removeprefix('torch.')})"
        for name in expected
        if name in state and expected[name].is_floating_point() and _is_integer(state[name])
    ]
    if whole:
        msg = (
            f"{origin} holds integers where the model has floating-point weights "
            f"({len(whole)}): {listing(whole)}; quantised without its scales? Give the "
            "checkpoint from before, or dequantise it"
        )
        raise CheckpointError(msg)
    for name, others in _aliases(model).items():
        for other in others:
            if name in state and other in state and not torch.equal(state[name], state[other]):
                msg = (
                    f"{name} and {other} are one tensor in the model {type(model).__name__}, but "
                    f"{origin} holds other values for each; build the model without tying them"
                )
                raise CheckpointError(msg)


def _load(
    network: _Network,
    model: nn.Module,
    expected: Mapping[str, Tensor],
    origin: str,
    *,
    partial: bool,
    by_key: bool,
) -> None:
    """Load, and say what is left out or stays; raise with every misfit listed."""
    state = network.state
    misshaped = [
        f"{name} {tuple(state[name].shape)}, the model has {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and not _same_shape(state[name], tensor)
    ]
    fitting = {n: t for n, t in state.items() if n not in expected or _same_shape(t, expected[n])}
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
        and not name.endswith(_OPTIONAL)
        and not any(other in state for other in aliases.get(name, ()))
    ]
    unexpected = [name for name in report.unexpected_keys if name not in _IGNORED]
    n_same = network.fit[1]
    adapters = n_same > 0 and all(n in expected and _ADAPTER.search(f"{n}.") for n in state)
    if misshaped or (missing and not (adapters or (partial and n_same))):
        _misfit(origin, model, n_same, len(expected), missing, unexpected, misshaped)
    if missing:
        kind = "holds adapters alone" if adapters else "is loaded in part"
        msg = (
            f"{origin} {kind}: {len(missing)} of {len(expected)} tensors stay as model() made "
            f"them: {listing(missing)}"
        )
        warnings.warn(msg, CheckpointWarning, stacklevel=2)
    left_out = unexpected + ([] if by_key else list(network.outside))
    if left_out := [name for name in left_out if name not in _IGNORED]:
        msg = (
            f"{origin} holds {len(left_out)} tensors that the model {type(model).__name__} does "
            f"not have, which are left out: {listing(left_out)}"
        )
        warnings.warn(msg, CheckpointWarning, stacklevel=2)


def _misfit(
    origin: str,
    model: nn.Module,
    n_same: int,
    n_expected: int,
    missing: list[str],
    unexpected: list[str],
    misshaped: list[str],
) -> None:
    """Raise with the names that do not agree."""
    parts = [
        f"{label} ({len(names)}): {listing(names)}"
        for label, names in (
            ("missing", [n + did_you_mean(n, unexpected, most=1) for n in missing]),
            ("unexpected", [n + did_you_mean(n, missing, most=1) for n in unexpected]),
            ("wrong shape", misshaped),
        )
        if names
    ]
    if shard := SHARD.search(origin):
        parts.append(f"it is one of {int(shard[3])} shards: give their folder or their index")
    elif missing and n_same and not misshaped:
        parts.append("to keep the model's own weights where it has none: partial=True (--partial)")
    msg = (
        f"{origin} does not fit the model {type(model).__name__}: {n_same} of {n_expected} "
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


def _same_shape(value: Any, own: Any) -> bool:
    if not isinstance(own, Tensor) or nn.parameter.is_lazy(own):
        return True
    return tuple(value.shape) == tuple(own.shape)


def _same(one: StateDict, two: StateDict) -> bool:
    return one.keys() == two.keys() and all(
        one[name].shape == two[name].shape and torch.equal(one[name], two[name]) for name in one
    )


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _is_finite(tensor: Any) -> bool:
    if not isinstance(tensor, Tensor) or nn.parameter.is_lazy(tensor) or _is_integer(tensor):
        return True
    return bool(torch.isfinite(tensor).all())


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
