"""What a control task must satisfy: spaces that policies fit, episodes that repeat and end, a teacher that teaches."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import numpy as np

from opdbench import seeds
from opdbench.actors import Student
from opdbench.conformance.check import Skipped, require
from opdbench.conformance.compare import differences, other_random_state
from opdbench.models import shipped_models
from opdbench.rl.environments import Environments
from opdbench.rl.load import load_policy
from opdbench.rl.simulators import Simulators, make_simulators
from opdbench.rl.world import ControlWorld, evaluate, fresh_student
from opdbench.store import pack, unpack
from opdbench.task import ControlTask

COPIES = 4
MOST_STEPS = 1_200  # of a random walk, per check
EPISODES = 10


def control_checks(task: ControlTask) -> dict[str, Callable[[], None]]:
    """The checks by name; of a task of several games, those of each."""
    if task.games():
        return {f"{game.name}: {name}": check for game in task.games() for name, check in control_checks(game).items()}
    return {
        "spaces": lambda: _check_spaces(task),
        "episodes repeat with their seed": lambda: _check_seeds(task),
        "episodes end": lambda: _check_end(task),
        "a new episode follows by itself": lambda: _check_reset(task),
        "resumes in the middle of an episode": lambda: _check_resume(task),
        "teacher beats student": lambda: _check_teacher(task),
    }


def _check_spaces(task: ControlTask) -> None:
    """Observations are arrays of the declared shape and type, actions are counted or bounded vectors."""
    simulators = make_simulators(task)
    simulators.grow(1)
    observation = simulators.reset(0, 0)
    require(observation.shape == simulators.observation_shape,
            f"observations have shape {observation.shape}, and their space says {simulators.observation_shape}")
    with task.make() as environment:
        raw, _ = environment.reset(seed=0)
        require(environment.observation_space.contains(raw), f"the first observation {raw!r} lies outside of its space")
    require(simulators.n_actions >= (1 if simulators.continuous else 2), "there must be two actions at least")
    require(all(width > 0 for width in task.student_hidden),
            "`student_hidden` must give the widths of the default student, or nothing for a table")
    require(task.student_scale is None or np.shape(task.student_scale) == simulators.observation_shape,
            "`student_scale` must give one number for every number that is observed")


def _check_seeds(task: ControlTask) -> None:
    """Equal seeds and actions give equal episodes, whatever the global random state; other seeds, others."""
    first = _random_walk(make_simulators(task), seed=1)
    with other_random_state():
        second = _random_walk(make_simulators(task), seed=1)
    require(np.array_equal(first, second), "two episodes with equal seeds and equal actions differ")
    others = {_random_walk(make_simulators(task), seed=seed).tobytes() for seed in range(2, 8)}
    require(task.deterministic or len(others) > 1, "the seed has no influence on an episode: every one would be the "
                                                   "same (say `deterministic = True` if that is meant)")
    require(not task.deterministic or len(others) == 1, "it says `deterministic`, and the seed changes its episodes")


def _check_end(task: ControlTask) -> None:
    """Every episode ends, by itself or by the time limit, which is the declared one."""
    simulators = make_simulators(task)
    simulators.grow(1)
    for constant in (None, *_constant_actions(simulators)):
        simulators.reset(0, 0)
        rng = np.random.default_rng(0)
        ended, steps = False, 0
        while not ended and steps < task.max_episode_steps:
            action = simulators.random_actions(1, rng) if constant is None else constant
            after = simulators.step(np.array([0]), action)
            ended, steps = bool(after.terminated_k[0] or after.truncated_k[0]), steps + 1
        require(ended, f"an episode goes on beyond max_episode_steps = {task.max_episode_steps}: wrap the environment "
                       "in gymnasium.wrappers.TimeLimit, or pass max_episode_steps to gymnasium.make")
        require(not after.truncated_k[0] or after.terminated_k[0] or steps == task.max_episode_steps,
                f"an episode was cut off after {steps} steps, and max_episode_steps is {task.max_episode_steps}")


def _check_reset(task: ControlTask) -> None:
    """After an episode's last action comes the next one's first observation, with a seed of its own."""
    simulators = make_simulators(task)
    environments = Environments(simulators, seed=3)
    environments.grow(COPIES)
    rng = np.random.default_rng(0)
    for _ in range(min(MOST_STEPS, task.max_episode_steps + 1)):
        step = environments.step(simulators.random_actions(COPIES, rng))
        done_b = step.terminated_b | step.truncated_b
        if done_b.any():
            index = int(done_b.argmax())
            fresh = make_simulators(task)
            seed = seeds.derive(3, "episode", index, 1)
            require(np.array_equal(environments.observation_n[index], _first_observation(fresh, seed)),
                    "a reset environment does not show what a new one shows for the same seed: something is left over")
            return
    raise Skipped(f"no episode ended within {MOST_STEPS} steps")


def _check_resume(task: ControlTask) -> None:
    """A world that was saved between two rollouts goes on as the one that was not."""
    def world() -> ControlWorld:
        return ControlWorld(task, fresh_student(task, 0), None, seed=0)

    def roll(where: ControlWorld, number: int) -> object:
        generator = seeds.generator(0, "conformance", number)
        return where.rollout(Student(), n=COPIES, horizon=20, generator=generator).tensors()

    whole, resumed = world(), world()
    roll(whole, 0)
    resumed.load_state_dict(unpack(pack(whole.state_dict())))
    found = list(differences(roll(whole, 1), roll(resumed, 1)))
    require(not found, f"rollouts differ after a resume: {', '.join(found)}")


def _check_teacher(task: ControlTask) -> None:
    """What is shipped as a teacher has something to teach to the starting student."""
    folder = shipped_models(task).get(str(task.teacher))
    if folder is None:
        raise Skipped("no teacher is shipped with the task")
    scores = {role: fmean(outcome.score for outcome in evaluate(task, policy, mode="greedy", n=EPISODES))
              for role, policy in (("teacher", load_policy(folder)), ("student", fresh_student(task, 0)))}
    require(scores["teacher"] > scores["student"],
            f"over {EPISODES} episodes the teacher's return is {scores['teacher']:.1f}, and the starting student's "
            f"{scores['student']:.1f}")


def _random_walk(simulators: Simulators, *, seed: int) -> np.ndarray:
    """Observations and rewards of one episode under fixed random actions, at most 200 steps, flat."""
    simulators.grow(1)
    seen = [_first_observation(simulators, seed).ravel()]
    rng = np.random.default_rng(0)
    for _ in range(200):
        after = simulators.step(np.array([0]), simulators.random_actions(1, rng))
        seen += [after.observation_k.ravel(), after.reward_k]
        if after.terminated_k[0] or after.truncated_k[0]:
            break
    return np.concatenate(seen)


def _constant_actions(simulators: Simulators) -> list[np.ndarray]:
    """Every action, one at a time; of vectors, the lowest, the highest and zero."""
    if simulators.bounds is None:
        return [np.array([action]) for action in range(simulators.n_actions)]
    return [action[None] for action in (*simulators.bounds, simulators.no_actions(1)[0])]


def _first_observation(simulators: Simulators, seed: int) -> np.ndarray:
    simulators.grow(1)
    return simulators.reset(0, seed)
