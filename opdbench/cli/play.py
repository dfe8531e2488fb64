"""Watch the teacher and the student of a run at one test episode or problem, side by side, in words or as a GIF."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdbench.cli.arguments import add_json, add_plugin, one_of
from opdbench.errors import UsageError, UserError
from opdbench.text import bold, number, print_json, table
from opdbench.untrusted import inert

if TYPE_CHECKING:
    from opdbench.gif import Film
    from opdbench.play import Play, Side

MODES = ("greedy", "sampled")
ROWS = 12  # of a trajectory in words


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("record", metavar="RECORD", help="a run's folder or record file")
    parser.add_argument("--episode", type=int, default=0, metavar="K",
                        help="number of the test episode, or of the test problem (default 0)")
    parser.add_argument("--mode", type=one_of("mode", MODES), default="greedy", metavar="MODE",
                        help=f"as it was scored: {' or '.join(MODES)} (default greedy)")
    parser.add_argument("--video", metavar="FILE.gif", help="also write a GIF, teacher left, student right; the site "
                                                            "shows one that lies in the run's folder as play.gif")
    parser.add_argument("--teacher", metavar="MODEL", help="the run's teacher, where it is no longer where it was")
    parser.add_argument("--trust-pickle", action="store_true",
                        help="unpickle a teacher's SB3 zip that needs it (a pickle can run any code)")
    parser.add_argument("--data", metavar="DIR", help="where a task's data are, to show a problem's text")
    add_plugin(parser)
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    from opdbench.cli.show import offline
    from opdbench.play import Source, play

    out = None if args.video is None else _checked(Path(args.video).expanduser())
    with offline():
        shown = play(Path(args.record).expanduser(), args.episode, args.mode,
                     Source(args.plugin, args.data, args.teacher, args.trust_pickle))
        written = None if out is None else _write(shown, out)
    if args.json:
        print_json(_as_json(shown, out, written))
    else:
        print(_as_text(shown, out, written))
    return 0


def _checked(out: Path) -> Path:
    """Before anything is played."""
    from opdbench.gif import require

    if out.suffix.lower() != ".gif":
        raise UsageError(f"--video {out}: what is written is a GIF", f"name it {out.with_suffix('.gif')}")
    if not out.parent.is_dir() or out.is_dir() or not os.access(out.parent, os.W_OK):
        raise UserError(f"--video {out}: no file can be written there", "name one in a folder that you can write to")
    require()
    return out


def _write(shown: Play, out: Path) -> Film:
    from opdbench.gif import film
    from opdbench.play import frames
    from opdbench.store import write_atomically

    made = film(*frames(shown))
    try:
        write_atomically(out, made.content)
    except UserError as error:
        raise UserError(error.problem, "name another file with --video") from None
    return made


def _as_json(shown: Play, out: Path | None, written: Film | None) -> dict[str, Any]:
    video = None if written is None else {"file": str(out), "bytes": len(written.content), **{
        name: value for name, value in written._asdict().items() if name != "content"}}
    return {"record": str(shown.run.path), "example": shown.id, "mode": shown.mode, "metric": shown.metric,
            "prompt": shown.prompt, "players": [
                {"role": side.role, "who": side.who, "score": side.score, "recorded": side.recorded.score,
                 "length": len(side.actions) or side.recorded.length, "truncated": side.recorded.truncated,
                 "actions": [action.tolist() for action in side.actions], "rewards": list(side.rewards),
                 "output": side.recorded.output} for side in shown.sides], "video": video}


def _as_text(shown: Play, out: Path | None, written: Film | None) -> str:
    recipe = shown.run.record.recipe
    head = f"{bold(f'{recipe.method} on {recipe.task}, seed {recipe.seed}')}: {shown.id}, {shown.mode}"
    body = _texts(shown) if shown.sides[-1].recorded.output is not None else _trajectories(shown)
    parts = [head, *map(inert, body)]
    if written is not None:
        parts.append(f"{out}: {written.frames} frames of {written.width} x {written.height}, "
                     f"{_steps(written.every)} from one to the next, {len(written.content) / 1024:.0f} KiB")
    return "\n\n".join(parts)


def _steps(every: int) -> str:
    return "one step" if every == 1 else f"{every} steps"


# ------------------------------------------------------------------------------------------------------------ episodes


def _trajectories(shown: Play) -> list[str]:
    rows = [["", *(side.role for side in shown.sides)],
            ["", *(side.who for side in shown.sides)],
            [shown.metric, *(repr(side.score) for side in shown.sides)],
            ["steps", *(str(len(side.actions)) for side in shown.sides)],
            ["ended", *("cut off" if side.recorded.truncated else "by itself" for side in shown.sides)],
            ["in the record", *(_compared(side) for side in shown.sides)]]
    return [table(rows[0], rows[1:]), _course(shown)]


def _compared(side: Side) -> str:
    """Another machine rounds differently, which a long episode turns into another one."""
    return "the same" if side.score == side.recorded.score else f"{side.recorded.score!r}, on another machine"


def _course(shown: Play) -> str:
    """What was done and what it had come to, at some of the steps."""
    longest = max(len(side.actions) for side in shown.sides)
    steps = sorted({*range(1, longest + 1, max(1, -(-longest // ROWS))), *(len(side.actions) for side in shown.sides)})
    paid = [list(accumulate(side.rewards)) for side in shown.sides]
    return table(["step", *(word for side in shown.sides for word in (f"{side.role} does", shown.metric))], [
        [str(step), *(word for side, paid_t in zip(shown.sides, paid, strict=True)
                      for word in (_moment(side.actions[step - 1], paid_t[step - 1]) if step <= len(side.actions)
                                   else ("", "")))] for step in steps])


def _moment(action: Any, paid: float) -> tuple[str, str]:
    return (str(action) if action.ndim == 0 else " ".join(f"{value:.2f}" for value in action)), number(paid)


# --------------------------------------------------------------------------------------------------------------- texts


def _texts(shown: Play) -> list[str]:
    prompt = "(not here: --data DIR says where the task's data are)" if shown.prompt is None else shown.prompt
    width = min(160, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 120
    columns = [[f"{side.name} ({shown.metric} {number(side.score)})", "", *(side.recorded.output or "").splitlines()]
               for side in shown.sides]
    return [f"prompt\n\n{prompt}", _beside(columns, width)]


def _beside(columns: Sequence[Sequence[str]], width: int) -> str:
    """Texts in columns, their lines wrapped."""
    room = (width - 3 * (len(columns) - 1)) // len(columns)
    wrapped = [[part for line in lines for part in textwrap.wrap(inert(line), room) or [""]] for lines in columns]
    height = max(map(len, wrapped))
    rows = zip(*([*lines, *[""] * (height - len(lines))] for lines in wrapped), strict=True)
    return "\n".join(" | ".join(f"{cell:<{room}}" for cell in row).rstrip() for row in rows)
