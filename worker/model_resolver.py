"""Find a model's files in a process of its own, and tell how far it is.

Converting a GGUF file is half a minute of Python and a gigabyte of memory: neither belongs into the agent, whose
heartbeats would stutter. The child writes one JSON object a line: progress, then the files or what went wrong. It
notices the end of its parent by its broken standard output.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from ..protocol.children import python
from ..protocol.errors import ConfigurationError
from .engines.base import Phase
from .gguf_room import check_room
from .memory_fit import DeviceMemory, ServingPlan
from .model_files import ModelError
from .model_sources import ModelFiles, check_fit, resolve


class _Line(msgspec.Struct, omit_defaults=True):
    """One line of the child."""

    phase: Phase | None = None
    percent: float = 0.0
    files: ModelFiles | None = None
    error: str | None = None


class Room(msgspec.Struct, frozen=True):
    """The largest device of a node, and how it is to serve."""

    plan: ServingPlan
    memory: DeviceMemory


class _Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What the child is to do."""

    allow_hub: bool
    allow_download: bool
    max_model_len: int
    engine: str | None
    room: Room | None


async def resolve_apart(
    model: str,
    on_progress: Callable[[Phase, float], None],
    *,
    allow_hub: bool,
    allow_download: bool,
    max_model_len: int = 0,
    engine: str | None = None,
    room: Room | None = None,
) -> ModelFiles:
    """Run `model_sources.resolve` in a child process; with `engine`, one of ours or `auto`, also `check_fit`.

    With `room`, a GGUF file that fits no device is not converted. Raises ConfigurationError with the words of what went
    wrong.
    """
    asked = _Asked(
        allow_hub=allow_hub, allow_download=allow_download, max_model_len=max_model_len, engine=engine, room=room
    )
    flags = msgspec.json.encode(asked).decode()
    child = await asyncio.create_subprocess_exec(
        *python(__name__, model, flags), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    try:
        async for text in child.stdout:
            line = _decoder.decode(text)
            if line.phase is not None:
                on_progress(line.phase, line.percent)
            elif line.error is not None:
                raise ConfigurationError(line.error)
            elif line.files is not None:
                return line.files
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()  # it has said its last word, or nobody listens any more
        await child.wait()
    raise ConfigurationError(f"looking for the model {model!r} ended without a result (exit code {child.returncode})")


def _child(model: str, flags: str) -> None:
    def tell(line: _Line) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(line, enc_hook=_as_text) + b"\n")  # UTF-8 in every locale
        sys.stdout.flush()

    asked = msgspec.json.decode(flags, type=_Asked)
    try:
        if asked.room is not None and (path := Path(model).expanduser()).suffix.lower() == ".gguf" and path.is_file():
            check_room(path, asked.room.plan, asked.room.memory)
        files = resolve(
            model,
            progress=lambda phase, percent: tell(_Line(phase=phase, percent=percent)),
            allow_hub=asked.allow_hub,
            allow_download=asked.allow_download,
        )
        if asked.engine is not None:
            check_fit(files, max_model_len=asked.max_model_len, engine=asked.engine)
    except (ModelError, OSError) as error:
        tell(_Line(error=str(error)))
    else:
        tell(_Line(files=files))


def _as_text(value: object) -> str:
    assert isinstance(value, Path)
    return str(value)


def _as_path(kind: type, value: object) -> Path:
    assert kind is Path
    return Path(str(value))


_decoder = msgspec.json.Decoder(_Line, dec_hook=_as_path)

if __name__ == "__main__":
    _child(*sys.argv[1:])
