"""Run the code of a page of the documentation, block by block, in a folder.

A Python block with a title is written to that file, one without is executed; each line of a shell
block is run. Of a notebook the outputs are saved in it, without progress bars.

Usage: python docs/run.py PAGE FOLDER
"""

from __future__ import annotations

import doctest
import glob
import os
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from landscape.cli import main

BLOCK = re.compile(r"^( *)```(\w+)(?: title=\"(.+?)\")?\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
SHOWN = ("text", "yaml", "mermaid")


def blocks(page: Path) -> Iterator[tuple[str, str, str]]:
    """Give language, title and code of each fenced block."""
    for indent, language, title, code in BLOCK.findall(page.read_text()):
        yield language, title, re.sub(f"^{indent}", "", code, flags=re.MULTILINE)


def run_page(page: Path) -> None:
    """Run all blocks in the current folder; the first that fails raises."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for language, title, code in blocks(page):
        if title:
            Path(title).parent.mkdir(parents=True, exist_ok=True)
            Path(title).write_text(code)
        elif language == "python":
            exec(compile(code, f"{page.name}", "exec"), names)
        elif language == "pycon":
            _run_examples(code, page.name)
        elif language == "sh":
            for line in code.replace("\\\n", " ").splitlines():
                for command in line.split(" && "):
                    run_command(command)
        elif language not in SHOWN:
            raise ValueError(f"{page}: a block of {language} that is not run")


def run_notebook(page: Path) -> None:
    """Execute a notebook in the current folder, and save it with its outputs."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(page, as_version=4)
    NotebookClient(notebook, resources={"metadata": {"path": "."}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell:
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    page.write_text(nbformat.writes(notebook) + "\n")


def run_command(line: str) -> None:
    """Run a command of ours or a script, in this process, with patterns as a shell expands them."""
    words = shlex.split(line, comments=True)
    if not words or words[:2] == ["pip", "install"]:
        return
    quoted = {word for word in re.findall(r"'(.*?)'", line)}
    words = [
        file
        for word in words
        for file in ((sorted(glob.glob(word)) or [word]) if word not in quoted else [word])
    ]
    if words[0] == "python":
        runpy.run_path(words[1], run_name="__main__")
    elif words[0] == "landscape":
        try:
            main(words[1:])
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"{line}: exit code {end.code}") from end
    else:
        raise ValueError(f"{line}: neither of landscape nor of python")


def _run_examples(code: str, name: str) -> None:
    test = doctest.DocTestParser().get_doctest(code, {}, name, None, 0)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    runner.run(test)
    if runner.failures:
        raise RuntimeError(f"{name}: {runner.failures} examples failed")


if __name__ == "__main__":
    page = Path(sys.argv[1]).resolve()
    os.makedirs(sys.argv[2], exist_ok=True)
    os.chdir(sys.argv[2])
    sys.path.insert(0, ".")
    (run_notebook if page.suffix == ".ipynb" else run_page)(page)
