"""The process that turns prompts into token ids: it renders the model's chat template and encodes what comes of it.

`python -m zmqrt.worker.tokenizer_process DESCRIPTOR DIRECTORY`, started by the tokenizer pool alone. A
template is a program that came with its model, and a tokenizer may take seconds for a long text; neither can be
interrupted inside a process that has something else to do. This one has not: the kernel ends it when a prompt takes
too much of the processor, and limits its memory.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import sys
from array import array
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from ..protocol.errors import ErrorKind, RequestError
from ..protocol.parent_watch import watch_parent
from .model_files import ModelError
from .preprocess import ServiceLimits, encode_prompt
from .tokenizer import FileTokenizer, load_tokenizer

MEMORY_BYTES: Final = 2 << 30
"""Beyond what it needs by itself: a text of the largest frame, encoded, is about half of this."""
LOAD_S: Final = 20.0
"""Processor time to read tokenizer and template: large ones take three seconds."""
PROMPT_S: Final = 1.0
MIB_S: Final = 3.0
"""Processor time for a prompt, and more for each MiB of it: usual are less than a millisecond, and half a second."""
HEAD: Final = struct.Struct("!I")
"""Before each message: how long it is."""


class EncodeRequest(msgspec.Struct, frozen=True, array_like=True):
    """To the child: encode the prompt of a generation (`body` as in DISPATCH) within these limits."""

    body: bytes
    limits: ServiceLimits


class EncodeReply(msgspec.Struct, frozen=True, array_like=True):
    """From the child: token ids, 32 bits each, or why there are none."""

    ids: bytes = b""
    kind: str = ""
    text: str = ""


class TokenizerLoaded(msgspec.Struct, frozen=True, array_like=True):
    """The first message of the child: what rendering the template tells about the model, or why it is of no use."""

    eos_ids: list[int] = []
    has_template: bool = False
    error: str = ""
    knows_tools: bool = False


def allowed_s(body_bytes: int) -> float:
    """Say how much of the processor a prompt may take."""
    return PROMPT_S + MIB_S * body_bytes / (1 << 20)


def framed(message: msgspec.Struct) -> bytes:
    """Write a message as it goes over the channel."""
    data = msgspec.msgpack.encode(message)
    return HEAD.pack(len(data)) + data


def _receive(requests: BinaryIO) -> bytes | None:
    """Return the next message; None at the end."""
    head = requests.read(HEAD.size)
    return requests.read(HEAD.unpack(head)[0]) if len(head) == HEAD.size else None


def _bound_memory() -> None:
    """Let a template that makes an endless text meet a bound of its own, and not the machine's."""
    try:
        import resource
    except ImportError:  # Windows
        return
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, most))


def _bound_time(seconds: float) -> None:
    """Let the kernel end this process after so much time on the processor; 0 = let it live.

    Not by the clock: on a busy machine, or in one that stood still, nothing may end for that.
    """
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, seconds)  # without a handler, SIGPROF ends a process


def _load(directory: Path) -> tuple[FileTokenizer | None, TokenizerLoaded]:
    try:
        tokenizer = load_tokenizer(directory)
    except (ModelError, OSError, ValueError) as error:
        return None, TokenizerLoaded(error=str(error))
    except MemoryError:
        return None, TokenizerLoaded(error=f"tokenizer and chat template of {directory} need more than 2 GiB of memory")
    return tokenizer, TokenizerLoaded(
        eos_ids=sorted(tokenizer.eos_ids), has_template=tokenizer.has_template, knows_tools=tokenizer.knows_tools
    )


def _answer(tokenizer: FileTokenizer, request: EncodeRequest) -> EncodeReply:
    try:
        return EncodeReply(ids=array("I", encode_prompt(request.body, tokenizer, request.limits)).tobytes())
    except RequestError as error:
        return EncodeReply(kind=error.kind.value, text=error.text)
    except MemoryError:
        return EncodeReply(
            kind=ErrorKind.MODEL_RAISED.value, text="the prompt could not be encoded: it needs too much memory"
        )
    except Exception as error:  # noqa: BLE001 - a fault of a template or tokenizer is the end of one request alone
        return EncodeReply(
            kind=ErrorKind.MODEL_RAISED.value, text=f"the prompt could not be encoded: {type(error).__name__}"
        )


def main() -> None:
    """Serve one request after the other until the parent is gone."""
    descriptor, directory = sys.argv[1:]
    watch_parent()
    channel = socket.socket(fileno=int(descriptor))
    _bound_memory()
    _bound_time(LOAD_S)
    tokenizer, loaded = _load(Path(directory))
    _bound_time(0)
    channel.sendall(framed(loaded))
    decoder = msgspec.msgpack.Decoder(EncodeRequest)
    requests = channel.makefile("rb")
    with contextlib.suppress(OSError):
        while tokenizer is not None and (data := _receive(requests)) is not None:
            _bound_time(allowed_s(len(data)))
            reply = framed(_answer(tokenizer, decoder.decode(data)))
            _bound_time(0)
            channel.sendall(reply)


if __name__ == "__main__":
    main()
