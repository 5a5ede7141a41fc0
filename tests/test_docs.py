"""The documentation: it builds without a warning, and everything in it runs."""

from __future__ import annotations

import logging
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(p for p in (ROOT / "docs").rglob("*.md") if p.name not in {"index.md"})
RUN = runpy.run_path(str(ROOT / "docs" / "run.py"))


def blocks(page: Path) -> list[tuple[str, str, str]]:
    return list(RUN["blocks"](page))


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda page: page.stem)
def test_everything_on_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    if page.stem == "hugging-face":
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)
    try:
        RUN["run_page"](page)
    finally:  # the page's own modules
        for name in set(sys.modules) - known:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if file.startswith(str(tmp_path)):
                del sys.modules[name]
    if page.stem == "gallery":
        drawn = {picture.name for picture in tmp_path.glob("*.png")}
        assert drawn == {picture.name for picture in (ROOT / "docs" / "gallery").glob("*.png")}


def test_a_block_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    for code, error in (
        ("```sh\nlandscape list --study none.db\n```", RuntimeError),
        ("```sh\nrm -r .\n```", ValueError),
        ("```python\n1 / 0\n```", ZeroDivisionError),
        ("```pycon\n>>> 1 + 1\n3\n```", RuntimeError),
        ("```ruby\nputs 1\n```", ValueError),
    ):
        page.write_text(code + "\n")
        with pytest.raises(error):
            RUN["run_page"](page)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings_handlers.python")
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    monkeypatch.chdir(ROOT)
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config: Any = load_config("mkdocs.yml", site_dir=str(tmp_path))
    config.plugins.on_startup(command="build", dirty=False)
    with caplog.at_level(logging.WARNING, logger="mkdocs"):
        build(config)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    api = (tmp_path / "api.html").read_text()
    for name in ("landscape.sharpness", "top_eigenpairs", "mean_interval", 'class="doc-section'):
        assert name in api
    assert (tmp_path / "figures" / "contrast.png").stat().st_size > 0
