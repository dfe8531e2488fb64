"""TRL's trainers, one step at a time; their own training loop waits between steps.

A step is everything from one `on_step_end` to the next: drawing the batch, generating, scoring, the update, logging at
the trainer's own interval. Settings are the trainer's defaults except where equal work demands otherwise: float32, no
gradient checkpointing (a memory saver that costs a second forward pass), sampling at temperature 1 from the whole
distribution, reverse KL, no early stop. On an accelerator the student is trained in bfloat16 with float32 weights, as
TRL's defaults and opdbench's profiles have it, and the teacher is in bfloat16.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, Qwen3ForCausalLM, TrainerCallback

from benchmarks import workload
from benchmarks.pipe import Channel, arguments
from benchmarks.timing import Parts, clock_of, peak_bytes

ENOUGH_STEPS = 10_000
Models = dict[str, Any]  # student, teacher, tokenizer
Settings = dict[str, Any]


class OnCommand(TrainerCallback):
    """Stops the training loop after every step until the parent asks for the next."""

    def __init__(self, channel: Channel, parts: Parts, about: dict[str, Any], counts: dict[str, Any]) -> None:
        self.channel, self.parts, self.about, self.counts = channel, parts, about, counts
        self.start = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.channel.send(self.about)
        self._wait(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.channel.send({"seconds": self.parts.clock() - self.start, "parts": self.parts.pop(), **self.counts,
                           "memory": peak_bytes("cpu" if args.use_cpu else "cuda")})
        self._wait(control)

    def _wait(self, control: Any) -> None:
        control.should_training_stop = not self.channel.wait()
        self.parts.pop()
        self.counts.update(tokens=0, loss=0.0)
        self.start = self.parts.clock()


def common(work: workload.Workload, output: str, device: str, micro_batch: int) -> Settings:
    """Settings that both trainers share."""
    return {"output_dir": output, "per_device_train_batch_size": micro_batch, "max_steps": ENOUGH_STEPS,
            "gradient_accumulation_steps": work.batch // micro_batch, "learning_rate": work.lr, "report_to": [],
            "save_strategy": "no", "use_cpu": device == "cpu", "bf16": device != "cpu", "disable_tqdm": True,
            "temperature": 1.0, "gradient_checkpointing": False, "lr_scheduler_type": "constant"}


def distillation(models: Models, work: workload.Workload, rows: list[Any], settings: Settings,
                 callback: OnCommand) -> Any:
    """trl.DistillationTrainer, its stable trainer."""
    from trl import DistillationConfig, DistillationTrainer

    config = DistillationConfig(**settings, beta=1.0, max_completion_length=work.new,
                                generation_kwargs={"min_new_tokens": work.new})
    return DistillationTrainer(model=models["student"], teacher_model=models["teacher"], args=config,
                               train_dataset=Dataset.from_list([{"prompt": row} for row in rows]),
                               processing_class=models["tokenizer"], callbacks=[callback])


def gkd(models: Models, work: workload.Workload, rows: list[Any], settings: Settings, callback: OnCommand) -> Any:
    """TRL's experimental GKDTrainer. It reads and discards a reference answer, here one of about equal length."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    answer = {"role": "assistant", "content": " ".join("abcdefgh"[i % 8] for i in range(work.new // 2))}
    config = GKDConfig(**settings, lmbda=1.0, beta=1.0, max_new_tokens=work.new,
                       max_length=2 * (work.prompt + work.new))
    trainer = GKDTrainer(model=models["student"], teacher_model=models["teacher"], args=config,
                         train_dataset=Dataset.from_list([{"messages": [*row, answer]} for row in rows]),
                         processing_class=models["tokenizer"], callbacks=[callback])
    trainer.generation_config.min_new_tokens = work.new
    return trainer


TRAINERS = {"DistillationTrainer": distillation, "GKDTrainer": gkd}


def watch(trainer: Any, models: Models, work: workload.Workload, parts: Parts, counts: dict[str, Any]) -> None:
    """Charge the trainer's stages to generation, teacher and student, and note loss and number of new tokens."""
    parts.wrap(models["student"], "generate", "generation")
    parts.wrap(models["teacher"], "forward", "teacher")
    parts.wrap(models["teacher"].model, "forward", "teacher")  # DistillationTrainer calls the backbone alone
    if hasattr(trainer, "_generate_and_score_completions"):
        parts.wrap(trainer, "_generate_and_score_completions", "generation")
    parts.wrap(trainer, "compute_loss", "student")
    parts.wrap(trainer.accelerator, "backward", "student")
    _note(trainer, "compute_loss", lambda loss: counts.update(loss=counts["loss"] + float(loss.detach())))
    _note(models["student"], "generate", lambda out: counts.update(tokens=counts["tokens"] + _new_tokens(out, work)))


def _new_tokens(output: Any, work: workload.Workload) -> int:
    batch, length = getattr(output, "sequences", output).shape
    return int(batch * (length - work.prompt))


def _note(owner: Any, name: str, note: Any) -> None:
    inner = getattr(owner, name)

    def noted(*args: Any, **kwargs: Any) -> Any:
        result = inner(*args, **kwargs)
        note(result)
        return result

    owner.__dict__[name] = noted


def main() -> None:
    import transformers
    import trl

    channel, given = Channel(), arguments()
    torch.set_num_threads(1)
    folder, name, device = Path(given["folder"]), given["trainer"], given["device"]
    work = workload.read(folder).with_batch(given["batch"])
    dtypes = {"student": torch.float32, "teacher": torch.float32 if device == "cpu" else torch.bfloat16}
    models: Models = {role: Qwen3ForCausalLM.from_pretrained(folder / role, dtype=dtype).to(device)
                      for role, dtype in dtypes.items()}
    models["tokenizer"] = AutoTokenizer.from_pretrained(folder / "student")
    rows = workload.prompts(models["tokenizer"], work.prompt, max(256, work.batch))
    about = {"name": name, "version": f"trl {trl.__version__}, transformers {transformers.__version__}, "
                                      f"torch {torch.__version__}"}
    counts: dict[str, Any] = {}
    parts = Parts(clock_of(device))
    with tempfile.TemporaryDirectory() as output:
        settings = common(work, output, device, given["micro_batch"])
        trainer = TRAINERS[name](models, work, rows, settings, OnCommand(channel, parts, about, counts))
        watch(trainer, models, work, parts, counts)
        trainer.train()


if __name__ == "__main__":
    main()
