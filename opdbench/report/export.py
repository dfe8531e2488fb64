"""Records in the formats of others: Hugging Face's `.eval_results/*.yaml`, and every_eval_ever's JSON.

A run's student is the model that is evaluated. Both formats state one score and where it comes from; seeds, intervals
over them and costs stay here, and the records say where.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import yaml

from opdbench.errors import UserError
from opdbench.report.runs import Run
from opdbench.schema.record import Score
from opdbench.store import task_folder

EEE_VERSION = "0.3.0"  # of every_eval_ever's eval.schema.json
LIBRARY = "opdbench"


def hugging_face(run: Run, dataset: str, *, task_id: str | None = None, revision: str | None = None,
                 source: str | None = None, mode: str = "greedy") -> str:
    """One `.eval_results/*.yaml` for the repository of a run's student (https://huggingface.co/docs/hub/eval-results).

    Args:
        dataset: the benchmark's id on the hub, which must be registered there as one.
        task_id: which of its tasks; the task's name here when None.
        revision: of the data set.
        source: address of the record or of the board.
        mode: of the score.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    score, recipe = _score(run, mode), run.record.recipe
    entry = EvalResultEntry(
        dataset_id=dataset, task_id=task_id or recipe.task.partition("@")[0], value=score.mean,
        dataset_revision=revision, date=run.record.times.finished, source_url=source,
        source_name=None if source is None else LIBRARY,
        notes=f"{recipe.task}, {score.metric}, {mode}; 95% {score.low:.4g} to {score.high:.4g} over {score.n} "
              f"examples; distilled by {recipe.method}, seed {recipe.seed}; {run.trust}")
    return str(yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True))


def every_eval_ever(run: Run, organization: str, model: str) -> tuple[str, dict[str, Any]]:
    """Path below `data/` and content of one aggregate record (schema 0.3.0, evaleval/every_eval_ever).

    Args:
        organization: who made the run.
        model: "owner/name" of the student that the run trained.
    """
    record, recipe = run.record, run.record.recipe
    owner, slash, name = model.partition("/")
    if not (slash and owner and name) or "/" in name or ".." in model:
        raise UserError(f"{model!r} names no model", "write --model OWNER/NAME")
    finished = str(_seconds(record.times.finished or record.times.started))
    task = task_folder(recipe.task)
    results = [_result(run, mode) for mode in record.after]
    content = {
        "schema_version": EEE_VERSION, "evaluation_id": f"{task}/{model}/{finished}", "evaluation_timestamp": finished,
        "retrieved_timestamp": finished,
        "source_metadata": {"source_name": LIBRARY, "source_type": "evaluation_run",
                            "source_organization_name": organization, "evaluator_relationship": "first_party",
                            "additional_details": {"record": record.id, "trust": run.trust}},
        "eval_library": {"name": LIBRARY, "version": _version(record.provenance),
                         "additional_details": _texts({"commit": record.provenance.get("commit"),
                                                       "scorer": record.scorer})},
        "model_info": {"name": name, "id": model, "developer": owner, "additional_details": {
            "deployment_type": "self_deployed", "model_availability": "unknown",
            **_texts({"method": recipe.method, "teacher": recipe.teacher and recipe.teacher.reference,
                      "student": recipe.student.reference, "seed": recipe.seed})}},
        "evaluation_results": results,
    }
    return f"{task}/{owner}/{name}/{uuid.uuid5(uuid.NAMESPACE_URL, record.recipe_sha256)}.json", content


def _result(run: Run, mode: str) -> dict[str, Any]:
    record, recipe, score = run.record, run.record.recipe, _score(run, mode)
    is_share = score.low >= 0 and score.high <= 1
    bounds: Mapping[str, Any] = {"min_score": 0.0, "max_score": 1.0} if is_share else {
        "min_score": "-Infinity", "max_score": "Infinity"}
    return {
        "evaluation_result_id": f"{record.id}-{mode}", "evaluation_name": f"{recipe.task} ({mode})",
        "source_data": {"dataset_name": recipe.task, "source_type": "other",
                        "additional_details": {"problems_sha256": recipe.task_sha256}},
        "metric_config": {"metric_id": score.metric, "metric_name": score.metric, "lower_is_better": False,
                          "score_type": "continuous", **bounds,
                          "metric_unit": "proportion" if is_share else "points"},
        "score_details": {"score": score.mean, "uncertainty": {
            "confidence_interval": {"lower": score.low, "upper": score.high, "confidence_level": 0.95,
                                    "method": score.interval}, "num_samples": score.n}},
        "generation_config": {"generation_args": {"temperature": 0.0 if mode == "greedy" else 1.0,
                                                  "execution_command": record.command}},
    }


def _score(run: Run, mode: str) -> Score:
    score: Score | None = run.record.after.get(mode)
    if not run.usable or score is None:
        raise UserError(f"{run.path} has no {mode} score to export: "
                        f"{run.problem or f'it is {run.record.status}'}")
    return score


def _seconds(time: str) -> int:
    try:
        return int(datetime.fromisoformat(time).timestamp())
    except ValueError:
        raise UserError(f"a record says that it was made at {time[:40]!r}, which is no time") from None


def _version(provenance: Mapping[str, Any]) -> str:
    return str(provenance.get("packages", {}).get(LIBRARY, "unknown"))


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """The values that are there, as the texts that the schema asks for."""
    return {name: str(value) for name, value in values.items() if value is not None}


def check_one(runs: Sequence[Run]) -> Run:
    """The one run of a folder.

    Raises:
        UserError: there are several.
    """
    if len(runs) != 1:
        raise UserError(f"there are {len(runs)} records, and a file of results is of one model", "name one record")
    return runs[0]
