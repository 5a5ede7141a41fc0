"""What a user imports from a folder says what it takes, returns and raises."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import pytest

import landscape

# The floors that only the package itself calls: a sentence each is enough.
INTERNAL = ("landscape.evaluate", "landscape.cli", "landscape.tasks")


def exported() -> Iterator[Any]:
    folders = [f"landscape.{m.name}" for m in pkgutil.iter_modules(landscape.__path__) if m.ispkg]
    for folder in ["landscape", *folders]:
        if folder not in INTERNAL:
            module = importlib.import_module(folder)
            for name in getattr(module, "__all__", ()):
                found = getattr(module, name)
                if inspect.isfunction(found):
                    yield pytest.param(found, id=f"{folder}.{name}")
                elif inspect.isclass(found):
                    for called, method in vars(found).items():
                        if inspect.isfunction(method) and not called.startswith("_"):
                            yield pytest.param(method, id=f"{folder}.{name}.{called}")


@pytest.mark.parametrize("function", list(exported()))
def test_what_is_exported_is_described(function: Any) -> None:
    text = inspect.getdoc(function) or ""
    assert text, "no docstring"
    if "\n" not in text:  # whose name and one sentence say it all
        return
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    sections = re.split(r"^(Args|Returns|Yields|Raises|References?):\s*$", text, flags=re.MULTILINE)
    described = dict(zip(sections[1::2], sections[2::2], strict=True))
    missing = [
        p.name
        for p in parameters
        if not re.search(rf"^ +\**{p.name}(, [\w*, ]+)?:", described.get("Args", ""), re.MULTILINE)
    ]
    assert missing == []
    returned = inspect.signature(function).return_annotation
    if returned not in (None, "None") and not str(returned).startswith("Iterator"):
        assert "Returns" in described or "Yields" in described
