"""What a run is asked to do: the recipe (what is computed) and the execution (how it is computed).

Two runs with the same recipe compute the same thing; `Recipe.digest` names it. A hardware profile may only choose the
`Execution`: it changes speed, memory and rounding, never what is minimised or drawn from, nor the random numbers
that it is drawn with.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

Reduction = Literal["token", "sequence", "sum"]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Budget(Frozen):
    """Where training stops: at the first of these that is reached. Evaluation does not count."""

    steps: PositiveInt | None = Field(None, description="rounds of collect and update")
    tokens: PositiveInt | None = Field(
        None, description="tokens or environment steps collected, whoever chose them, before any reuse")
    student_tokens: PositiveInt | None = Field(None, description="tokens or environment steps that the student chose")
    teacher_tokens: PositiveInt | None = Field(None, description="tokens or environment steps that the teacher chose")
    seconds: PositiveFloat | None = Field(None, description="training seconds; such a run does not repeat exactly")

    def limits(self) -> dict[str, float]:
        return {axis: limit for axis, limit in self.model_dump().items() if limit is not None}


class Training(Frozen):
    """Optimisation and rollout settings that every method shares; a task sets its own defaults."""

    lr: PositiveFloat = Field(1e-3, description="peak learning rate of AdamW")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="learning rate over the budget; linear and cosine end at zero")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up from zero")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's first-moment decay")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's second-moment decay")
    grad_clip: PositiveFloat | None = Field(1.0, description="largest global gradient norm; None leaves it")
    batch: PositiveInt = Field(64, description="trajectories a step: completions, or parallel environments")
    horizon: PositiveInt | None = Field(
        None, description="longest trajectory, in tokens or environment steps; None is the task's own")
    temperature: PositiveFloat = Field(1.0, description="sampling temperature of the student's rollouts")
    teacher_temperature: PositiveFloat = Field(1.0, description="sampling temperature of the teacher's rollouts")
    thinking: Literal["off", "on", "both"] = Field(
        "off", description="for chat templates that can forbid thinking: never, always, on every other prompt")
    loss_temperature: PositiveFloat = Field(
        1.0, description="of both distributions in the loss; sampling has its own")
    support: Literal["full", "teacher", "student", "union", "intersection"] = Field(
        "full", description="actions that the two are compared on: all, or the top_k of one, of either, of both")
    top_k: PositiveInt = Field(64, description="size of the support")
    tail: Literal["bucket", "renormalise", "stop_gradient"] = Field(
        "bucket", description="what lies outside the support: one more event, ignored, or taken as agreed")
    lora_rank: int = Field(
        0, ge=0, description="train adapters of this rank on all linear layers but the output; 0 trains all weights")
    lora_alpha: PositiveFloat = Field(32.0, description="adapters count lora_alpha / lora_rank")
    reduction: Reduction = Field(
        "token", description="token: mean over rows; sequence: mean over trajectories of their means; sum: plain sum")


class Evaluation(Frozen):
    """How scores are taken; part of the recipe because it changes what is reported."""

    examples: PositiveInt | None = Field(None, description="test problems or episodes; None is the task's own number")
    sampled: bool = Field(True, description="also score sampling at temperature 1")
    curve_points: int = Field(4, ge=0, description="validation scores during training, evenly over the budget")
    curve_examples: PositiveInt = Field(100, description="validation problems or episodes for each of them")


class ModelRef(Frozen):
    """A model by what was asked for and by what it contains; only the checksum enters the recipe's digest."""

    reference: str
    sha256: str
    parts: tuple[ModelRef, ...] = Field((), description="of a teacher that is made of several")


class Recipe(Frozen):
    """What is computed. Everything that may change a result beyond rounding, and nothing else."""

    method: str
    method_sha256: str = Field(description="of the method's code without comments and docstrings")
    params: dict[str, Any] = Field(description="every parameter of the method, resolved")
    task: str = Field(description="name@version")
    task_params: dict[str, Any] = Field(default_factory=dict, description="every parameter of the task, resolved")
    task_sha256: str = Field(description="of all problems, or of the environment's definition")
    teacher: ModelRef | None
    student: ModelRef
    budget: Budget
    training: Training
    evaluation: Evaluation
    seed: int = Field(ge=0)

    def digest(self) -> str:
        """sha256 of the canonical JSON, with models by content and not by the name they were asked for."""
        content = self.model_dump(mode="json")
        for role in ("teacher", "student"):
            if content[role] is not None:
                content[role] = content[role]["sha256"]
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def run_id(self) -> str:
        """The first 12 digits of the digest, by which people and folders call a run."""
        return self.digest()[:12]


class Execution(Frozen):
    """How it is computed; see the module's docstring for what that may change."""

    profile: str = Field("cpu-2", description="the hardware profile that this came from")
    device: Literal["cpu", "cuda"] = "cpu"
    devices: PositiveInt = Field(1, description="number of accelerators")
    dtype: Literal["float64", "float32", "bfloat16"] = Field(
        "float32", description="of the student; in control of the teacher, too, and bfloat16 only of what sees pixels")
    teacher_dtype: Literal["float64", "float32", "bfloat16"] = Field("float32", description="of the teacher")
    threads: PositiveInt | None = Field(None, description="CPU threads of torch; None leaves torch's choice")
    micro_batch: PositiveInt = Field(64, description="trajectories in one forward and backward pass")
    row_chunk: PositiveInt = Field(8192, description="rows whose logits exist at one time, at most")
    # Above 32 MiB in float32, from where on the C library gives freed memory back at once.
    logit_chunk: PositiveInt = Field(
        12_000_000, description="rows x actions that exist at one time: cuts row_chunk where the vocabulary is large")
    teacher_batch: PositiveInt = Field(64, description="trajectories in one teacher pass")
    generation_batch: PositiveInt = Field(256, description="trajectories that are generated together")
    teacher_cache: str | None = Field(
        None, description="folder that keeps what a teacher over HTTP says, for every seed and method")
    teacher_requests: PositiveInt = Field(8, description="requests to it at one time")
    teacher_timeout: PositiveFloat = Field(60.0, description="seconds that one attempt at a request may take")
    gradient_checkpointing: bool = Field(
        False, description="a language model's activations are computed again for the gradient, not kept")
    engine: Literal["hf"] = Field("hf", description="generation engine")
    probes: tuple[str, ...] = Field(
        (), description="what is watched besides (--probe); changes nothing that is trained")
    checkpoint_seconds: float = Field(15.0, ge=0, description="wall seconds between checkpoints; 0 is every step")

    def rows_at_once(self, n_actions: int) -> int:
        """Rows whose logits over `n_actions` may exist at one time."""
        return max(1, min(self.row_chunk, self.logit_chunk // n_actions))


class Spec(Frozen):
    """A resolved run: recipe, execution, and for every value that was not left at its default, who set it."""

    recipe: Recipe
    execution: Execution
    origins: dict[str, str] = Field(
        default_factory=dict, description="dotted key -> user, preset, task, profile or default")
