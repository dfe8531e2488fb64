"""Any task of EleutherAI's lm-evaluation-harness, by name: its prompts, its filters and its metrics, our models.

Gao et al. 2024, "The Language Model Evaluation Harness", doi:10.5281/zenodo.12608602. What lm-eval itself computes for
the same model is what `score` and the figures beside it say (tests/tasks/test_lm_eval.py). Deviations: prompts are not
cut when they are too long, but refused; no BOS is added; one completion a problem, whatever a task's `repeats` says;
and metrics that are no mean over problems (perplexities, corpus BLEU) are left out.

A folder given with --data is read by lm-eval, whose task files are programs (templates, `!function`): pass one as you
would pass a plugin.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt

from opdbench.errors import UserError, unknown
from opdbench.task import Example, LanguageTask, Reply, Split, Turns

if TYPE_CHECKING:
    from opdbench.lm.tokenizer import Tokenizer

FEWSHOT_SEED = 1234  # lm-eval's own default
MAX_NEW_TOKENS = 256  # likewise, for tasks that name no other
VALIDATION_SHARE, VALIDATION_SIZE = 10, 500  # a tenth of the training documents, and at most so many
_KINDS = ("generate_until", "multiple_choice", "loglikelihood")


class LMEval(LanguageTask):
    """lm-eval:NAME@1. Scores: `score` (the first metric, or the one chosen), and all metrics by lm-eval's names."""

    name = "lm-eval"
    argument = "NAME"
    version = 1
    summary = "any task of lm-evaluation-harness by its name, such as lm-eval:arc_easy"
    source = "lm-evaluation-harness (Gao et al. 2024); the hub, or a folder of task files given with --data"
    license = "that of the task's data set"
    protocol = (
        "Prompts, few-shot examples, filters and metrics are lm-eval's, as plain text. What is to be written is graded "
        "as lm-eval grades it; where lm-eval compares the probabilities of given answers, so does this, and there is "
        "no sampled score. Test is the split that lm-eval evaluates; train is the task's own training split, and where "
        "no further split is left for validation, a tenth of that is kept for it. In training everything is written, "
        "and an answer to be chosen counts when its text is what the completion begins with."
    )
    metric = "score"
    teacher = None  # named by the hardware profile, as is the student
    student = None
    training: ClassVar[Mapping[str, Any]] = {"lr": 1e-6, "batch": 64, "warmup_steps": 5}
    budget: ClassVar[Mapping[str, float]] = {"steps": 100}
    reads_data: ClassVar[bool] = True
    max_new_tokens = MAX_NEW_TOKENS

    class Params(LanguageTask.Params):
        metric: str | None = Field(None, description="which of lm-eval's figures is the score; None is the first")
        fewshot: NonNegativeInt | None = Field(None, description="examples in the prompt; None is the task's own")
        max_new_tokens: PositiveInt | None = Field(None, description="longest completion; None is the task's own")

    def __init__(self, data: str | None = None, params: BaseModel | None = None) -> None:
        super().__init__(data, params)
        self._splits: dict[Split, list[Example]] = {}
        self._documents: dict[str, Any] = {}

    @cached_property
    def _task(self) -> Any:
        """lm-eval's object; what it cannot load is said in one sentence."""
        task = load(self.name.partition(":")[2], self.data)
        shown = getattr(task, "MULTIMODAL", False)  # set where it is true, as is the next
        if task.OUTPUT_TYPE not in _KINDS or shown:
            kind = "not of text alone" if shown else f"of the kind {task.OUTPUT_TYPE}"
            raise UserError(f"{self.name} is {kind}, which is not there yet", f"choose a task of {', '.join(_KINDS)}")
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(f"{self.name} runs what a model wrote, without a sandbox",
                            "choose a code task of opdbench's own (opdbench list tasks)")
        if self.params.fewshot is not None:
            task.set_config(key="num_fewshot", value=self.params.fewshot)
        written = (task.config.generation_kwargs or {}).get("max_gen_toks", MAX_NEW_TOKENS)
        self.max_new_tokens = self.params.max_new_tokens or written  # type: ignore[misc]
        return task

    @cached_property
    def figures(self) -> tuple[str, ...]:
        """lm-eval's figures that are means over problems, by its names: "acc", "exact_match,strict-match".

        Raises:
            UserError: there are none, or not the one that `metric` asks for.
        """
        from lm_eval.api.metrics import mean

        names = [_figure(metric, ensemble.name) for ensemble in self._task._filters
                 for metric, aggregate in self._task.aggregation().items() if aggregate is mean]
        if not names:
            raise UserError(f"{self.name} has no metric that is a mean over problems", "choose another task")
        if self.params.metric is not None and self.params.metric not in names:
            raise unknown(f"metric of {self.name}:", self.params.metric, names)
        return tuple(names)

    def examples(self, split: Split) -> Sequence[Example]:
        """The documents of a split; read once.

        Raises:
            UserError: lm-eval is not installed, has no such task or not its data, or the task has no training split.
        """
        if split not in self._splits:
            self._splits[split] = [self._example(f"{split}-{index}", document, context, scored=split != "train")
                                   for index, (document, context) in enumerate(self._with_context(split))]
        return self._splits[split]

    def _with_context(self, split: Split) -> Iterator[tuple[Any, Any]]:
        """Documents with their prompts. Few-shot examples are drawn in order, from the same seed for every split."""
        task = self._task
        shots = task.config.num_fewshot or 0
        task.set_fewshot_seed(FEWSHOT_SEED)
        for document in self._split_documents(split):
            yield document, task.fewshot_context(document, num_fewshot=shots, gen_prefix=task.doc_to_prefix(document))

    def _split_documents(self, split: Split) -> list[Any]:
        task = self._task
        if split == "test":
            return list(task.eval_docs)
        if not task.has_training_docs():
            raise UserError(f"{self.name} has no training documents, and a run trains on some",
                            "choose an lm-eval task that has a training split, or make one in a folder for --data")
        train = list(task.training_docs())
        if task.has_validation_docs() and task.has_test_docs():
            return train if split == "train" else list(task.validation_docs())
        held_out = max(1, min(VALIDATION_SIZE, len(train) // VALIDATION_SHARE))
        return train[:-held_out] if split == "train" else train[-held_out:]

    def _example(self, name: str, document: Any, context: Any, *, scored: bool) -> Example:
        requests = self._requests(document, context)
        pairs = [request.args for request in requests] if requests[0].request_type == "loglikelihood" else []
        target = self._target(document, pairs)
        self._documents[name] = document
        return Example(id=name, prompt=context if isinstance(context, str) else context[0], answer=target.strip(),
                       solution=None if scored and pairs else target, continuations=pairs if scored else ())

    def _requests(self, document: Any, context: Any) -> list[Any]:
        requests = self._task.construct_requests(doc=document, ctx=context, metadata=(self.name, 0, 1))
        return requests if isinstance(requests, list) else [requests]

    def _target(self, document: Any, pairs: Sequence[tuple[str, str]]) -> str:
        """The right continuation of the prompt, as it stands in a few-shot example."""
        task = self._task
        gold = task.doc_to_target(document)
        gold = gold[0] if isinstance(gold, list) and gold else gold
        if pairs and not task.multiple_input:
            return pairs[gold][1] if isinstance(gold, int) else f"{task.config.target_delimiter}{gold}"
        if isinstance(gold, int) and task.config.doc_to_choice is not None:
            gold = task.doc_to_choice(document)[gold]
        return f"{task.config.target_delimiter}{gold}"

    def grade(self, example: Example, completion: str) -> dict[str, float]:
        """lm-eval's figures for a completion, or for the likelihoods of a problem's continuations."""
        if self._task.OUTPUT_TYPE != "generate_until" and not example.continuations:
            return {"score": float(completion.strip().startswith(example.answer) and bool(example.answer))}
        replies = likelihoods(completion, len(example.continuations)) if example.continuations else [
            before_stop(completion, self._stops)]
        figures = self._process(example, replies) if replies else dict.fromkeys(self.figures, 0.0)
        return {"score": figures[self.params.metric or self.figures[0]], **figures}

    def _process(self, example: Example, replies: Sequence[Any]) -> dict[str, float]:
        """Through the task's own filters and metrics, as lm-eval's evaluator sends them."""
        document = self._documents[example.id]
        figures: dict[str, Any] = {}
        requests = self._requests(document, example.prompt if not example.continuations else
                                  [context for context, _ in example.continuations])
        for request, reply in zip(requests, replies, strict=True):
            request.resps = [reply]
        for ensemble in self._task._filters:
            ensemble.apply(requests)
            results = self._task.process_results(document, [request.filtered_resps[ensemble.name]
                                                            for request in requests])
            figures |= {_figure(metric, ensemble.name): value for metric, value in results.items()}
        return {name: float(figures[name]) for name in self.figures}

    @cached_property
    def _stops(self) -> tuple[str, ...]:
        until = (self._task.config.generation_kwargs or {}).get("until") or ()
        return (until,) if isinstance(until, str) else tuple(until)

    def turns(self, examples: Sequence[Example], tokenizer: Tokenizer, rngs: Sequence[Random], *,
              evaluating: bool) -> Turns | None:
        """Ends a completion at the task's stop strings, which lm-eval cuts it at."""
        return _Stops(self._stops, tokenizer, len(examples)) if self._stops else None

    def checksum(self) -> str:
        digest = hashlib.sha256(f"{self.id} {metadata.version('lm_eval')} {self._task.VERSION}".encode())
        for split in ("train", "validation", "test"):
            for example in self.examples(split):
                fields = (split, example.id, example.prompt, example.answer, example.solution, example.continuations)
                digest.update(json.dumps(fields).encode())
        return digest.hexdigest()


class _Stops:
    """Ends each sequence when a stop string has been written."""

    def __init__(self, stops: Sequence[str], tokenizer: Tokenizer, batch: int) -> None:
        self._stops, self._tokenizer = stops, tokenizer
        self._looked_at = max(len(stop.encode()) for stop in stops) + 4  # tokens: each is a byte or more, or special
        self._written: list[list[int]] = [[] for _ in range(batch)]

    def reply(self, index: int, token: int) -> Reply | None:
        self._written[index].append(token)
        tail = self._tokenizer.decode(self._written[index][-self._looked_at:])
        return Reply((), True) if any(stop in tail for stop in self._stops) else None


def load(name: str, folder: str | None) -> Any:
    """lm-eval's task object of this name, from a folder of task files when it is there, else from its own.

    Raises:
        UserError: not installed, no such task, a group of tasks, or its data cannot be had.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise UserError("lm-eval is not installed", "pip install 'opdbench[eval]'") from None
    if folder is not None and not Path(folder).is_dir():
        raise UserError(f"--data names a folder that does not exist: {folder}", "pass a folder of lm-eval task files")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=folder, include_defaults=False) if folder else None
    if manager is None or name not in manager.all_subtasks:  # its own index takes seconds to build
        manager = TaskManager(include_path=folder)
    if name not in manager.all_subtasks:
        if name in manager.all_tasks:
            raise UserError(f"lm-eval:{name} is a group of tasks", f"name one of them: lm-eval ls tasks | grep {name}")
        raise unknown("lm-eval task", name, manager.all_subtasks, see="lm-eval ls tasks")
    try:
        return manager.load(name)["tasks"][name]
    except Exception as error:  # whatever a task's files, its data set's loader or the network have to say
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"lm-eval cannot load {name}: {reason[0][:300]}",
                        "where there is network its data are downloaded to the hub's cache; or pass --data FOLDER with "
                        "a task file whose data are local (dataset_path: json)") from error


def before_stop(text: str, stops: Sequence[str]) -> str:
    """What lm-eval keeps of a completion."""
    for stop in stops:
        text = text.split(stop)[0] if stop else text
    return text


def likelihoods(text: str, n: int) -> list[tuple[float, bool]] | None:
    """What `opdbench.lm.likelihood` stored, as lm-eval has it; None for any other text."""
    try:
        values = json.loads(text)
        found = [(float(logp), bool(greedy)) for logp, greedy in values]
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None
    return found if len(found) == n else None


def _figure(metric: str, ensemble: str) -> str:
    return metric if ensemble == "none" else f"{metric},{ensemble}"
