"""Small local models with which the whole GSM8K path runs on real questions: `python tests/lm/tiny_models.py OUT`.

OUT/teacher and OUT/student are Qwen3-architecture models in Hugging Face format that share a byte-level BPE tokenizer,
trained on GSM8K's own text, with Qwen's chat markers. The teacher has seen real solutions for under a minute: enough to
write in their form (`... #### 12`), so that there is something to distil, and not enough to solve many problems.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from opdbench.task import Example
from opdbench.tasks.gsm8k import GSM8K

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

VOCABULARY = 1024
TEMPLATE = ("{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
TEACHER_STEPS = 450  # under a minute on one core
SIZES = {"teacher": {"layers": 2, "hidden": 128}, "student": {"layers": 2, "hidden": 64}}


def gsm8k_folder() -> Path | None:
    """The folder of real GSM8K files beside the checkout (or below OPDBENCH_SHARED), or None."""
    shared = Path(os.environ.get("OPDBENCH_SHARED") or Path(__file__).resolve().parents[2].parent / "shared")
    folder = shared / "data" / "gsm8k"
    return folder if folder.is_dir() else None


def make(out: Path, *, data: str | None = None, teacher_steps: int = TEACHER_STEPS, seed: int = 0) -> dict[str, Path]:
    """Write OUT/teacher (trained for `teacher_steps`) and OUT/student (random weights); returns their folders."""
    examples = GSM8K(data=data).examples("train")
    tokenizer = make_tokenizer([text for example in examples[:2000] for text in (question(example), example.solution)])
    for index, (role, size) in enumerate(SIZES.items()):
        model = make_model(tokenizer, **size, seed=seed + index)
        if role == "teacher":
            train(model, tokenizer, examples, steps=teacher_steps, seed=seed)
        model.save_pretrained(out / role)
        tokenizer.save_pretrained(out / role)
    return {role: out / role for role in SIZES}


def question(example: Example) -> str:
    assert not isinstance(example.prompt, str)
    return example.prompt[-1]["content"]


def make_tokenizer(texts: Sequence[str | None]) -> PreTrainedTokenizerFast:
    """Byte-level BPE as real models have it: any text can be encoded, and decoding gives it back exactly."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>",
                                        additional_special_tokens=["<|im_start|>"], padding_side="left")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast, *, layers: int, hidden: int, seed: int) -> Qwen3ForCausalLM:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    stops = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = Qwen3ForCausalLM(Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=hidden // 4, max_position_embeddings=2048,
        tie_word_embeddings=True, bos_token_id=None, **stops))
    model.generation_config.update(**stops)
    return model


def train(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example], *, steps: int,
          seed: int, batch: int = 8) -> None:
    """A short supervised training on the solutions of the 2,000 shortest problems (the cheapest ones)."""
    examples = sorted(examples, key=lambda example: len(question(example)) + len(example.solution or ""))[:2000]
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=max(steps, 1), pct_start=0.1)
    for step in range(steps):
        chosen = torch.randint(len(examples), (batch,), generator=generator).tolist()
        token_bt, is_solution_bt = encode(tokenizer, [examples[index] for index in chosen])
        features_nh = model.model(token_bt[:, :-1]).last_hidden_state[is_solution_bt[:, 1:]]
        loss = cross_entropy(model.lm_head(features_nh), token_bt[:, 1:][is_solution_bt[:, 1:]])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}/{steps}  loss {loss.item():.2f}", flush=True)


def encode(tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Prompts with their solutions, int64 [B, T], padded on the right; bool [B, T], True on the solutions' tokens."""
    prompts = [tokenizer.apply_chat_template(example.prompt, tokenize=False, add_generation_prompt=True)
               for example in examples]
    prompt_ids = [tokenizer(prompt).input_ids for prompt in prompts]
    solution_ids = [tokenizer(f"{example.solution}<|im_end|>").input_ids for example in examples]
    sequences = [torch.tensor(prompt + solution) for prompt, solution in zip(prompt_ids, solution_ids, strict=True)]
    masks = [torch.tensor([False] * len(prompt) + [True] * len(solution))
             for prompt, solution in zip(prompt_ids, solution_ids, strict=True)]
    return pad_sequence(sequences, batch_first=True), pad_sequence(masks, batch_first=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to make teacher/ and student/ in")
    parser.add_argument("--data", help="folder with GSM8K's files; default: ../shared/data/gsm8k, else the hub")
    parser.add_argument("--teacher-steps", type=int, default=TEACHER_STEPS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = arguments.data or (str(folder) if (folder := gsm8k_folder()) else None)
    folders = make(arguments.out, data=data, teacher_steps=arguments.teacher_steps, seed=arguments.seed)
    print(*folders.values(), sep="\n")


if __name__ == "__main__":
    main()
