"""`opdbench paper`: list, show, plan, run, build, and a check that finds a changed digit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opdbench.cli.main import main
from opdbench.schema import paper as papers
from opdbench.schema.paper import names
from tests.papers.synthetic import paper

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def empty(tmp_path: Path) -> list[str]:
    (tmp_path / "results").mkdir()
    return ["--results", str(tmp_path / "results"), "--papers", str(tmp_path / "papers")]


def test_the_committed_papers_are_what_the_committed_records_give(capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--results", str(ROOT / "results"), "--papers", str(ROOT / "papers")]
    assert main(["paper", "build", "--all", "--check", *places]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("file", ["table.md", "table.tex", "table.csv", "table.html"])
def test_a_changed_digit_is_found(file: str, empty: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "build", "ppd", "--check", *empty]) == 3 and "is missing" in capsys.readouterr().out
    assert main(["paper", "build", "ppd", *empty]) == 0 and "35 not run; changed table.md" in capsys.readouterr().out
    assert main(["paper", "build", "ppd", "--check", *empty]) == 0
    path = Path(empty[3]) / "ppd" / file
    path.write_text(path.read_text().replace("0.86", "0.87", 1))
    capsys.readouterr()
    assert main(["paper", "build", "ppd", "--check", "--json", *empty]) == 3
    shown = json.loads(capsys.readouterr().out)
    assert not shown["passed"] and f"{path}, line " in shown["papers"]["ppd"][0]


def test_list_and_show(empty: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "list", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [each["key"] for each in shown] == names() and sum(each["cells"] for each in shown) > 2800
    assert main(["paper", "list"]) == 0 and "policy_distillation" in capsys.readouterr().out
    assert main(["paper", "show", "ppd", "--table", "table1_sizes", *empty]) == 0
    text = capsys.readouterr().out
    assert "table1\\_sizes" in text and "table2" not in text
    assert main(["paper", "show", "ppd", "--json", *empty]) == 0
    assert json.loads(capsys.readouterr().out)["claims"][0]["verdict"] == "not run"


def test_plan_prices_what_is_missing(empty: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "plan", "policy_distillation", "--json", *empty]) == 0
    needed = json.loads(capsys.readouterr().out)
    pong = [f"pong --only atari-v4-nosticky:pong/{arm}" for arm in ("mse-net1", "nll-net1", "kl-net1", "kl-net2",
                                                                    "kl-net3")]
    losses = [f"rusu --only {task}/{arm}" for arms in (("kl", "nll"), ("mse",))
              for task in ("lunarlander", "cartpole", "grid-world") for arm in arms]
    sizes = [f"compression --only lunarlander/{arm}" for arm in ("net3", "net1")]
    few = [f"gym --only {task}/{arm}" for task in ("cartpole", "acrobot", "lunarlander") for arm in ("kd", "sft")]
    assert [need["command"] for need in needed] == [f"opdbench run suite:{each}"
                                                    for each in (*pong, *losses, *sizes, *few)]
    assert all(need["runs"] == 5 + 3 * (need["suite"] == "gym") and need["cost_of_one"]["flops"] > 1e6
               for need in needed)
    assert main(["paper", "plan", "policy_distillation", "--profile", "gpu-80g", *empty]) == 0
    assert "128 to make, 0 there" in capsys.readouterr().out


def test_what_no_run_stands_beside_says_why(empty: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for what in ("plan", "run"):
        assert main(["paper", what, "dagger", "--table", "fig4_super_mario", *empty]) == 0
        assert "Infinite Mario" in capsys.readouterr().out


@pytest.mark.slow
def test_run_makes_the_records_that_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    suite = tmp_path / "small.yaml"
    suite.write_text("""
title: Small
seeds: "0:2"
tasks:
  text-maze: {budget: tokens=300, set: [evaluation.examples=4]}
arms:
  base: {method: sft}
  high: {method: opd}
""")
    content = paper(str(suite)).model_dump(mode="json")
    arms = {"base": {"x": "base"}, "up": {"x": "high"}}
    ours = {**content["ours"][0], "task": "text-maze@1", "arms": arms}
    small = papers.Paper.model_validate({**content, "ours": [ours]})
    monkeypatch.setattr(papers, "read", lambda key: small)
    places = ["--results", str(tmp_path / "small"), "--papers", str(tmp_path / "papers")]
    (tmp_path / "small").mkdir()
    assert main(["paper", "run", "toy", *places]) == 0 and "4 of 4 runs completed" in capsys.readouterr().out
    assert main(["paper", "run", "toy", *places]) == 0 and "there is nothing to run here" in capsys.readouterr().out
    assert len(list((tmp_path / "small").rglob("record.json"))) == 4


def test_wrong_words(empty: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for words, says in ((["build"], "takes the key of a paper, or --all"), (["build", "gkd", "--all"], "or --all"),
                        (["show"], "needs the key"), (["show", "gdk"], "did you mean 'gkd'"),
                        (["show", "ppd", "--table", "table1_size"], "did you mean 'table1_sizes'")):
        assert main(["paper", *words, *empty]) == 2
        assert says in capsys.readouterr().err
