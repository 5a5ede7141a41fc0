"""The state dict in a checkpoint, found and fitted to a model.

Bare or nested among other things, under a prefix, as averages in a list, or as adapters alone.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
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
_USUAL_KEYS = [
    *("", "state_dict", "model_state_dict", "model", "net", "network", "module", "weights"),
    *("params", "ema", "ema_state_dict", "model_ema"),
]
_INSIDE = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Written by wrappers or by newer versions of a layer, and without effect on a landscape.
_IGNORED = ("n_averaged", "_metadata")
_OPTIONAL = ("num_batches_tracked", "_extra_state")
_ADAPTER = r"(^|[._])(lora|ia3|vera|oft|hada|dora|adapters?)[._]"
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
    fit: tuple[int, int]  # how many names agree in shape too, and in name
    outside: tuple[str, ...] = ()
    from_list: bool = False

    @property
    def address(self) -> str:
        return ".".join(filter(None, [self.entry, self.prefix.rstrip(".")]))

    @property
    def title(self) -> str:
        return self.address or "(top level)"

    @property
    def rank(self) -> tuple[int, bool]:
        last = self.entry.rsplit(".", 1)[-1]
        return (*_USUAL_KEYS, last).index(last), bool(self.prefix)


def load_weights(
    model: nn.Module,
    source: str | PathLike[str] | Mapping[str, Any] | nn.Module,
    *,
    key: str | None = None,
    unsafe_pickle: bool = False,
    partial: bool = False,
) -> None:
    """Load a file, folder, state dict or module into a model, in place; see `Problem.at`."""
    tree, origin = source, "the state dict"
    if not isinstance(source, (Mapping, nn.Module)):
        tree, origin = read_checkpoint(source, unsafe_pickle=unsafe_pickle), str(source)
    expected = model.state_dict()
    network = _find_network(tree, model, expected, key, origin)
    _check_values(network.state, model, expected, origin)
    _load(network, model, expected, origin, partial)


# Finding


def _find_network(
    tree: Any, model: nn.Module, expected: StateDict, key: str | None, origin: str
) -> _Network:
    networks: list[_Network] = []
    for entry, tensors in _entries(tree):
        if isinstance(tensors, list):
            networks += _averages(entry, tensors, model)
        else:
            networks += _networks(entry, tensors, model, expected, key)
    if not networks:
        msg = f"{origin} holds no state dict (names to tensors); found {_outline(tree)}"
        raise CheckpointError(msg)
    best, *rivals = _best(networks if key is None else _under(key, networks, origin))
    same = [name for name in expected if isinstance(best.state.get(name), Tensor)]
    others = [n for n in rivals if best.fit[1] and not _agree(n.state, best.state, same)]
    name, *names = [n.title for n in (best, *others)]
    several = f"{origin} holds several state dicts that fit the model"
    if alike := [n.address for n in others if n.rank == best.rank]:
        choice = f"choose one, for example by key={name!r} (--key {name})"
        msg = f"{several} alike: {listing([name, *alike])}; {choice}"
        raise CheckpointError(msg)
    if key is None and others:
        choice = f"choose by key={names[0]!r} (--key {names[0]})"
        msg = f"{several}: {name!r} is taken, not {listing(names)}; {choice}"
        warnings.warn(msg, CheckpointWarning, stacklevel=2)
    if best.from_list and (named := [n for n in networks if not n.from_list]):
        # Averages are of parameters only; the buffers are those beside them.
        best = replace(best, state=_best(named)[0].state | best.state)
    return best if key is None else replace(best, outside=())


def _best(networks: list[_Network]) -> list[_Network]:
    most = max(network.fit for network in networks)
    return sorted((n for n in networks if n.fit == most), key=lambda network: network.rank)


def _under(key: str, networks: list[_Network], origin: str) -> list[_Network]:
    """Return the networks whose address starts with the key, or else has it inside."""
    for start in ("", r".*\."):
        pattern = re.compile(rf"{start}{re.escape(key)}(\.|$)")
        if chosen := [network for network in networks if pattern.match(network.address)]:
            return chosen
    most = max(network.fit for network in networks)
    names = [n.title for n in networks if not n.prefix or n.fit == most]
    msg = f"{origin} has no state dict {key!r}{did_you_mean(key, names)}; it has: {listing(names)}"
    raise CheckpointError(msg)


def _networks(
    entry: str, tensors: StateDict, model: nn.Module, expected: StateDict, key: str | None
) -> Iterator[_Network]:
    """List what the weights may be in one entry: all of it, or the names under a prefix."""
    own = _own_names(expected, _of_peft(model))
    # A model around one network takes that network's bare names.
    around = len({name.split(".")[0] for name in own}) == 1
    bare = {name.partition(".")[2]: full for name, full in own.items()} if around else {}
    plain = {name: _INSIDE.sub("", name) for name in tensors}
    n_under = {"": 0}
    for name in plain.values():
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", name))):
            if name[start:] in own or (start == 0 and name in bare):
                n_under[name[:start]] = n_under.get(name[:start], 0) + 1
        if key and (place := re.search(rf"(^|\.){re.escape(key)}\.", name)):
            n_under.setdefault(name[: place.end()], 0)
    for prefix, n in n_under.items():
        inside = [name for name in plain if plain[name].startswith(prefix)]
        # Chance agreements in small parts are no network.
        of_key = key is not None and f".{key}." in f".{prefix}"
        if 2 * n < len(expected) and len(inside) < len(plain) and not of_key:
            continue
        state: StateDict = {}
        for name in sorted(inside, key=lambda name: plain[name] != name):
            rest = plain[name].removeprefix(prefix)
            full = own.get(rest) or (not prefix and bare.get(rest)) or rest
            state.setdefault(full, tensors[name])
        fitting = [name for name in state if name in expected]
        n_same = sum(_same_shape(state[name], expected[name]) for name in fitting)
        outside = tuple(name for name in plain if not plain[name].startswith(prefix))
        yield _Network(entry, prefix, state, (n_same, len(fitting)), outside)


def _of_peft(model: nn.Module) -> str:
    """Return the pattern of what PEFT leaves out in files: the adapter in lora_A.default.weight."""
    names = {name for part in model.modules() for name in getattr(part, "peft_config", None) or ()}
    return rf"\.(modules_to_save\.)?({'|'.join(map(re.escape, names)) or '(?!)'})(?=\.|$)"


def _own_names(expected: Iterable[str], of_peft: str) -> dict[str, str]:
    """Map the names that files use to the model's own, where that is wrapped or has adapters."""
    own: dict[str, str] = {}
    for shorter in (
        lambda name: name,
        lambda name: re.sub(r"^(module\.)*", "", _INSIDE.sub("", name)),
        lambda name: re.sub(r"(magnitude_vector)\.weight$", r"\1", re.sub(of_peft, "", name)),
    ):
        names: dict[str, list[str]] = {}
        for name in expected:
            names.setdefault(shorter(name), []).append(name)
        own = {short: alike[0] for short, alike in names.items() if len(alike) == 1} | own
    return own


def _averages(entry: str, values: list[Tensor], model: nn.Module) -> Iterator[_Network]:
    """Name the tensors of a list, which torch_ema keeps in the order of the parameters."""
    parameters = dict(model.named_parameters())
    trainable = {name: p for name, p in parameters.items() if p.requires_grad}
    for chosen in (parameters, trainable):
        if len(chosen) == len(values) and all(map(_same_shape, values, chosen.values())):
            state = dict(zip(chosen, values, strict=True))
            yield _Network(entry, "", state, (len(state), len(state)), from_list=True)
            return


def _entries(tree: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Walk a checkpoint for mappings from names to tensors, and for lists of tensors."""
    if isinstance(tree, nn.Module):
        tree = tree.state_dict()
    if isinstance(tree, Placeholder):
        tree = dict(_flat(tree)) | tree
    if isinstance(tree, (list, tuple)):
        if tree and all(isinstance(part, Tensor) for part in tree):
            yield path, list(tree)
        tree = {str(i): part for i, part in enumerate(tree) if isinstance(part, Mapping)}
    if not isinstance(tree, Mapping) or depth > 3:
        return
    values = {k: _tensor(v, f"{path}.{k}") for k, v in tree.items() if isinstance(k, str)}
    if tensors := {name: tensor for name, tensor in values.items() if tensor is not None}:
        yield path, tensors | {k: tree[k] for k in values if k.endswith("_extra_state")}
    for name in (name for name, tensor in values.items() if tensor is None):
        yield from _entries(tree[name], f"{path}.{name}" if path else name, depth + 1)


def _flat(thing: Placeholder, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """List the tensors of a pickled module or a TorchScript program by their names."""
    for name, value in thing.attributes().items():
        if isinstance(value, Placeholder) and depth < 30 and _tensor(value, name) is None:
            yield from _flat(value, f"{prefix}{name}.", depth + 1)
        elif value is not None:
            yield f"{prefix}{name}", value


def _tensor(value: Any, name: str) -> Tensor | None:
    """Return what is a tensor or an array of numbers; refuse a shard of a larger tensor."""
    name = name.lstrip(".")
    array = value.array() if isinstance(value, Placeholder) else value
    if isinstance(array, np.ndarray):
        return torch.from_numpy(array) if array.dtype.kind in "biufc" else None
    local, size, layout = _local_part(value)
    if isinstance(value, Tensor) and value.is_meta:
        msg = f"{name} was saved on the meta device, without its values"
        raise CheckpointError(msg)
    if not isinstance(local, Tensor):
        return value if isinstance(value, Tensor) else None
    if tuple(local.shape) != tuple(size) or "Partial" in repr(layout):
        msg = (
            f"{name} is one process's part {tuple(local.shape)} of a tensor "
            f"{tuple(size)}; save the whole by torch.distributed.checkpoint (and give its folder), "
            "or by get_model_state_dict with StateDictOptions(full_state_dict=True)"
        )
        raise CheckpointError(msg)
    return local


def _local_part(value: Any) -> tuple[Any, Any, Any]:
    """Return the local tensor, the whole size and the layout of a DTensor or a ShardedTensor."""
    if not isinstance(value, Placeholder):
        return getattr(value, "_local_tensor", None), getattr(value, "shape", ()), value
    inside = value.attributes()
    if isinstance(inside.get("_spec"), Placeholder):
        return inside["_local_tensor"], value.args[2], inside["_spec"].attributes()["placements"]
    if "ShardedTensor" in f"{value}{value.args[:1]}" and isinstance(value.state, tuple):
        shards, about = value.state[:2]
        size = about.attributes()["size"]
        return (shards[0].attributes()["tensor"] if shards else torch.empty(0)), size, None
    return None, (), None


# Loading


def _check_values(state: StateDict, model: nn.Module, expected: StateDict, origin: str) -> None:
    """Refuse values that are quantised, not finite, or different for one tensor."""
    own = {name: value for name, value in expected.items() if isinstance(value, Tensor)}
    both = {name: state[name] for name in own if isinstance(state.get(name), Tensor)}
    wrong = [
        name
        for name, value in state.items()
        if getattr(value, "is_quantized", False)
        or (name not in expected and _QUANTISED.search(name))
    ]
    kind = "quantised weights"
    if not wrong:
        kind = "integers or complex numbers for floating-point weights"
        wrong = [
            f"{name} ({str(value.dtype).removeprefix('torch.')})"
            for name, value in both.items()
            if own[name].is_floating_point()
            and not (value.is_floating_point() or value.dtype == torch.bool)
        ]
    if wrong:
        msg = (
            f"{origin} holds {kind} ({listing(wrong)}); give the checkpoint from before "
            "quantisation, or dequantise this one (transformers: "
            "model.dequantize().save_pretrained(folder))"
        )
        raise CheckpointError(msg)
    if bad := [name for name, value in both.items() if _diverged(value, own[name])]:
        msg = (
            f"{origin} holds NaN or infinity in {len(bad)} tensors ({listing(bad)}): the "
            "training has diverged; choose an earlier checkpoint"
        )
        raise CheckpointError(msg)
    for names in _ties(model):
        name, *others = [name for name in names if name in state] or [""]
        if unlike := [other for other in others if not torch.equal(state[name], state[other])]:
            msg = (
                f"{name} and {unlike[0]} are one tensor in the model {type(model).__name__}, but "
                f"{origin} holds other values for each; build the model without tying them"
            )
            raise CheckpointError(msg)


def _load(
    network: _Network, model: nn.Module, expected: StateDict, origin: str, partial: bool
) -> None:
    """Load, and say what is left out or stays; raise with every misfit listed."""
    state, n_same = network.state, network.fit[1]
    fitting = {n: t for n, t in state.items() if n not in expected or _same_shape(t, expected[n])}
    misshaped = [
        f"{name} {tuple(state[name].shape)}, the model has {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and name not in fitting
    ]
    # By torch itself, so that the layers' own rules for files of older versions apply.
    try:
        report = model.load_state_dict(fitting, strict=False)
    except RuntimeError as error:
        msg = f"{origin} does not fit the model {type(model).__name__}: {error}"
        raise CheckpointError(msg) from error
    present = {n for names in _ties(model) for n in names if state.keys() & set(names)} | {*state}
    absent = [name for name in report.missing_keys if name not in present]
    missing = [n for n in absent if n not in _IGNORED and not n.endswith(_OPTIONAL)]
    unexpected = [name for name in report.unexpected_keys if name not in _IGNORED]
    left_out = unexpected + [name for name in network.outside if name not in _IGNORED]
    adapter = re.compile(f"{_ADAPTER}|{_of_peft(model)}")
    adapters = all(name in expected and adapter.search(f"{name}.") for name in state)
    if misshaped or (missing and not (n_same and (partial or adapters))):
        lists = {
            "missing": [name + did_you_mean(name, unexpected, most=1) for name in missing],
            "unexpected": [name + did_you_mean(name, expected, most=1) for name in unexpected],
            "wrong shape": misshaped,
        }
        lines = [f"{label} ({len(n)}): {listing(n)}" for label, n in lists.items() if n]
        if shard := SHARD.search(origin):
            lines.append(f"it is one of {int(shard[3])} shards: give their folder or their index")
        elif n_same and not misshaped:
            lines.append("to keep the model's own where there is none: partial=True (--partial)")
        head = f"{origin} does not fit the model {type(model).__name__}: {n_same} of "
        raise CheckpointError("\n  ".join([f"{head}{len(expected)} names agree.", *lines]))
    if missing:
        kind = "holds adapters alone" if adapters else "is loaded in part"
        stay = f"{len(missing)} of {len(expected)} tensors stay as model() made them"
        msg = f"{origin} {kind}: {stay}: {listing(missing)}"
        warnings.warn(msg, CheckpointWarning, stacklevel=3)
    if left_out:
        msg = f"{origin} holds {len(left_out)} tensors that the model lacks, which are left out: "
        warnings.warn(msg + listing(left_out), CheckpointWarning, stacklevel=3)


def _ties(model: nn.Module) -> list[list[str]]:
    """List all names of each tied tensor; safetensors files keep only one of them."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            names.setdefault(id(tensor), []).append(name)
    return [alike for alike in names.values() if len(alike) > 1]


def _same_shape(value: Any, own: Any) -> bool:
    fixed = isinstance(value, Tensor) and isinstance(own, Tensor) and not nn.parameter.is_lazy(own)
    return not fixed or value.shape == own.shape


def _agree(one: StateDict, two: StateDict, names: Iterable[str]) -> bool:
    return all(n in one and one[n].shape == two[n].shape and one[n].equal(two[n]) for n in names)


def _diverged(tensor: Tensor, own: Tensor) -> bool:
    """Tell whether a tensor is not finite, except as the fresh model has it: a mask of -inf."""
    if nn.parameter.is_lazy(own):
        return not bool(torch.isfinite(tensor).all())
    cast = tensor.to(own.dtype)  # which may overflow
    if cast.layout != torch.strided:
        return not bool(torch.isfinite(cast._values() if cast.is_sparse else cast.values()).all())
    return not (torch.isfinite(cast).all() or torch.equal(cast, own.to(cast.device)))


def _outline(tree: Any) -> str:
    if isinstance(tree, Placeholder):
        return f"an object {tree}"
    if isinstance(tree, Mapping):
        return f"a {type(tree).__name__} with the keys {listing(map(str, tree)) or '(none)'}"
    return f"a {type(tree).__name__}"
