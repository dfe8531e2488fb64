"""Rollouts and rows: what is a row, what is it next to, and what does it weigh."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from opdbench.conformance.compare import same_bits
from opdbench.conformance.enumerable import END, A, B
from opdbench.conformance.harness import make_rows, pad_with_garbage
from opdbench.distiller import Needs
from opdbench.distributions import Categorical
from opdbench.lm.generate import Completion, to_rollouts
from opdbench.rollouts import Rollouts, Source
from opdbench.rows import RowTable, row_weights
from tests.enumerable import context, small_language

NAN = float("nan")


def completion(tokens: list[int], *, ended: bool = True, environment: tuple[int, ...] = ()) -> Completion:
    sources = [int(Source.NOBODY if step in environment else Source.STUDENT) for step in range(len(tokens))]
    return Completion(tokens, sources, [NAN if step in environment else -0.5 for step in range(len(tokens))], ended)


def example() -> Rollouts:
    """Prompts of 1, 3 and 2 tokens; completions of 3 tokens (ended), 1 (cut off), and 3 with an environment's turn."""
    return to_rollouts([[A], [A, B, A], [B, B]],
                       [completion([A, B, END]), completion([B], ended=False),
                        completion([B, A, END], environment=(1,))])


def decided(rollouts: Rollouts, row: int) -> list[tuple[int, int]]:
    """(last token read, token chosen) in every row of a trajectory."""
    mask_t = rollouts.mask_bt[row]
    return list(zip(rollouts.input_bt[row][mask_t].tolist(), rollouts.action_bt[row][mask_t].tolist(), strict=True))


def test_shift_the_state_at_step_t_chooses_token_t_plus_one() -> None:
    """Trap: several trainers compare logits[t] with token t."""
    assert decided(example(), 0) == [(A, A), (A, B), (B, END)]


def test_prompt_boundary_the_first_row_is_the_last_prompt_token_for_prompts_of_any_length() -> None:
    """Trap: slicing by the batch's widest prompt drops tokens of the others; being off by one drops the first."""
    assert [row.nonzero()[0, 0].item() for row in example().mask_bt] == [0, 2, 1]
    assert decided(example(), 1) == [(A, B)]


def test_environment_turns_are_read_and_are_no_rows() -> None:
    rollouts = example()
    assert decided(rollouts, 2) == [(B, B), (A, END)]
    assert rollouts.input_bt[2, :4].tolist() == [B, B, B, A]
    assert rollouts.length_b.tolist() == [3, 3, 4]


def test_the_first_end_token_is_a_row_even_where_padding_has_the_same_id() -> None:
    """Trap: pad == eos and masks by id drop the end, so that the student never learns to stop."""
    rollouts = example()
    assert END == 0 and (rollouts.action_bt[0, 3:] == END).all()  # padding looks like the end token
    assert decided(rollouts, 0)[-1] == (B, END)
    assert rollouts.n_rows == 3 + 1 + 2


def test_done_and_truncated_tell_an_end_from_a_cut() -> None:
    rollouts = example()
    assert rollouts.done_bt.sum(1).tolist() == [1, 0, 1]
    assert rollouts.done_bt[0, 2] and rollouts.done_bt[2, 3]
    assert rollouts.truncated_b.tolist() == [False, True, False]


def test_counts_by_source() -> None:
    rollouts = example()
    assert rollouts.count(Source.STUDENT) == rollouts.n_rows == int(rollouts.mask_bt.sum()) == 6
    assert rollouts.count(Source.TEACHER) == rollouts.count(Source.DATA) == 0
    assert rollouts.n_trajectories == 3


def with_columns() -> Rollouts:
    rollouts = example()
    step_bt = torch.arange(rollouts.input_bt.numel()).view_as(rollouts.input_bt)
    return rollouts.with_columns(per_trajectory={"number": torch.tensor([10, 11, 12])}, per_step={"step": step_bt})


def equal(first: Rollouts, second: Rollouts) -> bool:
    one, other = first.tensors(), second.tensors()
    return one.keys() == other.keys() and all(same_bits(one[name], other[name]) for name in one)


def test_select_reorders_and_cuts_to_the_longest() -> None:
    chosen = with_columns().select([1, 0])
    assert chosen.input_bt.shape == (2, 3) and chosen.columns["step"].shape == (2, 3)
    assert chosen.columns["number"].tolist() == [11, 10]
    assert decided(chosen, 1) == [(A, A), (A, B), (B, END)]


def test_cat_pads_and_is_undone_by_select() -> None:
    rollouts = with_columns()
    joined = Rollouts.cat([rollouts.select([0, 1]), rollouts.select([2])])
    assert joined.input_bt.shape == rollouts.input_bt.shape
    for index in ([0, 1], [2]):
        assert equal(joined.select(index), rollouts.select(index))
    with pytest.raises(ValueError, match="different columns"):
        Rollouts.cat([rollouts, example()])


def test_flatten_makes_every_row_a_trajectory_with_its_own_columns() -> None:
    flat = with_columns().flatten()
    assert flat.n_trajectories == flat.n_rows == 6 and set(flat.length_b.tolist()) == {1}
    assert flat.columns["number"].tolist() == [10, 10, 10, 11, 12, 12]
    assert flat.action_bt[:, 0].tolist() == [A, B, END, B, B, END]


def test_tensors_are_a_round_trip_and_with_columns_leaves_the_original_alone() -> None:
    plain = example()
    assert equal(Rollouts.from_tensors(with_columns().tensors(), frozenset({"step"})), with_columns())
    plain.with_columns(per_step={"step": torch.zeros(plain.input_bt.shape)})
    assert plain.columns == {} and plain.step_columns == frozenset()


# ------------------------------------------------------------------------------------------------------------- weights


def per_row(rollouts: Rollouts, reduction: str) -> list[float]:
    return row_weights(rollouts, reduction).tolist()


def test_l13_token_sequence_and_sum_differ_by_the_known_length_weights() -> None:
    """Trap: names. TRL's "batchmean" is the mean over tokens; torch's divides by the batch; others sum."""
    rollouts = example()  # 3, 1 and 2 rows
    assert per_row(rollouts, "token") == pytest.approx([1 / 6] * 6)
    assert per_row(rollouts, "sequence") == pytest.approx([1 / 9] * 3 + [1 / 3] + [1 / 6] * 2)
    assert per_row(rollouts, "sum") == [1.0] * 6


def test_trajectories_without_rows_count_for_nothing() -> None:
    silent = to_rollouts([[A], [B]], [completion([A, END]), completion([A, A], environment=(0, 1))])
    assert per_row(silent, "sequence") == pytest.approx([1 / 2] * 2)
    assert per_row(silent, "token") == pytest.approx([1 / 2] * 2)


def test_parts_are_normalised_apart() -> None:
    parts = example().with_columns(per_trajectory={"part": torch.tensor([0, 0, 1])})
    assert per_row(parts, "token") == pytest.approx([1 / 4] * 4 + [1 / 2] * 2)
    assert per_row(parts, "sequence") == pytest.approx([1 / 6] * 3 + [1 / 2] + [1 / 2] * 2)


# ---------------------------------------------------------------------------------------------------------------- rows


def table(rollouts: Rollouts) -> tuple[RowTable, Tensor]:
    features_nh = torch.arange(2 * rollouts.n_rows, dtype=torch.float64).view(-1, 2)
    return RowTable(rollouts, SimpleNamespace(distribution=Categorical), None), features_nh  # type: ignore[arg-type]


def test_chunks_are_the_rows_in_order_of_trajectory_and_step() -> None:
    rollouts = with_columns()
    rows, features_nh = table(rollouts)
    chunks = [rows.chunk(features_nh[start:start + 4], start, start + 4) for start in (0, 4)]
    assert [len(chunk) for chunk in chunks] == [4, 2]
    assert torch.cat([chunk.action_n for chunk in chunks]).tolist() == [A, B, END, B, B, END]
    assert torch.cat([chunk.columns["number"] for chunk in chunks]).tolist() == [10, 10, 10, 11, 12, 12]
    steps = torch.cat([chunk.columns["step"] for chunk in chunks])
    assert torch.equal(steps, rollouts.columns["step"][rollouts.mask_bt])


def test_a_teacher_that_was_not_asked_for_is_not_there() -> None:
    rows, features_nh = table(example())
    with pytest.raises(LookupError, match=r"set needs = Needs\.FULL"):
        _ = rows.chunk(features_nh, 0, 6).teacher


def test_first_rows_are_cut_from_the_graph() -> None:
    rows, features_nh = table(example())
    first = rows.chunk(features_nh.requires_grad_(), 0, 6).first(2)
    assert len(first) == 2 and not first.student.logp_na.requires_grad


_COLUMN = {Needs.SAMPLED: "logp", Needs.ACTION: "action"}


@pytest.mark.parametrize("needs", [Needs.FULL, Needs.SAMPLED, Needs.ACTION])
def test_what_the_teacher_reveals_is_its_own_view_of_every_row(needs: Needs) -> None:
    """And stays so when the trajectories are padded, reordered or scored one row at a time."""
    world = small_language(echo=True)
    ctx = context(world)
    rollouts = world.completions()
    full = make_rows(ctx, ctx.score(rollouts, Needs.FULL)).teacher
    expected = {Needs.FULL: full.logp_na, Needs.SAMPLED: full.logp(rollouts.action_bt[rollouts.mask_bt]),
                Needs.ACTION: full.mode()}[needs]
    ctx.execution = ctx.execution.model_copy(update={"row_chunk": 1})
    for variant in (rollouts, pad_with_garbage(rollouts, 2)):
        rows = make_rows(ctx, ctx.score(variant, needs))
        revealed = rows.teacher.logp_na if needs == Needs.FULL else rows.columns[f"teacher_{_COLUMN[needs]}"]
        if needs == Needs.SAMPLED:  # not on every processor is one row's sum to the bit what it is among others
            torch.testing.assert_close(revealed, expected, rtol=1e-13, atol=1e-13)
        else:
            assert torch.equal(revealed, expected)


@pytest.mark.parametrize("needs", [Needs.NOTHING, Needs.TEXT])
def test_a_method_that_asks_for_nothing_is_told_nothing_and_charged_nothing(needs: Needs) -> None:
    world = small_language()
    ctx = context(world)
    rollouts = world.completions()
    assert ctx.score(rollouts, needs) is rollouts
    assert ctx.ledger.teacher_scored == 0 and not ctx.ledger.flops
