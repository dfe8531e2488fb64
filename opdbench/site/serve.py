"""Look at a site through a server of one's own; it needs none, but some browsers trust a file less than an address."""

from __future__ import annotations

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from opdbench.errors import UserError


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of every page."""

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")  # the next build is seen at once
        super().end_headers()


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of the files below `folder`, for this machine alone; the caller starts and closes it.

    Raises:
        UserError: the port is taken.
    """
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(_Quiet, directory=str(folder)))
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on port {port}: {error}", "choose another with --port") from None
