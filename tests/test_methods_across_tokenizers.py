"""gold and uld with a teacher of other tokens, in float64, against their objectives written down once more.

The languages are tables over every sequence of tokens (tests/lm/text_models.py), so that the expectation over all that
a student can write is a sum.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import pytest
import torch
from torch import Tensor

from opdbench.baselines.gkd import GKD
from opdbench.baselines.gold import GOLD
from opdbench.baselines.uld import ULD
from opdbench.conformance.harness import gradient, make_rows
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss
from opdbench.errors import UserError
from opdbench.lm.bridge import BridgedWorld
from opdbench.lm.world import LanguageWorld
from opdbench.rollouts import Source
from tests.enumerable import context, flat_gradient, make, near
from tests.lm.text_models import EOS, PAD, Letters, TableModel, bridged, completions, prompt, rollouts_of, weights

FINE, COARSE = ("a", "b"), ("a", "b", "ab", "aba")
LEFT, RIGHT = ("a", "b", "c", "ab"), ("a", "b", "c", "bc")  # of "abc" they make one piece: ab|c and a|bc


def models(world: BridgedWorld) -> tuple[TableModel, TableModel]:
    """(student, teacher)."""
    assert isinstance(world.student, TableModel) and isinstance(world.teacher, TableModel)
    return world.student, world.teacher


def loss_of(method: Distiller, world: LanguageWorld, texts: Sequence[Sequence[int]]) -> Loss:
    """One value for each token of each text."""
    ctx = context(world)
    return method.loss(make_rows(ctx, method.prepare(rollouts_of(world, texts), ctx)), ctx)


def expected(value_n: Tensor, world: BridgedWorld, texts: Sequence[Sequence[int]]) -> Tensor:
    """Over all texts, as the student writes them, of the sum over their tokens."""
    lengths = torch.tensor([len(tokens) for tokens in texts])
    weight_n = weights(world, texts).repeat_interleave(lengths)
    return (weight_n * value_n).sum()


def jsd(sides: Iterable[Tensor], beta: float = 0.5) -> Tensor:
    """Of two lists of events (the teacher's, the student's), in whatever proportion; no event is impossible to both."""
    p, q = (side / side.sum() for side in sides)
    p = p.detach()
    m = beta * p + (1 - beta) * q
    return beta * torch.xlogy(p, p / m).sum() + (1 - beta) * torch.xlogy(q, q / m).sum()


def sizes(p: Tensor, q: Tensor) -> Tensor:
    """sum_i |sort(p)_i - sort(q)_i|, the shorter one filled up with zeros."""
    length = max(len(p), len(q))
    p, q = (torch.cat([side, side.new_zeros(length - len(side))]).sort(descending=True).values for side in (p, q))
    return (p.detach() - q).abs().sum()


def text_objective(world: BridgedWorld, tokens: Sequence[int], beta: float) -> Tensor:
    """GOLD's `match=text` for one completion in characters, from the definition: before each character, what the
    teacher says about it in the middle of a token, and at the beginning of one."""
    student, teacher = models(world)
    letters = student.tokenizer.decode(tokens)
    cut = teacher.tokenizer.encode(letters)
    ends = [len(teacher.tokenizer.decode(cut[:number])) for number in range(len(cut) + 1)]
    total = torch.zeros((), dtype=torch.float64)
    for place in range(len(tokens)):
        q, within = student.p([*prompt(world), *tokens[:place]]), set()
        if place > 0:
            number = next(number for number in range(len(cut)) if ends[number] < place <= ends[number + 1])
            p, so_far = teacher.p([*prompt(world), *cut[:number]]), letters[ends[number]:place]
            within = {letter for letter in FINE for token in COARSE if token.startswith(so_far + letter)}
            longer = [events(teacher, p, so_far, within), events(student, q, "", within)]
            longer[0][0] = p[teacher.tokenizer.encode(so_far)].sum()  # it ends there
            total = total + jsd(map(torch.stack, longer), beta)
        if place in ends:
            p, others = teacher.p([*prompt(world), *cut[:ends.index(place)]]), {*FINE} - within
            total = total + jsd((torch.stack([side[PAD], side[EOS], *events(model, side, "", others)[1:]])
                                 for model, side in ((teacher, p), (student, q))), beta)
    return total


def events(model: TableModel, p: Tensor, so_far: str, letters: Collection[str]) -> list[Tensor]:
    """Probabilities of anything else, and of the tokens that begin with `so_far` and each of the letters."""
    begun = [torch.stack([p[token] * model.spells(token).startswith(so_far + letter) for token in range(len(p))]).sum()
             for letter in sorted(letters)]
    return [1 - torch.stack([p.new_zeros(()), *begun]).sum(), *begun]


def say_the_same(world: BridgedWorld) -> None:
    """Give the teacher the student's distribution over texts, written in tokens `a`, `b` and `ab`."""
    student, teacher = models(world)
    a, b, ab = teacher.tokenizer.encode("a") + teacher.tokenizer.encode("b") + teacher.tokenizer.encode("ab")
    with torch.no_grad():
        for tokens in completions(world):
            letters = "".join(student.spells(token) for token in tokens if token != EOS)
            cut = teacher.tokenizer.encode(letters)
            for number in range(len(cut) + 1):
                before = [*prompt(world), *student.tokenizer.encode(teacher.tokenizer.decode(cut[:number]))]
                q, then = student.p(before), student.p([*before, *student.tokenizer.encode("a")])[b]
                p = torch.zeros(teacher.n_actions, dtype=torch.float64)
                p[[PAD, EOS, a, b, ab]] = torch.stack([q[PAD], q[EOS], q[a] * (1 - then), q[b], q[a] * then])
                if number and cut[number - 1] == a:
                    p[b] = 0  # it would have written `ab`
                teacher.table[teacher.place([*prompt(world), *cut[:number]])] = (p / p.sum()).log().clamp(min=-200)


# ---------------------------------------------------------------------------------------------------------------- gold


@pytest.mark.parametrize("beta", [0.5, 0.1])
def test_gold_compares_how_the_text_goes_on(beta: float) -> None:
    world = bridged(FINE, COARSE)
    student, _ = models(world)
    texts = completions(world)
    found = expected(loss_of(make(GOLD, beta=beta), world, texts).value_n, world, texts)
    stated = torch.stack([text_objective(world, tokens, beta) for tokens in texts]) @ weights(world, texts)
    assert near(found, stated) and float(found.detach()) > 0.01
    assert near(flat_gradient(found, student), flat_gradient(stated, student))


@pytest.mark.parametrize(("match", "zero"), [("text", True), ("tokens", False), ("nothing", False)])
def test_two_models_that_say_the_same_in_different_tokens(match: str, zero: bool) -> None:
    """Only `match=text` sees that they agree; the published comparisons have a gradient there."""
    world = bridged(FINE, ("a", "b", "ab"))
    say_the_same(world)
    texts = completions(world)
    value_n = loss_of(make(GOLD, match=match), world, texts).value_n
    slope = flat_gradient(expected(value_n, world, texts), models(world)[0])
    assert near(value_n, 0.0, 1e-9) == near(slope, 0.0, 1e-9) == zero
    assert zero or float(slope.norm()) > 0.01


def test_a_student_of_coarser_tokens_that_agrees_with_its_teacher_has_nothing_to_learn() -> None:
    """The text `ab` is one token to it: the teacher's second one is compared given the first."""
    world = bridged(("a", "b", "ab"), FINE)
    student, teacher = models(world)
    a, b, ab = 2, 3, 4
    with torch.no_grad():
        p, then = teacher.p(prompt(world)), teacher.p([*prompt(world), a])[b]
        q = torch.stack([p[PAD], p[EOS], p[a] * (1 - then), p[b], p[a] * then])
        student.table[student.place(prompt(world))] = q.log()
    assert near(loss_of(make(GOLD), world, [[ab]]).value_n, 0.0, 1e-9)
    with torch.no_grad():
        student.table[student.place(prompt(world)), ab] -= 1  # too rarely: it is to be moved up
    slope = flat_gradient(loss_of(make(GOLD), world, [[ab]]).value_n.sum(), student).view_as(student.table)
    assert float(slope[student.place(prompt(world)), ab]) < -0.01


@pytest.mark.parametrize("merge", ["observed", "bayesian"])
@pytest.mark.parametrize("match", ["tokens", "nothing"])
def test_gold_as_published_merges_a_piece_into_one_distribution(merge: str, match: str) -> None:
    world = bridged(LEFT, RIGHT)
    student, teacher = models(world)
    a, c, ab, bc = 2, 4, 5, 5
    start = prompt(world)
    if merge == "observed":
        P, Q = teacher.p(start) * teacher.p([*start, a])[bc], student.p(start) * student.p([*start, ab])[c]
    else:
        P, Q = teacher.p([*start, a]) * teacher.p(start)[a], student.p([*start, ab]) * student.p(start)[ab]
    shared, own = [EOS, 2, 3, 4], [PAD, 5]
    stated = sizes(P, Q)
    if match == "tokens":
        matched = jsd(torch.cat([side[shared], 1 - side[shared].sum()[None]]) for side in (P, Q))
        stated = 4 / 6 * matched + 2 / 6 * sizes(P[own], Q[own])
    value_n = loss_of(make(GOLD, match=match, merge=merge), world, [[ab, c]]).value_n
    head = int(merge == "bayesian")
    assert near(value_n[head], stated) and near(value_n[1 - head], 0.0)
    assert near(flat_gradient(value_n.sum(), student), flat_gradient(stated, student))


def usual(world: BridgedWorld) -> list[list[int]]:
    """What a student can write in two tokens, cut as its tokenizer cuts it."""
    cut = world.tokenizer
    return [tokens for tokens in completions(world, 2)
            if cut.encode(cut.decode(tokens)) == [token for token in tokens if token != EOS]]


@pytest.mark.parametrize(("params", "share"), [({}, 1), ({"match": "tokens"}, 5 / 6),
                                               ({"match": "tokens", "merge": "bayesian"}, 5 / 6)])
def test_over_equal_tokens_gold_is_gkd(params: dict[str, str], share: float) -> None:
    """Without the bridge whatever the parameters; with it too, padding aside, which is no text and so not shared."""
    world = bridged(LEFT, LEFT)
    student, teacher = models(world)
    with torch.no_grad():
        student.table[:, PAD] = teacher.table[:, PAD] = -200
    plain, texts = LanguageWorld(Letters(), student, teacher, seed=0), usual(world)
    assert len(texts) > 10
    ctx = context(plain)
    gkd_n = make(GKD).loss(make_rows(ctx, ctx.score(rollouts_of(world, texts), GKD.needs)), ctx).value_n
    assert near(loss_of(make(GOLD, **params), plain, texts).value_n, gkd_n)
    assert near(loss_of(make(GOLD, **params), world, texts).value_n, share * gkd_n)


def test_gold_off_policy_learns_from_the_teachers_texts() -> None:
    world = bridged(FINE, COARSE)
    ctx, method = context(world, batch=6), make(GOLD, lmbda=0.0)
    rollouts = method.collect(ctx)
    assert rollouts.count(Source.TEACHER) == rollouts.n_rows > 0 == ctx.ledger.student_tokens
    value_n = method.loss(make_rows(ctx, method.prepare(rollouts, ctx)), ctx).value_n
    assert bool((value_n >= 0).all()) and float(value_n.sum().detach()) > 0


# ----------------------------------------------------------------------------------------------------------------- uld


@pytest.mark.parametrize("params", [{}, {"likelihood": 0.0, "lmbda": 1.0}])
def test_uld_pairs_tokens_by_their_number(params: dict[str, float]) -> None:
    """Of `aba b` and `a b a b` the first two tokens are paired; the others have only the likelihood."""
    world = bridged(FINE, COARSE)
    student, teacher = models(world)
    method, start = make(ULD, **params), prompt(world)
    tokens, cut = [2, 3, 2, EOS], [5, EOS]
    assert teacher.tokenizer.encode("aba") == cut[:1]
    stated = torch.stack([
        -method.params.likelihood * student.p([*start, *tokens[:place]])[token].log()
        + method.params.lmbda * (sizes(teacher.p([*start, *cut[:place]]), student.p([*start, *tokens[:place]]))
                                 if place < 1 else 0.0)
        for place, token in enumerate(tokens)])
    value_n = loss_of(method, world, [tokens]).value_n
    assert near(value_n, stated)
    assert near(flat_gradient(value_n.sum(), student), flat_gradient(stated.sum(), student))


def test_uld_needs_no_bridge_for_equal_tokens_and_vanishes_at_the_teacher() -> None:
    world = bridged(LEFT, LEFT)
    student, teacher = models(world)
    plain, texts = LanguageWorld(Letters(), student, teacher, seed=0), usual(world)
    assert near(loss_of(make(ULD), plain, texts).value_n, loss_of(make(ULD), world, texts).value_n)
    with torch.no_grad():
        teacher.table.copy_(student.table)
    value_n = loss_of(make(ULD, likelihood=0.0), world, texts).value_n
    assert near(value_n, 0.0) and near(flat_gradient(value_n.sum(), student), 0.0)


# ---------------------------------------------------------------------------------------------------------- both, edges

EVERY = [(GOLD, {}), (GOLD, {"match": "tokens"}), (GOLD, {"match": "tokens", "merge": "bayesian"}),
         (GOLD, {"match": "nothing"}), (ULD, {})]
every = pytest.mark.parametrize(("cls", "params"), EVERY, ids=lambda value: getattr(value, "name", None) or ",".join(
    value.values()) or "-")


@every
def test_how_a_batch_is_cut_does_not_matter(cls: type[Distiller], params: dict[str, str]) -> None:
    world = bridged(LEFT, RIGHT, teacher_batch=3)
    method, texts = make(cls, **params), completions(world, 2)[::3]
    ctx = context(world)
    prepared = method.prepare(rollouts_of(world, texts), ctx)
    whole, _ = gradient(method, ctx, prepared)
    parts = [gradient(method, ctx, method.prepare(rollouts_of(world, [tokens]), ctx))[0] * len(tokens)
             for tokens in texts]
    assert near(whole, sum(parts) / sum(map(len, texts)), 1e-9)


@every
def test_an_empty_completion_and_special_tokens_in_the_text(cls: type[Distiller], params: dict[str, str]) -> None:
    """No loss is infinite; what the teacher cannot write (padding, in the text) is unlearnt, and not free."""
    world = bridged(FINE, COARSE)
    student, _ = models(world)
    value_n = loss_of(make(cls, **params), world, [[EOS], [2, PAD, 3, EOS], [PAD]]).value_n
    assert bool(value_n.isfinite().all()) and float(value_n[0].detach()) > 0
    slope = flat_gradient(value_n.sum(), student).view_as(student.table)
    assert bool(slope.isfinite().all())
    if cls is GOLD and params.get("match") != "nothing":
        assert float(slope[student.place([*prompt(world), 2]), PAD]) > 1e-4


@every
def test_a_batch_without_a_common_piece_is_refused(cls: type[Distiller], params: dict[str, str]) -> None:
    """The teacher has no token for `b` and drops it: nothing that was written can be compared."""
    world = bridged(FINE, ("a", "c", "ac"))
    assert float(loss_of(make(cls, **params), world, [[3, 3, 3], [2, EOS]]).value_n.detach().sum()) > 0
    with pytest.raises(UserError, match="none of the 6 tokens"):
        loss_of(make(cls, **params), world, [[3, 3, 3], [3, 3, 3]])


def test_the_teachers_own_tokens_are_what_scoring_costs() -> None:
    world = bridged(FINE, COARSE)
    ctx: Context = context(world)
    make(GOLD).prepare(rollouts_of(world, [[2, 3, 2, EOS], [2, 2, 3]]), ctx)
    assert ctx.ledger.teacher_scored == len(("aba", "<eos>", "a", "ab"))
