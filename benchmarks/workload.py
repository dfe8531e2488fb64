"""The work that every competitor does: one tokenizer, one teacher, one student, and prompts of a fixed length.

Random weights cost what trained ones cost, so nothing is trained. Everything is derived from fixed seeds and written to
a folder that transformers and opdbench read alike.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

CHAT = ("{% for m in messages %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = ["the", "sum", "number", "step", "compute", "answer", "total", "plus", "minus", "times", "equals", "then"]


@dataclass(frozen=True)
class Size:
    """Shape of one Qwen3-architecture model."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int


@dataclass(frozen=True)
class Workload:
    """One on-policy step: `batch` prompts of `prompt` tokens, exactly `new` tokens each, one AdamW update."""

    student: Size
    teacher: Size
    vocabulary: int
    batch: int
    prompt: int
    new: int
    lr: float = 1e-4

    def with_batch(self, batch: int) -> Workload:
        return replace(self, batch=batch)

    def describe(self) -> str:
        return f"batch {self.batch}, prompt {self.prompt}, {self.new} new tokens, vocabulary {self.vocabulary:,}"


SMALL = Workload(student=Size(2, 64, 4, 2, 16, 192), teacher=Size(4, 128, 4, 2, 32, 384), vocabulary=1024, batch=16,
                 prompt=32, new=64)
TINY = replace(SMALL, batch=4, prompt=20, new=8)
# The shapes of Qwen3-0.6B and Qwen3-8B.
LARGE = Workload(student=Size(28, 1024, 16, 8, 128, 3072), teacher=Size(36, 4096, 32, 8, 128, 12288),
                 vocabulary=151_936, batch=64, prompt=128, new=512, lr=1e-5)


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """A byte-level BPE with chat markers, trained on made-up sums; its vocabulary may end below `vocabulary`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng = Random(0)
    lines = [" ".join(rng.choice(WORDS) + str(rng.randint(0, 9999)) for _ in range(20)) for _ in range(2000)]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(lines, trainers.BpeTrainer(
        vocab_size=min(vocabulary, 1024), special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, eos_token=SPECIAL[2], pad_token=SPECIAL[0], additional_special_tokens=[SPECIAL[1]],
        padding_side="left")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)


def config(size: Size, vocabulary: int, context: int) -> dict[str, Any]:
    """config.json of one model, with tied embeddings."""
    return {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": vocabulary,
            "hidden_size": size.hidden, "intermediate_size": size.intermediate, "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads, "num_key_value_heads": size.kv_heads, "head_dim": size.head_dim,
            "hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": context, "initializer_range": 0.02,
            "tie_word_embeddings": True, "attention_bias": False, "use_sliding_window": False, "eos_token_id": 2,
            "pad_token_id": 0, "bos_token_id": None, "use_cache": True, "attention_dropout": 0.0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}


def write_models(workload: Workload, folder: Path, *, device: str = "cpu", dtype: str = "float32") -> None:
    """`folder/student` and `folder/teacher`, with the tokenizer in both; and the workload beside them.

    Args:
        device: where the random weights are drawn; a large model takes minutes on a CPU.
        dtype: of the weights as they are drawn and stored.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for seed, (role, size) in enumerate([("teacher", workload.teacher), ("student", workload.student)]):
        torch.manual_seed(seed)
        settings = config(size, workload.vocabulary, workload.prompt + workload.new)
        with torch.device(device):
            model: Any = Qwen3ForCausalLM._from_config(  # type: ignore[no-untyped-call]
                Qwen3Config(**settings), dtype=getattr(torch, dtype))
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
        model.save_pretrained(folder / role)
        write_tokenizer(folder / role, workload.vocabulary)
    (folder / "workload.json").write_text(json.dumps(asdict(workload)))


def read(folder: Path) -> Workload:
    """The workload that `write_models` wrote."""
    values = json.loads((folder / "workload.json").read_text())
    return Workload(**{**values, "student": Size(**values["student"]), "teacher": Size(**values["teacher"])})


def prompts(tokenizer: Any, length: int, n: int) -> list[list[dict[str, str]]]:
    """`n` conversations whose rendered prompt has exactly `length` tokens."""
    rng = Random(1)
    found: list[list[dict[str, str]]] = []
    while len(found) < n:
        words = [rng.choice("abcdefgh")]
        while (size := _rendered(tokenizer, " ".join(words))) < length:
            words.append(rng.choice("abcdefgh"))
        if size == length:
            found.append([{"role": "user", "content": " ".join(words)}])
    return found


def _rendered(tokenizer: Any, text: str) -> int:
    return len(tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True,
                                             tokenize=True, return_dict=False))
