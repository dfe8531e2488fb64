"""Checks that any method or task must pass, for the core's own and for a third party's.

    from opdbench.conformance import check_method

    for check in check_method(MyMethod):
        assert check.passed, f"{check.name}: {check.message}"

Checks are named and yielded one by one, in under a minute for all. They run the real loop on two worlds that are small
enough to be exact, in float64: a language of three tokens and three steps, and a corridor of five cells.
"""

from opdbench.conformance.check import Check
from opdbench.conformance.method import check_method
from opdbench.conformance.task import check_task

__all__ = ["Check", "check_method", "check_task"]
