"""What a plan will cost, before anything is started.

Tokens and FLOPs are upper bounds: every trajectory as long as the horizon, and each trained on once (a method that
replays data trains on more). Sizes are read from the headers of the weight files and from the configurations; no weight
is loaded. Memory and time are estimates, good to a factor of about two: time is what the FLOPs take at the speed of a
matrix product measured now, and what it takes to dispatch the operations of decoding, one step after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import prod
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from opdbench.distiller import Needs
from opdbench.errors import UserError
from opdbench.ledger import peak_memory
from opdbench.references import Copy, Model, Route, fresh_widths, leaves
from opdbench.resolve import Plan
from opdbench.schema.spec import Execution
from opdbench.task import ControlTask, LanguageTask, Task

_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2}
_QUANTISED_BYTES = {"int8": 1.0, "nf4": 0.6}  # a parameter, with the scale of every block
_TABLES = ("embed", "lm_head", "wte", "wpe")  # what tables and output layers are called, which get no adapters
_DISPATCHES_A_LAYER = 20  # of a decoder's forward pass
_DISPATCHES_A_STEP = 40  # sampling, bookkeeping, the first and the last layer
_VALUES_A_UNIT = 22  # kept for the backward pass, for every unit of a layer's width and every token
_VALUES_A_UNIT_RECOMPUTED = 2  # likewise, when a layer keeps no more than its input
_LOGIT_COPIES = 6  # logits and log-probabilities of both models and their gradients, in float32
_PROMPTS_READ = 64


class Size(NamedTuple):
    """What a model's cost depends on; zeros for no model."""

    parameters: int = 0
    embedding: int = 0  # parameters of a table that is only looked up
    layers: int = 0
    width: int = 0
    attention_width: int = 0  # heads x their size
    cache_width: int = 0  # values that one layer caches for one token
    actions: int = 0
    forward: float = 0.0  # FLOPs of one state, where they do not follow from the above

    def flops(self, context: float) -> float:
        """Of one state's forward pass, after `context` inputs."""
        if self.forward:
            return self.forward
        return 2.0 * (self.parameters - self.embedding) + 4.0 * self.layers * self.attention_width * context


class Estimate(NamedTuple):
    """None where nothing can be said: a budget of seconds only, or a device that is not here."""

    steps: int | None
    tokens: int | None  # at most; sampled by the student or the teacher, as the method has it
    prompt_tokens: int | None  # read besides, environment turns not counted
    flops: float | None  # at most, for methods that train once on what they sample
    memory_bytes: int  # at the peak: of the process on a CPU, of the accelerator elsewhere
    seconds: float | None  # of training
    student_parameters: int
    teacher_parameters: int


def estimate(plan: Plan) -> Estimate:
    """The cost of training; evaluation comes on top.

    Raises:
        UserError: a model's files cannot be read.
    """
    training, execution = plan.spec.recipe.training, plan.spec.execution
    student, teachers = _student_size(plan), _teacher_sizes(plan)
    horizon = training.horizon or 1
    steps = _steps(plan, training.batch * horizon)
    prompt = _mean_prompt(plan)
    flops_a_step = training.batch * (prompt + horizon) * _flops_a_state(plan, student, teachers, (prompt + horizon) / 2)
    tokens = prompt_tokens = flops = seconds = None
    if steps is not None:
        tokens, prompt_tokens = steps * training.batch * horizon, round(steps * training.batch * prompt)
        flops = steps * flops_a_step
        if _is_here(execution):
            seconds = flops / _flops_per_second(execution, student.width) + steps * _waiting(plan, student)
    return Estimate(steps, tokens, prompt_tokens, flops, _memory(plan, student, teachers, prompt + horizon), seconds,
                    student.parameters, sum(teacher.parameters for teacher in teachers))


def _flops_a_state(plan: Plan, student: Size, teachers: list[Size], context: float) -> float:
    """One forward pass to act, one with its backward pass (twice as much; once under adapters) to learn, and the
    teacher's: all of a mixture's, one of a route's."""
    scored = plan.needs not in (Needs.NOTHING, Needs.TEXT)
    asked = 1 / len(teachers) if isinstance(plan.teacher, Route) else 1.0
    passes = 3 if plan.spec.recipe.training.lora_rank else 4
    passes += plan.method_class.own_teacher  # a copy of the student, under a prompt of about that length
    return passes * student.flops(context) + scored * asked * sum(teacher.flops(context) for teacher in teachers)


def _steps(plan: Plan, per_step: int) -> int | None:
    """Fewest steps that some limit allows; token limits are reached with at most `per_step` tokens a step."""
    budget = plan.spec.recipe.budget
    limits = [] if budget.steps is None else [budget.steps]
    limits += [-(-limit // per_step) for limit in (budget.tokens, budget.student_tokens, budget.teacher_tokens)
               if limit is not None]
    return min(limits) if limits else None


def _mean_prompt(plan: Plan) -> float:
    """Mean length of the first prompts, in tokens; 0 in control tasks."""
    if not isinstance(plan.task, LanguageTask) or plan.student is None:
        return 0.0
    from opdbench.lm.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(plan.student)
    examples = plan.task.examples("train")[:_PROMPTS_READ]
    return sum(len(tokenizer.render(example.prompt)) for example in examples) / len(examples)


# ------------------------------------------------------------------------------------------------------------ models


def _student_size(plan: Plan) -> Size:
    if plan.student is not None:
        return _size(plan, plan.student)
    assert isinstance(plan.task, ControlTask)
    from opdbench.rl.games_world import fresh_games_student
    from opdbench.rl.world import fresh_student

    make = fresh_games_student if plan.task.games() else fresh_student
    return _control_size(make(plan.task, plan.spec.recipe.seed, fresh_widths(plan.spec.recipe.student.reference)))


def _teacher_sizes(plan: Plan) -> list[Size]:
    """Of every model that the teacher is made of."""
    found = [] if plan.teacher is None else leaves(plan.teacher)
    return [_size(plan, leaf.path) if isinstance(leaf, Model) else _student_size(plan) for leaf in found]


def _size(plan: Plan, path: Path) -> Size:
    if isinstance(plan.task, ControlTask):
        from opdbench.rl.load import load_policy

        policy = load_policy(path, trust_pickle=plan.request.trust_pickle)
        return _control_size(policy)
    from opdbench.lm.checkpoint import read_config

    config = read_config(path)
    return _language_size(config.get("text_config", config), parameters(path))


def _control_size(policy: Any) -> Size:
    # A convolution's weights are used in many places; elsewhere the formula counts biases, as it always has.
    forward = policy.forward_flops(1, 1) if hasattr(policy, "network") else 0.0
    return Size(policy.n_parameters(), layers=policy.n_layers, actions=policy.n_actions, forward=forward)


def _language_size(config: dict[str, Any], n_parameters: int) -> Size:
    """From a transformers configuration, whatever its architecture; what it does not say counts as zero."""
    width, heads = int(config.get("hidden_size", 0)), int(config.get("num_attention_heads", 0))
    head = int(config.get("head_dim") or (width // heads if heads else 0))
    actions = int(config.get("vocab_size", 0))
    return Size(n_parameters, 0 if config.get("tie_word_embeddings") else actions * width,
                int(config.get("num_hidden_layers", 0)), width, heads * head,
                2 * head * int(config.get("num_key_value_heads") or heads), actions)


def parameters(folder: Path) -> int:
    """Number of parameters in a model's safetensors files, from their headers.

    Raises:
        UserError: a file is cut short or not a safetensors file.
    """
    return sum(prod(shape) for shape in _shapes(folder).values())


def _shapes(folder: Path) -> dict[str, list[int]]:
    """Name and shape of every tensor in a folder's safetensors files."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy") as weights:
                shapes |= {name: weights.get_slice(name).get_shape()
                           for name in weights.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is cut short or not a safetensors file: {error}",
                            "download the model again, or pass another") from None
    return shapes


# --------------------------------------------------------------------------------------------------- memory and time


def _trained(plan: Plan, student: Size) -> int:
    """Number of weights that the optimizer moves."""
    rank = plan.spec.recipe.training.lora_rank
    if not rank or plan.student is None:
        return student.parameters
    return sum(rank * sum(shape) for name, shape in _shapes(plan.student).items()
               if len(shape) == 2 and not any(table in name for table in _TABLES))


def _teacher_bytes(plan: Plan, teachers: list[Size]) -> float:
    execution, total = plan.spec.execution, 0.0
    for leaf, size in zip([] if plan.teacher is None else leaves(plan.teacher), teachers, strict=True):
        if isinstance(leaf, Model):
            total += size.parameters * (_QUANTISED_BYTES[leaf.quantisation] if leaf.quantisation
                                        else _BYTES[execution.teacher_dtype])
        else:
            total += size.parameters * (_BYTES[execution.dtype] + (4 if isinstance(leaf, Copy) and leaf.decay else 0))
    return total


def _memory(plan: Plan, student: Size, teachers: list[Size], length: float) -> int:
    """The libraries, the weights, and the larger of what generating and what training holds at one time."""
    training, execution = plan.spec.recipe.training, plan.spec.execution
    width, trained = _BYTES[execution.dtype], _trained(plan, student)
    # Weights, gradient and two moments; bfloat16 weights have a float32 copy, with float32 moments.
    weights = student.parameters * width + trained * (14 if width == 2 else 3 * width) + _teacher_bytes(plan, teachers)
    together = min(training.batch, execution.generation_batch) * length
    generating = together * student.layers * student.cache_width * width
    rows = min(execution.rows_at_once(student.actions), training.batch * length)
    tokens = min(execution.micro_batch, training.batch) * length
    kept = _VALUES_A_UNIT_RECOMPUTED if execution.gradient_checkpointing else _VALUES_A_UNIT
    learning = rows * student.actions * 4 * _LOGIT_COPIES + tokens * student.layers * student.width * kept * width
    here = peak_memory() if execution.device == "cpu" else 0
    return round(here + weights + max(generating, learning))


def _waiting(plan: Plan, student: Size) -> float:
    """Seconds a training step that no arithmetic explains: dispatching operations, and the environment."""
    training, execution = plan.spec.recipe.training, plan.spec.execution
    horizon = training.horizon or 1
    groups = -(-training.batch // execution.generation_batch) if isinstance(plan.task, LanguageTask) else 1
    passes = groups * horizon + 3 * -(-training.batch // execution.micro_batch)
    dispatches = passes * (student.layers * _DISPATCHES_A_LAYER + _DISPATCHES_A_STEP)
    acting = training.batch * horizon * _seconds_an_environment_step(plan.task)
    return dispatches * _seconds_a_dispatch(execution) + acting


def _is_here(execution: Execution) -> bool:
    import torch

    return execution.device == "cpu" or torch.cuda.is_available()


def _flops_per_second(execution: Execution, width: int) -> float:
    """Speed of one matrix product of the student's width, on the execution's device and in its precision."""
    import torch

    if execution.threads is not None:
        torch.set_num_threads(execution.threads)
    rows, width = 512 if execution.device == "cpu" else 8192, max(width, 32)
    kind = {"dtype": getattr(torch, execution.dtype), "device": execution.device}
    input_nh, weight_hh = torch.ones(rows, width, **kind), torch.ones(width, width, **kind)
    return 2 * rows * width**2 / _seconds_each(lambda: (input_nh @ weight_hh)[0, 0].item())


def _seconds_a_dispatch(execution: Execution) -> float:
    import torch

    a = torch.ones(8, 8, dtype=getattr(torch, execution.dtype), device=execution.device)
    return _seconds_each(lambda: a + a)


def _seconds_an_environment_step(task: Task) -> float:
    if not isinstance(task, ControlTask):
        return 0.0
    if task.games():
        return fmean(map(_seconds_an_environment_step, task.games()))
    environment = task.make()
    try:
        environment.reset(seed=0)
        environment.action_space.seed(0)

        def step() -> None:
            *_, terminated, truncated, _ = environment.step(environment.action_space.sample())
            if terminated or truncated:
                environment.reset()

        return _seconds_each(step)
    finally:
        environment.close()


def _seconds_each(work: Callable[[], object]) -> float:
    """Of one call, over about 0.05 s, after a first one that does not count."""
    work()
    began, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < 0.05:
        work()
        count += 1
    return passed / count
