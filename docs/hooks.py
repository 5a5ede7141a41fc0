"""What mkdocs is told beside mkdocs.yml: the pictures of figures/, and the page of the API."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import landscape

ROOT = Path(__file__).parents[1]
# Beside the names of `landscape` itself.
FOLDERS = ("landscape.optim", "landscape.linalg", "landscape.intervals", "landscape.theory")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pictures of published experiments to the site."""
    for picture in sorted((ROOT / "figures").glob("*.png")):
        files.append(File.generated(config, f"figures/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Point to those pictures, and list what can be imported."""
    if page.file.src_uri == "api.md":
        return markdown + "\n" + "\n\n".join(_entries())
    return markdown.replace("](../figures/", "](figures/")


def _entries() -> Iterator[str]:
    yield "## landscape"
    yield from (_entry("landscape", name) for name in landscape.__all__ if name != "__version__")
    for folder in FOLDERS:
        yield f"## {folder}"
        module = importlib.import_module(folder)
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if getattr(value, "__module__", "") == folder and not name.startswith("_")
        ]
        yield from (_entry(folder, name) for name in names if name not in landscape.__all__)


def _entry(folder: str, name: str) -> str:
    """Return the directive for a name, by the module that defines it."""
    value = getattr(importlib.import_module(folder), name)
    home = getattr(value, "__module__", folder)
    return f"::: {home}.{name}\n    options:\n      heading_level: 3"
