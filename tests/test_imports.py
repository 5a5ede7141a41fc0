"""What importing costs, and who may import whom."""

from __future__ import annotations

import ast
import builtins
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A module imports only from its own layer or from those before it. A folder stands for all that
# is in it; a longer name wins over a shorter one.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "landscape",
        "errors",
        "checks",
        "choices",
        "wording",
        "files",
        "intervals",
        "results",
        "stats",
        "precision",
        "processes",
        "progress",
        "randomness",
        "threads",
        "_version",
        "theory",
    ),
    ("linalg", "optim", "study", "plots", "export"),
    ("problem", "tasks", "training"),
    ("evaluate", "operators"),
    ("measurement", "loss"),
    ("sharpness", "curvature", "stability", "surface"),
    ("callbacks", "compare", "report", "doctor"),
    ("cli", "__main__"),
)
NETWORKS = {"torch", "safetensors"}
HEAVY = ("torch", "matplotlib", "plotly", "scipy", "numpy", "safetensors", "sklearn")


def modules() -> dict[str, Path]:
    """Every module of the library and of the command line, by its dotted name."""
    found = {}
    for folder, package in (("landscape", "landscape"), ("cli", "landscape.cli")):
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = [*package.split("."), *file.relative_to(ROOT / folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def at_module_level(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from at_module_level(ast.Module(node.orelse, []))
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from at_module_level(node)


def imported(name: str, file: Path) -> set[str]:
    """What a module imports when it is imported, by the names that the import statements give."""
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in at_module_level(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: (imported(name, file) & known.keys()) - {name} for name, file in known.items()}


def layer(name: str) -> int | None:
    parts = name.removeprefix("landscape.").split(".")
    for n in range(len(parts), 0, -1):
        for number, names in enumerate(LAYERS):
            if ".".join(parts[:n]) in names:
                return number
    return None


def upwards(edges: Mapping[str, set[str]]) -> list[str]:
    """The imports that go up."""
    return [
        f"{name} (layer {layer(name)}) imports {other} (layer {layer(other)})"
        for name, others in edges.items()
        for other in sorted(others)
        if (layer(other) or 0) > (layer(name) or 0)
    ]


def cycle(edges: Mapping[str, set[str]]) -> list[str]:
    """The modules of one cycle, if there is any."""
    # A package and its own modules know each other: what counts is the module that is meant.
    direct = {
        name: {o for o in others if not name.startswith(f"{o}.")} for name, others in edges.items()
    }
    try:
        TopologicalSorter(direct).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_module_has_a_layer() -> None:
    assert [name for name in modules() if layer(name) is None] == []
    assert len(modules()) > 40


def test_every_folder_is_in_the_wheel() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    listed = set(re.findall(r'^  "(landscape[\w.]*)",$', text, re.MULTILINE))
    assert listed == {name for name, file in modules().items() if file.name == "__init__.py"}


def test_imports_go_down_only() -> None:
    assert upwards(graph()) == []


def test_no_module_hides_a_builtin_from_its_package() -> None:
    # `from . import list`, or an import of package.list by anybody, sets the package's name list.
    hidden = {name for name in modules() if hasattr(builtins, name.rpartition(".")[2])}
    assert hidden == set()


def test_there_are_no_cycles() -> None:
    assert cycle(graph()) == []


def test_algorithms_know_no_network() -> None:
    edges = graph()
    for name in edges:
        if name.startswith("landscape.linalg"):
            assert not {o for o in edges[name] if (layer(o) or 0) == layer("problem")}, name


@pytest.mark.parametrize(
    "part", ["plots", "study", "export", "results", "errors", "measured", "report"]
)
def test_what_only_reads_results_needs_no_torch(part: str) -> None:
    known = modules()
    for name, file in known.items():
        if name.startswith(f"landscape.{part}"):
            roots = {other.split(".")[0] for other in imported(name, file)}
            assert not roots & NETWORKS, name


def test_only_one_module_converts_and_one_evaluates() -> None:
    """What torch.vmap needs, substituted weights, is made in one place."""
    using = {name for name, file in modules().items() if "torch.func" in imported(name, file)}
    assert using == {"landscape.evaluate._engine"}


# The helpers fail when they should


def test_an_import_that_goes_up_is_found() -> None:
    edges = {"landscape.linalg.krylov": {"landscape.problem.data", "landscape.errors"}}
    (found,) = upwards(edges)
    assert found == "landscape.linalg.krylov (layer 1) imports landscape.problem.data (layer 2)"


def test_a_cycle_is_found() -> None:
    edges = {"landscape.a": {"landscape.b"}, "landscape.b": {"landscape.c"}}
    assert cycle(edges) == []
    assert set(cycle(edges | {"landscape.c": {"landscape.a"}})) == {f"landscape.{x}" for x in "abc"}


def test_every_form_of_import_is_seen(tmp_path: Path) -> None:
    source = """
import a.b
from c import d
from . import e
from .f import g
from ..h import i
if TYPE_CHECKING:
    import j
else:
    import k
try:
    import m
except ImportError:
    import n
class C:
    import o
def function():
    import p
"""
    (tmp_path / "x.py").write_text(source)
    found = imported("landscape.plots.x", tmp_path / "x.py")
    assert {"a.b", "c.d", "landscape.plots.e", "landscape.plots.f", "landscape.h"} <= found
    assert {"k", "m", "n", "o"} <= found
    assert not found & {"j", "p"}


# What importing costs


def loaded_by(statement: str) -> set[str]:
    """The heavy packages that a statement loads in a fresh interpreter."""
    script = f"{statement}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1])) & set(HEAVY)


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("import landscape; dir(landscape); landscape.__version__") == set()


@pytest.mark.parametrize(
    "module",
    [
        "landscape.study",
        "landscape.results",
        "landscape.results.comparison",
        "landscape.plots",
        "landscape.export",
        "landscape.cli",
    ],
)
def test_reading_results_loads_no_torch(module: str) -> None:
    assert not loaded_by(f"import {module}") & {*NETWORKS, "matplotlib", "plotly", "scipy"}


def test_every_public_name_is_there() -> None:
    import landscape

    for name in landscape.__all__:
        assert getattr(landscape, name) is not None
    assert set(dir(landscape)) == set(landscape.__all__)
    with pytest.raises(AttributeError, match="module 'landscape' has no attribute 'nothing'"):
        _ = landscape.nothing
