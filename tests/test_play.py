"""`opdbench play`: what is shown is what was scored, and what cannot be shown is said in one sentence."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from opdbench import registry
from opdbench.cli.main import main
from opdbench.errors import UserError
from opdbench.play import Play, _drawn, frames, play
from opdbench.report.runs import read_run, with_outcomes
from opdbench.rl.simulators import make_simulators
from opdbench.rl.world import Watched, episode_seed, evaluate, fresh_student
from opdbench.scores import Outcome
from opdbench.site.play import check
from opdbench.store import RECORD
from tests.report.synthetic import write_phase, write_run
from tests.rl.small_tasks import Counting, CountingTask

WALKS = sorted((Path(__file__).resolve().parents[1] / "results" / "text-maze" / "dagger").glob("s0-*"))[0]
TRAINED = ["run", "--method", "dagger", "--task", "cartpole", "--budget", "tokens=2048", "--set",
           "evaluation.examples=3", "--set", "evaluation.curve_points=0", "--json"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, with the student's weights."""
    results = tmp_path_factory.mktemp("play")
    assert main([*TRAINED, "--results", str(results)]) == 0
    return next(results.rglob(RECORD)).parent


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(trained, tmp_path / trained.name))


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 1) -> str:
    capsys.readouterr()
    assert main(["play", *words]) == code
    return capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ exactness


@pytest.mark.parametrize(("episode", "mode"), [(2, "greedy"), (1, "sampled")])
def test_both_play_what_they_were_scored_with(trained: Path, episode: int, mode: str) -> None:
    recorded = with_outcomes(read_run(trained / RECORD)).outcomes
    shown = play(trained, episode, mode)
    assert [side.role for side in shown.sides] == ["teacher", "student"]
    for side, phase in zip(shown.sides, ("teacher", "after"), strict=True):
        outcome = next(one for one in recorded[phase]  # type: ignore[index]
                       if (one.id, one.mode) == (f"episode-{episode}", mode))
        assert side.score == outcome.score == sum(side.rewards)
        assert len(side.actions) == len(side.rewards) == outcome.length


def test_the_film_ends_with_the_returns_and_is_a_small_gif_that_the_site_shows(
        trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It also does every action again in an environment that is drawn, whose rewards must be the same."""
    monkeypatch.setattr("opdbench.play.MOST_FRAMES", 30)
    out = tmp_path / "out.gif"
    capsys.readouterr()
    assert main(["play", str(trained), "--video", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert check(out.read_bytes()) == (shown["video"]["width"], shown["video"]["height"])
    assert shown["video"]["bytes"] == out.stat().st_size < 100_000 and shown["video"]["frames"] <= 30
    assert all(player["score"] == player["recorded"] == sum(player["rewards"]) for player in shown["players"])
    last = frames(play(trained, 0, "greedy"))[0][-1]
    assert [frame.note.partition(",")[0] for frame in last] == [
        f"return {player['score']:.4g}" for player in shown["players"]]


class InTurn(CountingTask):
    parallel_episodes: ClassVar[int | None] = 2


@pytest.mark.parametrize("task", [CountingTask(), InTurn()], ids=["together", "in turn"])
def test_an_episode_that_is_watched_is_the_one_that_is_scored(task: CountingTask) -> None:
    policy = fresh_student(task, 0)
    for number, whole in enumerate(evaluate(task, policy, mode="sampled", n=5, seed=3)):
        watched = Watched(number)
        seen = evaluate(task, policy, mode="sampled", n=5, seed=3, watched=watched)
        assert len(seen) == (1 if task.parallel_episodes else 5) and whole in seen
        assert watched.reward_t == [float(step) for step in range(1, whole.length + 1)]
        assert [int(action) for action in watched.action_t[:-1]] == [0] * (whole.length - 1)


def test_in_words_it_says_how_each_came_to_its_return(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["play", str(trained / RECORD), "--episode", "1"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = play(trained, 1, "greedy")
    assert ["return", *(repr(side.score) for side in shown.sides)] in lines
    assert ["in", "the", "record", "the", "same", "the", "same"] in lines
    assert any(line[:1] == ["1"] and line[2] == "1" for line in lines)


def test_a_copy_of_the_student_teaches_as_it_was_at_first(tmp_path: Path) -> None:
    words = [*TRAINED, "--teacher", "student", "--results", str(tmp_path)]
    assert main([word.replace("cartpole", "cliff-chain").replace("2048", "640") for word in words]) == 0
    teacher, _ = play(next(tmp_path.rglob(RECORD)), 1, "sampled").sides
    assert teacher.score == teacher.recorded.score < 0


# ------------------------------------------------------------------------------------------------------------ bad input


def test_without_weights_it_names_the_command_that_makes_them(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(own / "student")
    words = said(capsys, str(own))
    assert "weights of the student are not here" in words
    assert "opdbench run --method dagger --task cartpole" in words and "--results again" in words
    assert f"opdbench play again/cartpole/dagger/{own.name}" in words


def test_weights_that_are_none_or_anothers_are_refused(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = own / "student" / "policy.safetensors"
    weights.write_bytes(b"cos\nsystem\n(S'echo hacked'\ntR.")
    assert "opdbench: " in (words := said(capsys, str(own))) and "hacked" not in words
    assert "checksum differs" in said(capsys, str(own), "--teacher", "acrobot/teacher")


@pytest.mark.parametrize(("words", "code", "problem", "fix"), [
    (["--episode", "3"], 2, "no test episode or problem 3", "0 to 2"),
    (["--episode", "-1"], 2, "no test episode or problem -1", "0 to 2"),
    (["--mode", "gredy"], 2, "unknown mode", "'greedy'"),
    (["--video", "nowhere/out.gif"], 1, "no file can be written there", "folder that you can write to"),
    (["--video", "out.mp4"], 2, "what is written is a GIF", "out.gif"),
])
def test_what_was_asked_wrongly_is_answered_before_anything_is_played(
        trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], code: int,
        problem: str, fix: str) -> None:
    monkeypatch.setattr("opdbench.rl.world.evaluate", None)
    answer = said(capsys, str(trained), *words, code=code)
    assert problem in answer and fix in answer


def test_a_run_that_failed_has_no_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = write_run(tmp_path, "one", 0, status="diverged", reason="the loss is \x1b[31mnan").path
    words = said(capsys, str(failed))
    assert "no student came out of it" in words or "cannot be used" in words
    assert "\x1b" not in words and "opdbench run" in words
    assert "there is no record at" in said(capsys, str(tmp_path / "none"))


def test_outcomes_that_were_altered_are_not_shown(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "after.jsonl.gz").write_bytes(b"something else")
    assert "checksum differs" in said(capsys, str(own))


def test_without_pillow_it_says_what_to_install(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    assert 'pip install "opdbench[play]"' in said(capsys, str(trained), "--video", str(tmp_path / "out.gif"))


class Drawn(Counting):
    render_mode = "rgb_array"

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, *rest = super().step(action)
        return observation, reward + (self.fault == "does not repeat"), *rest

    def render(self) -> Any:
        if self.fault == "cannot be drawn":
            raise OSError("no display")
        return np.zeros((9, 9, 3), np.float64 if self.fault == "no RGB picture" else np.uint8)


@pytest.mark.parametrize("fault", ["has no pictures", "does not repeat", "cannot be drawn", "no RGB picture"])
def test_what_cannot_be_drawn_is_said(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    task = CountingTask()
    watched = Watched(0)
    evaluate(task, fresh_student(task, 0), mode="greedy", n=1, watched=watched)
    if fault != "has no pictures":
        monkeypatch.setattr(task, "visible", lambda: Drawn(fault))
    with pytest.raises(UserError, match=fault):
        list(_drawn(task, watched, [1]))


@pytest.mark.parametrize(("name", "settings", "needs"), [
    ("grid-world", {}, None), ("cliff-chain", {}, None), ("lunarlander", {}, None), ("pendulum", {}, None),
    ("minatar:breakout", {}, "minatar"), ("atari/pong@v4-nosticky", {"max_frames": 240}, "ale_py")])
def test_what_is_drawn_moves_with_what_is_done(name: str, settings: dict[str, Any], needs: str | None) -> None:
    """Chance included: what is drawn is stepped as what was played, and is held to the same rewards."""
    if needs is not None:
        pytest.importorskip(needs)
    task_class = registry.load("task", name)
    task = task_class(params=task_class.Params(**settings))
    simulators, watched, rng = make_simulators(task), Watched(3), np.random.default_rng(0)
    simulators.grow(1)
    simulators.reset(0, episode_seed(task, "test", 3))
    for _ in range(30):
        action_k = simulators.random_actions(1, rng)
        after = simulators.step(np.zeros(1, np.int64), action_k)
        watched.step(np.array([3]), action_k, after.reward_k)
        if after.terminated_k[0] or after.truncated_k[0]:
            break
    pictures = list(_drawn(task, watched, range(len(watched.reward_t) + 1)))
    assert len(pictures) == len(watched.reward_t) + 1
    assert {(picture.shape, picture.dtype) for picture in pictures} == {(pictures[0].shape, np.dtype(np.uint8))}
    assert len({picture.tobytes() for picture in pictures}) > 1


# ---------------------------------------------------------------------------------------------------------------- texts


def texts(folder: Path, output: str) -> Path:
    """A record of texts, with one that its student wrote."""
    run = write_run(folder, "one", 0)
    record = read_run(run.path / RECORD).record
    write_phase(run, record, "after", [Outcome(f"toy-{index}", mode, 0.0, 5, False, output, {})
                                       for mode in ("greedy", "sampled") for index in range(60)])
    record.gap_recovered = {}
    run.write_record(record)
    return run.path


def test_texts_stand_side_by_side_and_move_no_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a task that nobody here knows; what both wrote is in the record."""
    capsys.readouterr()
    assert main(["play", str(texts(tmp_path, "red \x1b[31m \u202eright to left\n<script>")), "--episode", "7"]) == 0
    shown = capsys.readouterr().out
    assert "toy-7" in shown and "prompt\n\n(not here" in shown
    assert any("text" in line and "red \ufffd[31m \ufffdright to left" in line for line in shown.splitlines())
    assert "\x1b" not in shown and "\u202e" not in shown and "<script>" in shown


def test_text_without_pictures_makes_no_film(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = said(capsys, str(texts(tmp_path, "a")), "--video", str(tmp_path / "out.gif"))
    assert "toy@1 has no pictures" in words and not (tmp_path / "out.gif").exists()


def test_a_committed_walk_is_shown_from_its_record_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Without the student's weights, as in a fresh clone.
    walks = shutil.copytree(WALKS, tmp_path / WALKS.name, ignore=shutil.ignore_patterns("student"))
    shown = play(walks, 2, "greedy")
    assert shown.prompt == "rx:"
    drawn, every = frames(shown)
    assert every == 1 and len(drawn) == 1 + max(side.recorded.length for side in shown.sides) // 2
    assert [frame.note for frame in drawn[0]] == ["success 0, step 0"] * 2
    assert all(f"success {side.score:.4g}" in frame.note for side, frame in zip(shown.sides, drawn[-1], strict=True))
    out = tmp_path / "walk.gif"
    assert main(["play", str(walks), "--episode", "2", "--video", str(out)]) == 0
    assert check(out.read_bytes()) and out.stat().st_size < 100_000
    assert "rx:" in capsys.readouterr().out


def test_a_long_episode_is_thinned_evenly_and_keeps_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opdbench.play.MOST_FRAMES", 6)
    shown: Play = play(WALKS, 2, "greedy")
    drawn, every = frames(shown)
    assert len(drawn) <= 6 and every == 5 and drawn[-1][0].note.endswith("the end")
