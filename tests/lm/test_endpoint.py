"""JSON over HTTP comes to an end: addresses, keys, retries and time-outs, against sockets that misbehave."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from opdbench.errors import UserError
from opdbench.lm import endpoint
from opdbench.lm.endpoint import KEY, Endpoint, Refused

Answer = Callable[[socket.socket], None]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second attempt."""
    monkeypatch.setattr(endpoint, "_FIRST_WAIT", 0.01)


@contextmanager
def listening(*answers: Answer) -> Iterator[tuple[str, list[bytes]]]:
    """A socket that gives the first connection the first answer, and the last one to all that follow."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        def serve() -> None:
            number = 0
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    heard.append(connection.recv(100_000))
                    with suppress(OSError):  # the client may have gone
                        answers[min(number, len(answers) - 1)](connection)
                number += 1

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1", heard
        server.shutdown(socket.SHUT_RDWR)


def says(status: str, body: str, *headers: str) -> Answer:
    text = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", body])
    return lambda connection: connection.sendall(text.encode())


OK = says("200 OK", '{"a": 1}')
BUSY = says("503 Service Unavailable", '{"error": {"message": "starting"}}', "Retry-After: 0")


def never(connection: socket.socket) -> None:
    time.sleep(20)


def drips(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(400):
        connection.sendall(b" ")
        time.sleep(0.05)


def drips_headers(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for number in range(400):
        connection.sendall(f"X-{number}: 1\r\n".encode())
        time.sleep(0.05)


def cuts(connection: socket.socket) -> None:
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"a":')


def test_an_answer_is_json() -> None:
    with listening(OK) as (url, heard):
        assert Endpoint(url).call("/models") == {"a": 1}
        assert Endpoint(url).call("//tokenize", {"b": 2}) == {"a": 1}
    assert heard[0].startswith(b"GET /v1/models HTTP/1.1") and heard[1].startswith(b"POST /tokenize HTTP/1.1")


def test_what_passes_is_tried_again() -> None:
    with listening(BUSY, lambda connection: None, OK) as (url, heard):
        assert Endpoint(url).call("/models") == {"a": 1}
    assert len(heard) == 3


@pytest.mark.parametrize(("body", "said"), [('{"error": {"message": "no such thing"}}', "no such thing"),
                                            ("no  such\nthing", "no such thing"), ("", "nothing"),
                                            ("[" * 99_999, "[" * 300)])
def test_a_refusal_is_not_tried_again(body: str, said: str) -> None:
    with listening(says("400 Bad Request", body)) as (url, heard):
        with pytest.raises(Refused) as raised:
            Endpoint(url).call("/completions", {})
        assert (raised.value.status, raised.value.said) == (400, said)
    assert len(heard) == 1


@pytest.mark.parametrize("answer", [never, drips, drips_headers])
def test_time_is_up_however_the_server_spends_it(answer: Answer) -> None:
    with listening(answer) as (url, _):
        began = time.monotonic()
        with pytest.raises(UserError, match=r"gave no whole answer within 0\.2 s \(1 attempt\)") as raised:
            Endpoint(url, timeout=0.2, attempts=1).call("/models")
        assert time.monotonic() - began < 10
    assert "teacher_timeout" in str(raised.value.fix)


@pytest.mark.parametrize(("answer", "wrong"), [
    (BUSY, "answers 503: starting"), (cuts, r"broke off its answer \(IncompleteRead\)"),
    (lambda connection: None, "broke off its answer"), (says("200 OK", "<html>"), "not JSON: '<html>'"),
    (says("200 OK", "[" * 99_999), "not JSON"),
    (lambda connection: connection.sendall(b"SSH-2.0-x\r\n"), "broke off its answer"),
])
def test_a_server_that_stays_bad_is_named(answer: Answer, wrong: str) -> None:
    with listening(answer) as (url, _), pytest.raises(UserError, match=wrong):
        Endpoint(url, timeout=5, attempts=2).call("/models")


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UserError, match="nothing listens there"):
        Endpoint(f"http://127.0.0.1:{port}/v1", attempts=1).call("/models")
    with pytest.raises(UserError, match=r"no host 'nowhere\.invalid'"):
        Endpoint("http://nowhere.invalid/v1", attempts=1).call("/models")


def test_the_key_is_sent_and_never_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "sk-secret")
    with listening(says("401 Unauthorized", '{"error": "who are you?"}')) as (url, heard):
        with pytest.raises(UserError, match=r"the one given was refused \(401: who are you\?\)") as raised:
            Endpoint(url).call("/models")
        assert b"Authorization: Bearer sk-secret" in heard[0]
        assert "sk-secret" not in str(raised.value)
        monkeypatch.delenv(KEY)
        with pytest.raises(UserError, match="wants a key, and none was given"):
            Endpoint(url).call("/models")
        assert b"Authorization" not in heard[1]


@pytest.mark.parametrize(("url", "wrong"), [
    ("ftp://host/v1", "is not the address of a server"), ("http:///v1", "is not the address of a server"),
    ("http://host:port/v1", "is not the address of a server"), ("http://me:sk-secret@host/v1", "must hold no key"),
    ("https://host/v1?api_key=sk-secret", "must hold no key"),
])
def test_an_address_is_an_address(url: str, wrong: str) -> None:
    with pytest.raises(UserError, match=wrong) as raised:
        Endpoint(url)
    assert "sk-secret" not in str(raised.value)


def test_others_that_wait_can_be_stopped() -> None:
    with listening(never) as (url, _):
        asked, ended = Endpoint(url, timeout=30), threading.Event()

        def ask() -> None:
            with pytest.raises(UserError):
                asked.call("/models")
            ended.set()

        threading.Thread(target=ask, daemon=True).start()
        time.sleep(0.1)
        asked.stop()
        assert ended.wait(1)
