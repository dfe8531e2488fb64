"""Teachers in 8 and 4 bits: smaller, close, another recipe, and a run that works."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from opdbench.errors import UserError
from opdbench.lm.architecture import qwen3_config
from opdbench.lm.decoder import NativePolicy
from opdbench.lm.model import load
from opdbench.lm.policy import LanguagePolicy
from opdbench.lm.tokenizer import Tokenizer
from opdbench.references import Quantisation
from tests.test_run import execute, plan_of

TEACHER = Path(__file__).resolve().parents[2] / "tasks" / "models" / "chain-sum" / "teacher"
TEXT = "34567"
needs_library = pytest.mark.skipif(find_spec("bitsandbytes") is None,
                                   reason="needs bitsandbytes: pip install 'opdbench[quant]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model that reads what chain-sum's do, with layers whose widths 64 divides, as in real models."""
    tokenizer = Tokenizer.load(TEACHER)
    config = qwen3_config(tokenizer.n_tokens, hidden_size=128, n_layers=2, n_heads=4, n_kv_heads=2, context_length=256)
    policy = NativePolicy.initialise({**config, "intermediate_size": 256, "initializer_range": 0.05}, tokenizer,
                                     torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("wide")
    policy.save(path)
    return path


def logp(policy: LanguagePolicy) -> Tensor:
    """Log-probabilities after every prefix of a text."""
    tokens = policy.tokenizer.encode(TEXT)
    with torch.no_grad():
        return policy.project(policy.features(torch.tensor([tokens]), torch.tensor([len(tokens)]))[0]).log_softmax(-1)


def layer_bytes(policy: LanguagePolicy) -> int:
    """Of everything but the table, which is not quantised."""
    table = policy.n_actions * 128 * 4
    return sum(parameter.numel() * parameter.element_size() for parameter in policy.parameters()) - table


@needs_library
@pytest.mark.parametrize(("quantisation", "divergence", "size"), [("int8", 1e-4, 0.26), ("nf4", 1e-2, 0.14)])
def test_it_is_close_and_smaller(folder: Path, quantisation: Quantisation, divergence: float, size: float) -> None:
    whole, quantised = load(folder), load(folder, quantisation=quantisation)
    p, q = logp(whole), logp(quantised)
    assert 0 < (p.exp() * (p - q)).sum(-1).mean() < divergence
    assert layer_bytes(quantised) < size * layer_bytes(whole)
    assert quantised.n_parameters() == whole.n_parameters()
    assert quantised.forward_flops(10, 5) == pytest.approx(whole.forward_flops(10, 5), rel=0.01)


@needs_library
def test_nf4_rounds_to_its_sixteen_values_in_blocks_of_64(folder: Path) -> None:
    from bitsandbytes.functional import dequantize_4bit

    whole, quantised = load(folder), load(folder, quantisation="nf4")
    weight = dict(whole.hf_tensors())["model.layers.0.mlp.up_proj.weight"]  # type: ignore[attr-defined]
    stored = quantised.model.model.layers[0].mlp.up_proj.weight  # type: ignore[attr-defined]
    levels, blocks = stored.quant_state.code, weight.reshape(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    nearest = levels[(blocks / largest)[..., None].sub(levels).abs().argmin(-1)] * largest
    torch.testing.assert_close(dequantize_4bit(stored.data, stored.quant_state), nearest.view_as(weight))


@needs_library
def test_a_run_works_and_is_another_recipe(folder: Path, tmp_path: Path) -> None:
    plain, plan = (plan_of("gkd", "curve_points=0", "examples=2", task="chain-sum", budget="steps=2",
                           teacher=f"{kind}{folder}") for kind in ("", "nf4:"))
    assert plan.spec.recipe.digest() != plain.spec.recipe.digest()
    record, _ = execute(plan, tmp_path)
    assert record.status == "completed" and record.ledger["teacher_scored"] > 0


@needs_library
def test_int8_keeps_a_real_teacher_as_good_as_it_was(tmp_path: Path) -> None:
    plan = plan_of("gkd", "curve_points=0", "examples=20", task="chain-sum", budget="steps=1",
                   teacher="int8:chain-sum/teacher")
    assert execute(plan, tmp_path)[0].teacher["greedy"].mean >= 0.9


@needs_library
def test_widths_that_would_be_read_back_wrongly_are_refused() -> None:
    with pytest.raises(UserError, match="layers 96 wide"):
        load(TEACHER, quantisation="nf4")


def test_without_the_library_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opdbench.lm.quantised.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'opdbench\[quant\]'"):
        load(TEACHER, quantisation="int8")
