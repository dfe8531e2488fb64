"""From `--teacher http://HOST:PORT/v1#MODEL`, or the folder of a teacher cache, to a recipe's teacher: asked who it is,
and whether it reveals what the method needs, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from opdbench.distiller import Distiller, Needs
from opdbench.errors import UserError
from opdbench.lm.remote_cache import is_cache, read_manifest, require_identity
from opdbench.lm.server import Server, is_address
from opdbench.schema.spec import Execution, ModelRef, Training
from opdbench.task import LanguageTask, Task

_NEEDED = {Needs.ACTION: "most likely tokens", Needs.SAMPLED: "log-probabilities", Needs.FULL: "whole distribution",
           Needs.HIDDEN: "hidden states"}


class Remote(NamedTuple):
    """A teacher that is asked.

    Attributes:
        reference: the server's address with the model, or the path of a cache.
        top_k: most likely tokens a position that the run asks for.
    """

    reference: str
    top_k: int


def is_remote(reference: str) -> bool:
    """Whether a teacher's reference is the address of a server or the folder of a cache."""
    return is_address(reference) or is_cache(Path(reference).expanduser())


def teacher(reference: str, method: Distiller, task: Task, training: Training, execution: Execution
            ) -> tuple[ModelRef, Remote]:
    """The teacher by what it says, so that a run is the same run wherever the server is, or with its answers alone.

    Raises:
        UserError: it cannot be reached, or does not reveal what the method needs; says what would.
    """
    if not isinstance(task, LanguageTask):
        raise UserError(f"--teacher {reference}: a server of language models cannot teach {task.id}, a control task",
                        "pass a policy's file or folder, or leave --teacher out")
    if is_address(reference):
        server = connect(reference, execution)
        _check_needs(method, training, server)
        top_k = _top_k(method, training)
        if top_k and (most := server.most(top_k)) < top_k:
            raise UserError(f"the server at {server.url} tells at most {most} of its most likely tokens, and top_k is "
                            f"{top_k}", f"--set top_k={most}, or let the server tell more (vLLM: --max-logprobs "
                                        f"{top_k})")
        name = f"{server.url}#{server.model}"
        return ModelRef(reference=name, sha256=_sha256(server, execution)), Remote(name, top_k)
    _check_needs(method, training, None)
    folder = Path(reference).expanduser()
    has, top_k = read_manifest(folder), _top_k(method, training)
    if has.top_k < top_k:
        raise UserError(f"the teacher cache {folder} holds the {has.top_k} most likely tokens of a position, and "
                        f"{top_k} are wanted", f"--set top_k={has.top_k}, or let the server answer: --teacher "
                                               f"http://HOST:PORT/v1#{has.teacher}")
    return ModelRef(reference=reference, sha256=has.teacher_sha256), Remote(str(folder), top_k)


def connect(reference: str, execution: Execution) -> Server:
    """The server at an address, with the patience that the execution has."""
    return Server(reference, timeout=execution.teacher_timeout, parallel=execution.teacher_requests)


def _sha256(server: Server, execution: Execution) -> str:
    """The server's checksum; as the cache has it, where there is one, since what a server says moves a little."""
    now, folder = server.identity(), Path(execution.teacher_cache or "").expanduser()
    if execution.teacher_cache is None or not is_cache(folder):
        return now.sha256
    kept = read_manifest(folder)
    require_identity(folder, kept, now)
    return kept.teacher_sha256


def _top_k(method: Distiller, training: Training) -> int:
    return {Needs.FULL: training.top_k, Needs.ACTION: 1}.get(method.requires(), 0)


def _check_needs(method: Distiller, training: Training, server: Server | None) -> None:
    needs = method.requires()
    if needs in (Needs.NOTHING, Needs.TEXT):
        return
    if server is not None and server.way.dialect == "text":
        raise UserError(f"{method.name} needs its teacher's {_NEEDED[needs]}; the server at {server.url} tells only "
                        f"text ({server.why_text_only()})",
                        "serve the model with vLLM, or choose a method that learns from text (opdbench list methods)")
    if needs == Needs.HIDDEN or (needs == Needs.FULL and not method.compares):
        raise UserError(f"{method.name} needs its teacher's {_NEEDED[needs]}; over HTTP a teacher tells only its most "
                        "likely tokens", "pass the teacher's weights as a folder or hub id, or choose another method")
    if needs == Needs.FULL and training.support != "teacher":
        known = training.top_k if server is None else server.most(training.top_k)
        raise UserError(f"{method.name} compares whole distributions (support={training.support}); over HTTP a teacher "
                        "tells only its most likely tokens", f"--set support=teacher --set top_k={known}")
    if needs == Needs.FULL and training.loss_temperature != 1 and training.tail != "renormalise":
        raise UserError(f"what a teacher over HTTP gives to its less likely tokens is not known at loss_temperature="
                        f"{training.loss_temperature:g}", "--set loss_temperature=1, or --set tail=renormalise")

