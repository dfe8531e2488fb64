from __future__ import annotations

import sys

import pytest

from benchmarks.pipe import Channel, Worker, WorkerError, arguments, interleave


def main() -> None:
    """The worker of these tests, run in a process of its own: counts from a start, and may break."""
    channel, given = Channel(), arguments()
    print("libraries print things")
    channel.send({"name": given["name"]})
    count = given["start"]
    while channel.wait():
        if count == given.get("break_at"):
            raise RuntimeError("broken on purpose")
        channel.send({"count": count})
        count += 1


def test_workers_take_turns_and_warm_up_uncounted() -> None:
    with Worker(sys.executable, __name__, {"name": "a", "start": 0}) as a, \
            Worker(sys.executable, __name__, {"name": "b", "start": 10}) as b:
        assert (a.about, b.about) == ({"name": "a"}, {"name": "b"})
        reports = interleave([a, b], warmup=1, repeats=2)
    assert reports == [[{"count": 1}, {"count": 2}], [{"count": 11}, {"count": 12}]]


def test_a_worker_that_breaks_says_why() -> None:
    with Worker(sys.executable, __name__, {"name": "a", "start": 0, "break_at": 0}) as worker, \
            pytest.raises(WorkerError, match="broken on purpose"):
        worker.step()


if __name__ == "__main__":
    main()
