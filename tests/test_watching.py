"""``landscape watch`` and ``landscape serve`` on a study that grows."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import HTTPServer
from pathlib import Path

import pytest
import samples

from landscape.cli.serve import Page, handler_of
from landscape.study import Study


@pytest.fixture
def study(tmp_path: Path) -> Path:
    with Study(tmp_path / "s.db") as opened:
        opened.save(samples.eigenpairs("run-step-0", top=20.0))
    return tmp_path / "s.db"


@pytest.fixture
def address(study: Path) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), handler_of(Page(str(study)), 7))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_watch_prints_a_line_for_each_measurement(study: Path, run) -> None:
    ran = run("watch", str(study), "--once")
    assert ran.code == 0
    (line,) = ran.out.splitlines()
    assert "run-step-0  eigs  λ1 20" in line
    assert run("watch", "no.db", "--once").code == 1


def test_watch_prints_what_comes(study: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter(("grow", "stay", "end"))

    def sleep(seconds: float) -> None:
        look = next(looks)
        if look == "grow":
            with Study(study) as opened:
                opened.save(samples.eigenpairs("run-step-1", top=30.0))
        elif look == "end":
            raise KeyboardInterrupt

    monkeypatch.setattr("landscape.cli.watch.time.sleep", sleep)
    lines = run("watch", str(study)).out.splitlines()
    assert [line.split("  ")[1] for line in lines] == ["run-step-0", "run-step-1"]


def test_the_page_grows_with_the_study_and_is_made_once(
    study: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from landscape.results.comparison import Comparison

    made = []
    report = Comparison.report
    monkeypatch.setattr(Comparison, "report", lambda *a, **k: (made.append(1), report(*a, **k))[1])
    for _ in range(2):
        with urllib.request.urlopen(f"{address}/") as answer:
            page = answer.read().decode()
        assert '<meta http-equiv="refresh" content="7">' in page
        assert "run-step-0" in page
        assert "run-step-1" not in page
    assert len(made) == 1
    with Study(study) as opened:
        opened.save(samples.eigenpairs("run-step-1", top=30.0))
    with urllib.request.urlopen(f"{address}/") as answer:
        assert "run-step-1" in answer.read().decode()
    assert len(made) == 2


def test_a_study_without_a_measurement_is_a_page_too(tmp_path: Path) -> None:
    with Study(tmp_path / "new.db"):
        pass
    assert b"Nothing is measured yet" in Page(str(tmp_path / "new.db")).html()


def test_nothing_but_the_page_is_answered(study: Path, address: str) -> None:
    foreign = urllib.request.Request(f"{address}/", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(foreign)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{address}/../s.db")
    study.unlink()
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(f"{address}/")


def test_serve_says_what_cannot_be_shown(study: Path, run, tmp_path: Path) -> None:
    assert run("serve", str(tmp_path / "no.db")).code == 1
    server = HTTPServer(("127.0.0.1", 0), handler_of(Page(str(study)), 7))
    ran = run("serve", str(study), "--port", str(server.server_address[1]))
    server.server_close()
    assert ran.code == 2
    assert "choose another by --port" in ran.err
