"""``landscape serve``: the report of a study that grows, in a browser on this machine."""

from __future__ import annotations

import tempfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import click

from landscape.errors import LandscapeError

from .options import study_option

_EMPTY = b"<!doctype html><html><head></head><body>Nothing is measured yet.</body></html>"
_HOSTS = ("127.0.0.1", "localhost")
_RELOAD = b'<meta http-equiv="refresh" content="%d">'


@click.command("serve")
@click.argument("path", required=False, metavar="[STUDY]")
@study_option
@click.option("--port", type=click.IntRange(0, 65535), default=8765, help="0: any that is free.")
@click.option("--every", type=click.IntRange(1), default=10, help="Seconds between two looks.")
def command(path: str | None, study: str, port: int, every: int) -> None:
    """Show the report of a study on 127.0.0.1, made anew when the study grows; Ctrl-C ends it.

    The study is only read, and no other machine can ask.

    \b
    Example:
      landscape serve run.db
    """
    from landscape.errors import InvalidArgumentError

    page = Page(path or study)
    page.html()  # what cannot be shown is said now
    try:
        server = HTTPServer(("127.0.0.1", port), handler_of(page, every))
    except OSError as error:
        msg = f"port {port} cannot be used ({error.strerror}); choose another by --port"
        raise InvalidArgumentError(msg) from error
    with server:
        click.echo(f"http://127.0.0.1:{server.server_address[1]}/  (Ctrl-C ends)")
        server.serve_forever()


class Page:
    """The report of a study, as it was when the study last grew."""

    def __init__(self, study: str) -> None:
        self._study, self._state, self._html = study, object(), b""

    def html(self) -> bytes:
        """Return the page; made anew where the study holds other measurements."""
        from landscape.study import Study

        from .chosen import colours_of

        with Study(self._study, readonly=True) as opened:
            state = [(entry.id, entry.created, entry.status) for entry in opened.entries()]
            comparison, colours = opened.comparison(), colours_of(opened)
            if not comparison.models:
                return _EMPTY
            if state != self._state:
                with tempfile.TemporaryDirectory() as folder:
                    written = comparison.report(Path(folder) / "page.html", colours=colours)
                    self._state, self._html = state, written.read_bytes()
        return self._html


def handler_of(page: Page, every: int) -> type[BaseHTTPRequestHandler]:
    """Return what answers a browser: the page, that asks again by itself, and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A name of another host that leads here is a page of somebody else's.
            if self.path != "/" or self.headers.get("Host", "").split(":")[0] not in _HOSTS:
                self.send_error(404)
                return
            try:
                text, code = page.html().replace(b"<head>", b"<head>" + _RELOAD % every, 1), 200
            except LandscapeError as error:  # such as a study that was deleted
                text, code = str(error).encode(), 503
            self.send_response(code)
            kind = "text/html" if code == 200 else "text/plain"
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing of each request."""

    return Handler
