"""What a loss, a metric or a model computes, as a digest: the same in every process.

Two computations that give the same numbers should have one digest, and two that do not must not:
by it the study knows what was measured already. Code is followed into its constants, defaults,
closures and the globals that it names; objects into their attributes and the code of their class.
Of libraries only what the user can set is looked at; of torch, NumPy and Python itself, whose
versions are recorded, the code is not. A container or tensor that is named a cache is taken for
something that the code fills.
"""

from __future__ import annotations

import argparse
import dis
import functools
import operator
import os
import re
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.problem.digest import PLAIN, Content, attributes_of, parts_of
from landscape.problem.origins import is_pythons, origin_of

_BUILT_IN = (
    *(types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType),
    *(types.MethodWrapperType, types.ClassMethodDescriptorType, np.ufunc),
)
_OPAQUE = (types.MemberDescriptorType, types.GetSetDescriptorType)
_OPEN = (types.SimpleNamespace, argparse.Namespace)  # of Python itself, and the user's to fill
_INTERNAL = frozenset(vars(nn.Module()))  # what every module keeps, `training` among it
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_DEEPEST = 3  # objects of libraries within each other


def digest_of(*computed: Any) -> str:
    """Digest what callables compute, as far as Python lets one see it.

    Args:
        *computed: modules (settings, tensors and code), functions (compiled code and the values
            that it uses), any objects that can be called, and values.

    Returns:
        A short hexadecimal digest, the same in every process.
    """
    content = Computation()
    content.add(computed[0] if len(computed) == 1 else computed)
    return content.hexdigest()


def digest_of_layers(model: nn.Module) -> str:
    """Digest a model without its tensors: settings and code of each of its layers.

    Args:
        model: the network.

    Returns:
        A short hexadecimal digest; tensors that layers hold are not in it, see `loose_tensors`.
    """
    content = Computation(_ids_of_tensors(model))
    content.add([(name, *content.layer(part)) for name, part in model.named_modules()])
    return content.hexdigest()


def look_of(model: nn.Module) -> tuple[str, list[object]]:
    """Describe a model by what its layers hold, without looking into that.

    Args:
        model: the network.

    Returns:
        A text that is the same while the layers hold the same objects and numbers; and these
        objects, to be held as long as the text is used.
    """
    held: list[object] = []
    look = []
    for name, part in model.named_modules():
        settings = _settings_of(part)
        held += [type(part), *settings.values()]
        told = [(k, repr(v) if isinstance(v, PLAIN) else id(v)) for k, v in settings.items()]
        hooks = [len(getattr(part, hook)) for hook in _HOOKS]
        look.append((name, id(type(part)), part.extra_repr(), told, hooks))
    return repr(look), held


def loose_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """List the tensors of a model that no state dict holds, and that it computes with all the same.

    Args:
        model: the network.

    Yields:
        Names and values of buffers that are not persistent, and of tensors in plain attributes.
    """
    for name, part in model.named_modules():
        for key in sorted(part._non_persistent_buffers_set):
            buffer = part._buffers.get(key)
            if buffer is not None and not _is_cache(key, buffer):
                yield f"{name}.{key}", buffer
    kept = _ids_of_tensors(model)
    for name, part in model.named_modules():
        if origin_of(type(part).__module__) == "recorded":
            continue  # torch's own layers keep views of their parameters
        for key, value in sorted(vars(part).items()):
            if key not in _INTERNAL and not _is_cache(key, value):
                for place, tensor in _tensors_in(value):
                    if id(tensor) not in kept:
                        yield f"{name}.{key}{place}", tensor


class Computation(Content):
    """A SHA-256 of what is computed: code, and the values that it uses.

    Args:
        without: ids of tensors that do not count.
    """

    def __init__(self, without: Set[int] = frozenset()) -> None:
        super().__init__()
        self._without = without
        self._depth = 0
        # What one leads to is added after it: code goes through hundreds of functions.
        self._rest: deque[Callable[[], None]] = deque()
        self._numbers: dict[int, tuple[int, object]] = {}

    def layer(self, part: nn.Module) -> tuple[Any, ...]:
        """Return the parts of a layer that count, but for tensors and the layers inside it."""
        hooks = [list(getattr(part, name).values()) for name in _HOOKS]
        settings = {key: _without_tensors(value) for key, value in _settings_of(part).items()}
        script = _script(part) if isinstance(part, torch.jit.ScriptModule) else ""
        return type(part), _without_addresses(part.extra_repr()), settings, script, *hooks

    def _add_tensor(self, tensor: Tensor) -> None:
        if id(tensor) in self._without:
            self._mark("of the model")
        else:
            super()._add_tensor(tensor)

    def _add(self, value: Any) -> None:
        if isinstance(value, types.ModuleType) and origin_of(value.__name__) == "own":
            self._mark("module")  # what is used of it is added where it is used
        elif isinstance(value, types.FunctionType):
            self._put_off(value, lambda: self._add_function(value))
        elif isinstance(value, type):
            self._put_off(value, lambda: self._add_class(value))
        else:
            super()._add(value)

    def _put_off(self, value: object, add: Callable[[], None]) -> None:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._numbers), value
            self._rest.append(add)
        self._mark(f"number {self._numbers[id(value)][0]}")

    def _add_rest(self) -> None:
        self._level = 1
        while self._rest:
            self._rest.popleft()()
        self._level = 0

    def _add_parts(self, value: Any) -> None:
        if isinstance(value, types.CodeType):
            self._add_code(value)
        elif isinstance(value, types.MethodType):
            self._add_named(enumerate((value.__func__, value.__self__)))
        elif isinstance(value, functools.partial):
            self._add_named(enumerate((value.func, value.args, value.keywords)))
        elif isinstance(value, nn.Module):
            self._add_module(value)
        elif isinstance(value, _BUILT_IN):
            self._add_built_in(value)
        else:
            self._add_object(value)

    def _add_function(self, function: types.FunctionType) -> None:
        self._mark(function.__qualname__)
        compiled = vars(function).get("_torchdynamo_orig_callable")
        if compiled is not None:
            self._add(compiled)
            return
        space = function.__globals__
        origin = origin_of(space.get("__name__"), space.get("__file__"))
        if origin == "recorded":
            self._mark(str(function.__module__))
        else:
            self._add(function.__code__)
        self._add(function.__defaults__)
        self._add(function.__kwdefaults__)
        self._add([_content_of(cell) for cell in function.__closure__ or ()])
        self._add_named(sorted(vars(function).items()))
        if origin == "own":
            for name in sorted(_names_in(function.__code__) & space.keys()):
                if not _is_cache(name, space[name]):
                    self._add_named([(name, space[name])])
                if isinstance(space[name], types.ModuleType):
                    self._add_used(space[name], function.__code__)

    def _add_used(self, module: types.ModuleType, code: types.CodeType) -> None:
        """Add what code takes from a module of the user's, by way of its modules too."""
        names = sorted(_attributes_in(code))
        todo, done = [module], {module.__name__}
        while todo:
            one = todo.pop()
            if origin_of(one.__name__, getattr(one, "__file__", None)) != "own":
                continue
            for name in names:
                used = vars(one).get(name)
                if isinstance(used, types.ModuleType):
                    if used.__name__ not in done:
                        done.add(used.__name__)
                        todo.append(used)
                elif name in vars(one) and not _is_cache(name, used):
                    self._add_named([(name, used)])

    def _add_code(self, code: types.CodeType) -> None:
        self._digest.update(code.co_code + repr(code.co_names).encode())
        for constant in code.co_consts:
            self._add(constant)

    def _add_class(self, cls: type) -> None:
        self._mark(cls.__qualname__)
        origin = origin_of(cls.__module__)
        if origin == "recorded":
            self._mark(cls.__module__)
            return
        for base in cls.__bases__:
            self._add(base)
        for name, member in sorted(vars(cls).items()):
            codes = _code_in(member)
            if codes:
                self._add_named((name, code) for code in codes)
            elif origin == "own" and not _is_uninteresting(name, member):
                self._add_named([(name, member)])

    def _add_module(self, module: nn.Module) -> None:
        self._mark(_without_addresses(repr(module)))
        for name, part in module.named_modules():
            self._add_named([(name, self.layer(part))])
        self._add_named(sorted(module.state_dict().items()))
        self._add_named(loose_tensors(module))

    def _add_built_in(self, function: Any) -> None:
        self._mark(f"{getattr(function, '__module__', '')} {getattr(function, '__qualname__', '')}")
        self._mark(str(getattr(function, "__name__", "")))
        owner = getattr(function, "__self__", None)
        if not isinstance(owner, (type, types.ModuleType)):
            self._add(owner)

    def _add_object(self, value: Any) -> None:
        origin = origin_of(type(value).__module__)
        if isinstance(value, type(os.environ)):
            return  # another one in every process
        if origin == "own":
            self._add(type(value))
            held = attributes_of(value)
            self._put_off(value, lambda: self._add_named(sorted(held.items())))
        parts = parts_of(value)
        if parts is not None:
            self._add_named(parts)
        elif isinstance(value, Set):
            self._add_set(value)
        elif isinstance(value, _OPEN):
            self._add_named(sorted(attributes_of(value).items()))
        elif isinstance(value, torch.jit.ScriptFunction):
            self._mark(_script(value))
        elif isinstance(value, (operator.itemgetter, operator.attrgetter, operator.methodcaller)):
            self._add(value.__reduce__()[1])
        elif origin != "own":
            self._add_foreign(value)

    def _add_foreign(self, value: Any) -> None:
        """Add an object of a library: what it lets one set, for what it hides changes in use."""
        held = attributes_of(value)
        self._mark(f"{type(value).__module__} {held.get('__name__', '')!s}")
        self._add(held.get("__wrapped__"))  # as by functools.lru_cache
        if is_pythons(type(value).__module__) or self._depth == _DEEPEST:
            return
        self._depth += 1
        self._add_named(sorted((k, v) for k, v in held.items() if not k.startswith("_")))
        self._depth -= 1


def _settings_of(part: nn.Module) -> dict[str, Any]:
    """Return what a layer keeps in attributes; of libraries' layers only what is theirs to set."""
    if type(part).__module__.startswith("torch._"):  # torch.compile's wrapper
        return {}
    origin = origin_of(type(part).__module__)
    return {
        key: value
        for key, value in sorted(vars(part).items())
        if key not in _INTERNAL
        and not _is_cache(key, value)
        and (origin == "own" or isinstance(value, PLAIN) or not key.startswith("_"))
        and not ((origin == "recorded" or key.startswith("_")) and _is_foreign(value))
    }


def _is_cache(name: str, value: Any) -> bool:
    filled = isinstance(value, (Tensor, np.ndarray, Mapping, Set, list, tuple, type(None)))
    return filled and "cache" in name.lower()


def _is_foreign(value: Any) -> bool:
    """Tell an object of a library, such as a trainer that holds the module, from a setting."""
    looked_into = (*PLAIN, Tensor, np.ndarray, type, types.FunctionType, *_BUILT_IN, *_OPEN)
    held = isinstance(value, looked_into) or parts_of(value) is not None
    return not held and origin_of(type(value).__module__) != "own"


def _without_tensors(value: Any, within: tuple[int, ...] = ()) -> Any:
    if isinstance(value, Tensor) or id(value) in within:
        return "tensor"
    parts = parts_of(value) if isinstance(value, (tuple, list, dict)) else None
    if not parts or not any(True for _ in _tensors_in(value)):
        return value
    return [(place, _without_tensors(part, (*within, id(value)))) for place, part in parts]


def _tensors_in(
    value: Any, place: str = "", within: tuple[int, ...] = ()
) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, (tuple, list, dict)) and id(value) not in within:
        for key, part in parts_of(value) or ():
            yield from _tensors_in(part, f"{place}.{key}", (*within, id(value)))


def _ids_of_tensors(model: nn.Module) -> set[int]:
    return {id(t) for t in (*model.parameters(), *model.buffers())}


def _code_in(member: Any) -> list[Any]:
    """Return the functions of a member of a class, those behind a property or a method too."""
    if isinstance(member, types.FunctionType):
        return [member]
    if isinstance(member, (staticmethod, classmethod)):
        return [member.__func__]
    if isinstance(member, property):
        return [code for code in (member.fget, member.fset, member.fdel) if code is not None]
    if isinstance(member, functools.cached_property):
        return [member.func]
    if isinstance(member, functools.partialmethod):
        return [(member.func, member.args, member.keywords)]
    return []


def _script(scripted: Any) -> str:
    # The number counts what was scripted before.
    return re.sub(r"___torch_mangle_\d+", "", str(scripted.code))


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _is_uninteresting(name: str, member: Any) -> bool:
    special = name.startswith("__") and name.endswith("__")
    return special or isinstance(member, _OPAQUE) or _is_cache(name, member)


def _content_of(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return None


def _names_in(code: types.CodeType) -> set[str]:
    """List the globals that a function reads, itself or in functions inside it."""
    inner = [_names_in(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    own = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    return own.union(*inner)


def _attributes_in(code: types.CodeType) -> set[str]:
    inner = [_attributes_in(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*inner)
