"""Sittings: one name for all that a command runs, another for each other command."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from opdbench import sitting


def name_in_a_process(token: str) -> str:
    words = [sys.executable, "-c", "from opdbench import sitting; print(sitting.current(), sitting.current())"]
    done = subprocess.run(words, capture_output=True, text=True, check=True,
                          env={**os.environ, sitting.VARIABLE: token})
    first, second = done.stdout.split()
    assert first == second and re.fullmatch("[0-9a-f]{12}", first)
    return first


def test_a_process_has_one_name_and_shares_it_with_those_that_it_tells() -> None:
    assert sitting.current() == sitting.current() == name_in_a_process(sitting.token())


def test_processes_that_are_told_nothing_have_names_of_their_own() -> None:
    assert len({sitting.current(), name_in_a_process(""), name_in_a_process(""), name_in_a_process("x\n<b>")}) == 4
