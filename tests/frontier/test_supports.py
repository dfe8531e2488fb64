"""On which tokens two models are compared, and what truncation does: revisiting, rethinking, many faces, EOPD."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from opdbench.baselines.many_faces import ManyFaces
from opdbench.baselines.rethinking_opd import RethinkingOPD
from opdbench.baselines.revisiting_opd import RevisitingOPD
from opdbench.conformance.enumerable import EnumerableWorld, PrefixPolicy
from opdbench.distributions import Categorical
from opdbench.support import Comparison, top_k_forward_kl
from tests.enumerable import context, distributions, flat_gradient, generator, leaf, make, near, random_logits
from tests.frontier.exact import loss_of, world_of


def slope(value_n: Tensor, world: EnumerableWorld) -> Tensor:
    return flat_gradient((value_n * torch.arange(1.0, len(value_n) + 1)).sum(), world.student, retain_graph=True)


def test_revisitings_loss_does_not_see_mass_outside_of_the_teachers_top() -> None:
    world = EnumerableWorld(PrefixPolicy(generator(1), scale=1.0, tabular=True),
                            PrefixPolicy(generator(2), scale=1.0, tabular=True), echo=True)
    assert world.teacher is not None
    rollouts = world.completions()

    def losses() -> tuple[Tensor, Tensor]:
        return tuple(loss_of(make(RevisitingOPD, top_k=2, minibatches=1, renormalise=renormalise), context(world),
                             rollouts).value_n.detach() for renormalise in (True, False))  # type: ignore[return-value]

    before = losses()
    last = world.teacher.table.argmin(-1, keepdim=True)  # what is in no row's support
    with torch.no_grad():
        world.student.table.scatter_add_(-1, last, torch.full_like(last, 3.0, dtype=torch.float64))
    after = losses()
    assert near(before[0], after[0]) and not near(before[1], after[1], 0.1)


def test_rethinkings_code_and_paper_differ_by_the_known_gap() -> None:
    """[log(q(S)/p(S)) + KL(q~||p~)] grad log q(S), in every row."""
    world = world_of()
    rollouts, ctx = world.completions(), context(world)
    code, paper = (loss_of(make(RethinkingOPD, form=form, top_k=2), ctx, rollouts).value_n
                   for form in ("advantages", "equation"))
    teacher, student = distributions(world, rollouts)
    ids = student.logits_na.topk(2, -1).indices
    mass_p, mass_q = (side.p_na.gather(-1, ids).sum(-1) for side in (teacher, student))
    gap_n = (mass_q.log() - mass_p.log() + paper).detach() * mass_q.log()
    assert float(slope(gap_n, world).norm()) > 0.1
    assert near(slope(code, world) - slope(paper, world), slope(gap_n, world), 1e-10)


@pytest.mark.parametrize("weights", ["student", "teacher", "uniform"])
@pytest.mark.parametrize("support", ["student", "teacher", "union", "intersection"])
def test_rethinkings_advantages_are_what_they_say_on_every_support(weights: str, support: str) -> None:
    world = world_of(scale=2.0)
    rollouts = world.completions()
    found = loss_of(make(RethinkingOPD, top_k=1, support=support, weights=weights), context(world), rollouts).value_n
    teacher, student = distributions(world, rollouts)
    by_hand = []
    for p, q in zip(teacher.p_na.detach(), student.p_na, strict=True):
        theirs, own = {int(p.argmax())}, {int(q.argmax())}
        sets = {"student": own, "teacher": theirs, "union": own | theirs, "intersection": own & theirs}
        inside = sorted(sets[support])
        w = {"student": q[inside], "teacher": p[inside], "uniform": torch.ones(len(inside))}[weights].detach()
        gap = (q[inside].log() - p[inside].log()).detach()
        by_hand.append((w / w.sum() * gap * q[inside].log()).sum() if inside else q.sum() * 0)
    assert near(found, torch.stack(by_hand), 1e-10)
    assert near(slope(found, world), slope(torch.stack(by_hand), world), 1e-9)


def test_a_plainly_truncated_reverse_kl_drains_the_support_and_the_fix_does_not() -> None:
    """The captured-mass identity: plain = stop_gradient + grad q(S)."""
    world = world_of()
    rollouts, ctx = world.completions(), context(world)
    plain, fixed = (loss_of(make(ManyFaces, fix=fix, top_k=2), ctx, rollouts).value_n
                    for fix in ("plain", "stop_gradient"))
    _, student = distributions(world, rollouts)
    mass_n = student.p_na.topk(2, -1).values.sum(-1)
    assert near(slope(plain, world) - slope(fixed, world), slope(mass_n, world), 1e-10)
    twins = world_of(teacher=1)
    at_teacher = [loss_of(make(ManyFaces, fix=fix, top_k=2), context(twins), rollouts).value_n
                  for fix in ("plain", "stop_gradient", "intersection", "bucket")]
    norms = [float(slope(value_n, twins).norm()) for value_n in at_teacher]
    assert norms[0] > 0.1 and max(norms[1:]) < 1e-9


def test_log_probabilities_inside_a_support_are_as_they_are() -> None:
    teacher, student = Categorical(random_logits(5, 9, seed=1)), Categorical(random_logits(5, 9, seed=2))
    inside, logp, logq = Comparison("student", 4, "renormalise").inside(teacher, student)
    assert inside.all() and near(logq, student.logp_na.topk(4, -1).values)
    assert near(logp, teacher.logp_na.gather(-1, student.logp_na.topk(4, -1).indices))
    assert Comparison("teacher", 50).inside(teacher, student)[0].shape == (5, 9)  # no more than there are


# ---------------------------------------------------------------------------------------------------------------- eopd


def test_eopds_second_term_is_at_least_the_lack_of_captured_mass_and_equal_where_shapes_agree() -> None:
    teacher, student = Categorical(random_logits(20, 9, seed=1)), Categorical(random_logits(20, 9, seed=2))
    ids = teacher.logits_na.topk(4, -1).indices
    lack_n = -student.p_na.gather(-1, ids).sum(-1).log()
    assert (top_k_forward_kl(teacher, student, 4) > lack_n).all() and (lack_n > 0).all()
    shaped = Categorical(student.logits_na.scatter(-1, ids, teacher.logits_na.gather(-1, ids) + 1.7))
    lack_n = -shaped.p_na.gather(-1, ids).sum(-1).log()
    assert near(top_k_forward_kl(teacher, shaped, 4), lack_n) and (lack_n > 0).all()


def test_eopds_second_term_is_the_forward_kl_on_everything_and_is_differentiated_in_the_student_alone() -> None:
    p, q = leaf(6, 9, seed=1), leaf(6, 9, seed=2)
    value_n = top_k_forward_kl(Categorical(p), Categorical(q), 50)
    assert near(value_n, (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1))
    value_n.sum().backward()
    assert p.grad is None and q.grad is not None and near(q.grad, q.softmax(-1) - p.softmax(-1))


def bandit(temperature: float, seed: int, *, steps: int = 400, eta: float = 0.5, size: int = 80, k: int = 10) -> int:
    """The paper's toy: how often the student's likeliest arm changes. Only the sampled logit moves, by the log-ratio to
    the teacher of the student's own top ten. Rate and number of steps are ours: they are not printed."""
    draws = generator(seed)
    teacher = torch.empty(size).normal_(generator=draws)
    teacher[torch.randperm(size, generator=draws)[:5]] = torch.tensor([1.7, 1.9, 2.1, 2.3, 2.5])
    logp, student = (teacher / temperature).log_softmax(0), torch.empty(size).normal_(generator=draws)
    changes, best = 0, int(student.argmax())
    for _ in range(steps):
        top = student.topk(k).indices
        logq = student[top].log_softmax(0)
        place = int(torch.multinomial(logq.exp(), 1, generator=draws))
        student[top[place]] += eta * float(logp[top[place]] - logq[place])
        changes, best = changes + int(student.argmax() != best), int(student.argmax())
    return changes


def test_eopds_bandit_a_teacher_of_high_entropy_changes_the_students_mind_many_more_times() -> None:
    certain, unsure = (sum(bandit(temperature, seed) for seed in range(3)) / 3 for temperature in (0.3, 1.0))
    assert unsure > 3 * certain and math.isfinite(certain)
