"""JSON over HTTP that always comes to an end: time-outs, a bounded number of attempts, and what the server said."""

from __future__ import annotations

import http.client
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from opdbench.errors import UserError

KEY = "OPENAI_API_KEY"  # where the key is read from, as OpenAI's own client does; it is never written anywhere
ATTEMPTS = 5
PATIENCE = 3  # time-outs that a question may last in all
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # what may be otherwise a moment later
_FIRST_WAIT = 0.5  # seconds before the second attempt; it doubles
_LONGEST_WAIT = 30.0  # seconds between attempts, whatever a server asks for
_CONNECTING = 10.0  # seconds that it may take until somebody listens
_LARGEST_ANSWER = 2**30


class Refused(Exception):
    """The server understood and said no.

    Attributes:
        status: the HTTP status, 300 to 499.
        said: its own words.
    """

    def __init__(self, status: int, said: str) -> None:
        super().__init__(status, said)
        self.status, self.said = status, said


class _Answer(NamedTuple):
    status: int
    retry_after: float | None
    content: bytes


class Endpoint:
    """One server. Threads may share it.

    Args:
        url: its address, as the user gave it.
        timeout: seconds that one attempt may take, from connecting to the last byte.

    Raises:
        UserError: the address cannot be one, or has a password in it.
    """

    def __init__(self, url: str, *, timeout: float = 60.0, attempts: int = ATTEMPTS) -> None:
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError:
            parts, self._host = urlsplit(""), ""
        if parts.scheme not in ("http", "https") or not self._host:
            raise UserError(f"{url!r} is not the address of a server", "write http://HOST:PORT/v1#MODEL")
        if parts.username or parts.password or parts.query:
            raise UserError("the address of a server must hold no key, since records keep it",
                            f"put the key into the environment variable {KEY}")
        self.url, self.timeout, self.attempts = url.partition("#")[0], timeout, attempts
        self._live: dict[int, Callable[[], None]] = {}  # what cuts each connection that is open
        self._stopping = threading.Event()
        self._secure, self._base = parts.scheme == "https", parts.path.rstrip("/") or "/v1"

    def call(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """What the server answers to `body` (a POST), or without one (a GET), as JSON.

        A `path` that begins with two slashes counts from the server's root, beside its `/v1`.

        Raises:
            Refused: it said no; whoever asked knows what that means.
            UserError: it cannot be reached, is too slow, overloaded, wants another key, or does not speak JSON.
        """
        payload = None if body is None else json.dumps(body).encode()
        place = self._base.removesuffix("/v1") + path[1:] if path.startswith("//") else self._base + path
        end = time.monotonic() + PATIENCE * self.timeout
        for attempt in range(1, self.attempts + 1):
            wait = min(_FIRST_WAIT * 2 ** (attempt - 1), _LONGEST_WAIT)
            try:
                answer = self._exchange(place, payload)
            except (OSError, http.client.HTTPException) as error:
                problem = self._describe(error)
            else:
                if answer.status not in _PASSING:
                    return self._understood(place, answer)
                problem = f"answers {answer.status}: {_words(answer.content)}"
                wait = wait if answer.retry_after is None else min(answer.retry_after, _LONGEST_WAIT)
            if attempt == self.attempts or time.monotonic() + wait >= end or self._stopping.wait(wait):
                break
        raise UserError(f"the server at {self.url} {problem} ({attempt} attempt{'s' if attempt > 1 else ''})",
                        "see that it runs and is not overloaded, then type the same command again: the run goes on "
                        "from its last checkpoint; --set teacher_timeout=SECONDS waits longer")

    def stop(self) -> None:
        """End every question that other threads still wait for; `go` allows new ones."""
        self._stopping.set()
        for cut in list(self._live.values()):
            cut()

    def go(self) -> None:
        self._stopping.clear()

    def _exchange(self, place: str, payload: bytes | None) -> _Answer:
        """One request. A watchdog cuts the connection when its time is up: a socket's own time-out starts again with
        every byte, so that a server that drips would never end."""
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=min(self.timeout, _CONNECTING))
        began, expired = time.monotonic(), threading.Event()
        try:
            connection.connect()
        except TimeoutError:
            raise OSError(f"nobody answered within {connection.timeout:g} s") from None
        channel: socket.socket = connection.sock
        channel.settimeout(self.timeout)

        def cut() -> None:
            expired.set()
            with suppress(OSError):  # it may have closed by itself
                channel.shutdown(socket.SHUT_RDWR)

        watchdog = threading.Timer(max(0.0, self.timeout - (time.monotonic() - began)), cut)
        watchdog.daemon = True
        watchdog.start()
        self._live[id(channel)] = cut
        if self._stopping.is_set():
            cut()
        try:
            connection.request("GET" if payload is None else "POST", place, payload, self._headers())
            response = connection.getresponse()
            content = response.read(_LARGEST_ANSWER)
            if expired.is_set() or response.length:  # a `read` with a limit does not complain about a missing rest
                raise http.client.IncompleteRead(content)
            return _Answer(response.status, _seconds(response.getheader("Retry-After")), content)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if expired.is_set():
                raise TimeoutError from error
            if isinstance(error, ValueError):  # what a connection that is cut under its reader may raise
                raise http.client.HTTPException(str(error)) from error
            raise
        finally:
            self._live.pop(id(channel), None)
            watchdog.cancel()
            connection.close()

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
        key = os.environ.get(KEY)
        return {**headers, "Authorization": f"Bearer {key}"} if key else headers

    def _understood(self, place: str, answer: _Answer) -> Any:
        if answer.status in (401, 403):
            has = "the one given was refused" if os.environ.get(KEY) else "none was given"
            raise UserError(f"the server at {self.url} wants a key, and {has} ({answer.status}: "
                            f"{_words(answer.content)})", f"export {KEY}=...")
        if not 200 <= answer.status < 300:
            raise Refused(answer.status, _words(answer.content))
        try:
            return json.loads(answer.content)
        except (ValueError, RecursionError):
            raise UserError(f"the server at {self.url} answers {place} with something that is not JSON: "
                            f"{_words(answer.content)!r}",
                            "the address must be that of an OpenAI-compatible server, such as "
                            "http://127.0.0.1:8000/v1") from None

    def _describe(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"gave no whole answer within {self.timeout:g} s"
        if isinstance(error, socket.gaierror):
            return f"cannot be found: there is no host {self._host!r}"
        if isinstance(error, ConnectionRefusedError):
            return "cannot be reached: nothing listens there"
        if isinstance(error, http.client.HTTPException | ConnectionError):
            return f"broke off its answer ({type(error).__name__})"
        return f"cannot be reached: {error}"


def _words(content: bytes) -> str:
    """What a server says, in one short line: the message of OpenAI's error object where it is one."""
    text = content[:100_000].decode(errors="replace")
    try:
        said = json.loads(text)
        error = said.get("error", said) if isinstance(said, dict) else said
        message = error.get("message", error) if isinstance(error, dict) else error
        text = message if isinstance(message, str) else json.dumps(message)
    except (ValueError, RecursionError):
        pass
    return " ".join(text.split())[:300] or "nothing"


def _seconds(header: str | None) -> float | None:
    """Of a Retry-After header; its other form, a date, is left to our own waiting."""
    try:
        value = float(header) if header is not None else math.nan
    except ValueError:
        return None
    return value if 0 <= value < math.inf else None
