"""Any control policy that a user may have: our own folder, or a Stable-Baselines3 zip."""

from __future__ import annotations

from pathlib import Path

from opdbench.errors import UserError
from opdbench.rl import conv_policy, folder, games_policy, table
from opdbench.rl.conv_policy import ConvPolicy
from opdbench.rl.games_policy import GamesPolicy
from opdbench.rl.policy import ControlPolicy
from opdbench.rl.sb3 import load_sb3
from opdbench.rl.table import TablePolicy


def load_policy(path: Path, *, activation: str | None = None, trust_pickle: bool = False
                ) -> ControlPolicy | TablePolicy | ConvPolicy | GamesPolicy:
    """Read a policy folder (policy.json and policy.safetensors) or an SB3 zip, without unpickling anything.

    Args:
        path: folder or zip.
        activation: of an SB3 network, when its zip does not say it.
        trust_pickle: see `opdbench.rl.sb3.load_sb3`.

    Raises:
        UserError: neither, or it cannot be read safely.
    """
    if path.is_dir():
        kind = folder.kind(path)
        if kind == conv_policy.KIND:
            return ConvPolicy.load(path)
        if kind == games_policy.KIND:
            return GamesPolicy.load(path)
        return TablePolicy.load(path) if kind == table.KIND else ControlPolicy.load(path)
    if path.suffix == ".zip":
        return load_sb3(path, activation=activation, trust_pickle=trust_pickle)
    raise UserError(f"{path} is neither a policy folder nor a Stable-Baselines3 zip",
                    "pass a folder with policy.json and policy.safetensors, or a model.zip that SB3 saved")
