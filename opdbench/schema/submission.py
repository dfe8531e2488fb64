"""The manifest of a submission: who sends what, and what every file of it must hash to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from opdbench.schema.spec import Frozen

Division = Literal["closed", "open"]
SHA256 = r"^[0-9a-f]{64}$"
NAME = r"^[a-z0-9][a-z0-9-]{0,63}$"


class File(Frozen):
    path: str = Field(max_length=400, description="below the root of the repository")
    sha256: str = Field(pattern=SHA256)
    bytes: int = Field(ge=0)


class Manifest(Frozen):
    """`submissions/<name>/manifest.json`."""

    format: Literal[1] = 1
    name: str = Field(pattern=NAME, description="of the submission, and of its folder")
    division: Division = Field(description="closed: only the method differs from the board's rules; open: anything may")
    method: str
    method_file: str = Field(max_length=400, description="path of its source, one of `files`")
    method_sha256: str = Field(pattern=SHA256, description="of its code, as the recipes have it")
    license: str = Field(pattern=r"^[A-Za-z0-9.+-]{1,40}$", description="SPDX identifier; covers code and records")
    contact: str = Field(min_length=3, max_length=200, description="whom to ask")
    opdbench: str = Field(max_length=40, description="version that made this")
    files: tuple[File, ...] = Field(min_length=1)
