"""The Hugging Face hub: whole snapshots of plain data (safetensors, JSON, text, parquet), never code, never pickles."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from opdbench.errors import UserError

Kind = Literal["model", "dataset"]
_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")


def is_id(reference: str) -> bool:
    """Whether `reference` has the form `owner/name` or `owner/name@revision`."""
    return _ID.fullmatch(reference) is not None


def snapshot(reference: str, *, kind: Kind, allow: Sequence[str], ignore: Sequence[str] = (), instead: str) -> Path:
    """The local folder with the files of `reference` that match `allow`, downloaded unless they are cached.

    Args:
        reference: `owner/name`, or `owner/name@revision` with a branch, tag or commit.
        allow: file name patterns to fetch.
        ignore: file name patterns to leave out; wins over `allow`.
        instead: what the user can do without the hub, completing "or ...".

    Raises:
        UserError: not found, gated, no network and not cached, or no room on the disk; says what to download.
    """
    match = _ID.fullmatch(reference)
    if match is None:
        raise ValueError(f"not a hub id: {reference!r}")
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = huggingface_hub.snapshot_download(match["repo"], repo_type=kind, revision=match["revision"],
                                                   allow_patterns=list(allow), ignore_patterns=list(ignore))
    except errors.GatedRepoError as error:
        raise _failure(match, kind, "and its licence must first be accepted on the hub", instead) from error
    except errors.RepositoryNotFoundError as error:
        raise _failure(match, kind, "and is not on the hub (or is private there)", instead) from error
    except errors.RevisionNotFoundError as error:
        raise _failure(match, kind, f"and the hub has no revision {match['revision']!r} of it", instead) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        why = "HF_HUB_OFFLINE is set" if huggingface_hub.constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise _failure(match, kind, f"is not in the hub's cache, and {why}", instead) from error
    # A broken connection, a full disk, a cache that cannot be written. HTTPError is the root of the errors of whichever
    # HTTP client this version of the hub library uses.
    except (OSError, errors.HTTPError) as error:  # type: ignore[attr-defined]
        raise _failure(match, kind, f"and its download failed ({_first_line(error)})", instead) from error
    return Path(folder)


def _failure(match: re.Match[str], kind: Kind, what: str, instead: str) -> UserError:
    flags = ("--repo-type dataset " if kind == "dataset" else "") + match["repo"]
    flags += f" --revision {match['revision']}" if match["revision"] else ""
    return UserError(f"{kind} {match['repo']} is not a folder here, {what}",
                     f"`hf download {flags}` where there is network, or {instead}")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
