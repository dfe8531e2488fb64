"""Prompts of test problems, for tasks that make their problems themselves.

Records keep what models wrote, and not what they were asked. Where the problems follow from the task's own rules they
are made again; those of data sets are others' texts under their own licences, and are not put on pages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache

from opdbench import registry
from opdbench.errors import UserError
from opdbench.schema.spec import Recipe

_MOST = 64  # tasks with their settings whose problems are made, in one process
_made: dict[tuple[str, str, str], Mapping[str, str]] = {}


def prompts_of(recipe: Recipe) -> Mapping[str, str]:
    """By a problem's id; none where the task is not here, is not what it was for the record, or reads data."""
    if recipe.task.partition("@")[0] not in _installed():
        return {}
    key = recipe.task, json.dumps(recipe.task_params, sort_keys=True), recipe.task_sha256
    if key not in _made and len(_made) < _MOST:
        _made[key] = _prompts(recipe)
    return _made.get(key, {})


@cache
def _installed() -> frozenset[str]:
    """Tasks that are used by their name alone."""
    return frozenset(registry.names("task"))


def _prompts(recipe: Recipe) -> Mapping[str, str]:
    from opdbench.play import in_words, recreated
    from opdbench.task import LanguageTask

    try:
        if registry.load("task", recipe.task).reads_data:
            return {}
        task = recreated(recipe)
    except UserError:
        return {}
    return {example.id: in_words(example) for example in task.examples("test")} if isinstance(
        task, LanguageTask) else {}
