"""The server behind an `openai` engine while that loads: started if it is ours, waited for, asked what it serves.

What is asked beside `/v1/models` differs from server to server; one that has none of it is served all the same, with
numbers from the options. While it is up, `openai_engine.py` looks after it.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol, cast
from urllib.parse import urlsplit

import msgspec

from ...protocol.parent_watch import end_with_parent
from .base import CannotLoadError, EngineSpec
from .openai_api import COMPLETIONS, Continuation, Dialect, words_of

log = logging.getLogger(__name__)

SLOTS: Final = 64
"""For servers that do not say how many requests they take; what is too much for them waits there."""
_MOST_MODELS: Final = 16
_LOOK_EVERY_S: Final = 0.25
_SAY_EVERY_S: Final = 60.0
_ASK_S: Final = 10.0
_MOST_BYTES: Final = 8 << 20
"""Of an answer to a question: lists of routers have about one."""
_CHILD_S: Final = 0.7
"""A child has so long to leave; the engine itself has a second."""
_OPTIONS: Final = (
    *("url", "command", "key_env", "key_file", "slots", "context", "revision", "omit", "resume"),
    *("probe_s", "stall_s", "silent_s", "threads"),
)
_KEY: Final = re.compile(r"[!-~]+")
_CONTINUATIONS: Final[Mapping[str, Continuation]] = {
    "no": "",
    "completions": "",
    "continue_final_message": "continue_final_message",
    "apply_template": "apply_template",
}
_OF_OWNER: Final[Mapping[str, Continuation]] = {"vllm": "continue_final_message", "llamacpp": "apply_template"}
"""What servers can do that say whose they are."""
_CONTEXTS: Final = ("max_model_len", "context_length", "context_window", "loaded_context_length", "max_context_length")
"""Names that servers give to it in their lists of models: vLLM and SGLang, routers, Groq, LM Studio."""


class OpenAIOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`--engine-opt` of this engine."""

    url: str
    """Up to `/v1`."""
    command: tuple[str, ...] = ()
    key: str = ""
    slots: int = 0
    context: int = 0
    revision: str = ""
    omit: frozenset[str] = frozenset()
    resume: str = ""
    probe_s: float = 2.0
    stall_s: float = 30.0
    silent_s: float = 120.0

    @property
    def root(self) -> str:
        """The address without `/v1`."""
        return self.url.removesuffix("/v1")

    @property
    def host(self) -> str:
        """Its host, in small letters."""
        return urlsplit(self.url).hostname or ""

    @property
    def is_here(self) -> bool:
        """Whether it is on this machine, which no proxy reaches."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {"authorization": f"Bearer {self.key}"} if self.key else {}


def read_options(spec: EngineSpec) -> OpenAIOptions:
    """Read the options. Raises CannotLoadError."""
    given = spec.options
    unknown = sorted(given.keys() - set(_OPTIONS))
    if unknown:
        raise CannotLoadError(f"--engine-opt {unknown[0]}: the openai engine has {', '.join(_OPTIONS)}")
    resume = given.get("resume", "")
    if resume and resume not in _CONTINUATIONS:
        raise CannotLoadError(f"--engine-opt resume={resume[:40]}: there are {', '.join(_CONTINUATIONS)}")
    url, command = _address(given)
    return OpenAIOptions(
        url=url,
        command=command,
        key=_key(given),
        slots=spec.slots or spec.count("slots", 0),
        context=spec.max_model_len or spec.count("context", 0),
        revision=given.get("revision", ""),
        omit=frozenset(given.get("omit", "").replace("+", " ").split()),  # a comma would end the option
        resume=resume,
        probe_s=max(0.05, spec.number("probe_s", 2.0)),
        stall_s=max(0.1, spec.number("stall_s", 30.0)),
        silent_s=spec.number("silent_s", 120.0),
    )


def _address(given: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """Return the address and the command; a `{port}` in the command is a free one."""
    url, line = given.get("url", "").rstrip("/"), given.get("command", "")
    try:
        command = tuple(shlex.split(line))
    except ValueError as error:
        raise CannotLoadError(f"--engine-opt command: {error}") from None
    if "{port}" in line:
        port = str(_free_port())
        command = tuple(word.replace("{port}", port) for word in command)
        url = url.replace("{port}", port) or f"http://127.0.0.1:{port}"
    try:
        place = urlsplit(url)
        is_whole = place.scheme in ("http", "https") and bool(place.hostname) and place.port != 0
    except ValueError:
        place, is_whole = urlsplit(""), False
    if not is_whole:
        words = "--engine-opt url=http://HOST:PORT/v1 says where the server is; or command=… with {port} starts one"
        raise CannotLoadError(words)
    if "@" in place.netloc or "?" in url or "#" in url:
        words = "--engine-opt url: an address and no more; a key comes by key_env or key_file, where no log shows it"
        raise CannotLoadError(words)
    return (url if place.path else f"{url}/v1"), command


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _key(given: Mapping[str, str]) -> str:
    """Read the key from where it is: an option would show it to everybody who lists processes."""
    if "key_file" in given:
        where = f"key_file={given['key_file']}"
        try:
            key = Path(given["key_file"]).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise CannotLoadError(f"--engine-opt key_file: {error}") from None
    elif name := given.get("key_env", ""):
        where = f"key_env={name}"
        if name not in os.environ:
            raise CannotLoadError(f"--engine-opt {where}: there is no such variable in the node's environment")
        key = os.environ[name].strip()
    else:
        return ""
    if not _KEY.fullmatch(key):  # as a header it would be refused by an error that shows all of it
        raise CannotLoadError(f"--engine-opt {where}: there is no key in one line of visible ASCII characters")
    return key


# --- a server of ours -------------------------------------------------------------------------------------------------


class ServerChild:
    """A server that this process has started: it ends with it."""

    def __init__(self, command: tuple[str, ...]) -> None:
        """Start it. Raises CannotLoadError if there is no such program."""
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sys.__stderr__,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - the one other thread only waits for our parent's end
            )
        except OSError as error:
            raise CannotLoadError(f"--engine-opt command: {error}") from None
        log.info("started the server %s, process %d", command[0], self._process.pid)

    def how_it_ended(self) -> str:
        """Say so in a sentence; "" while it runs."""
        code = self._process.poll()
        return "" if code is None else f"the server that `command` had started has ended with {code}; see its log"

    def end(self) -> None:
        """Ask it to leave, and make it if it does not."""
        self._process.terminate()
        try:
            self._process.wait(_CHILD_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_CHILD_S)


# --- what it says of itself -------------------------------------------------------------------------------------------


class ServedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the server: how it is asked for, and how much of it there is; 0 = not said."""

    dialect: Dialect
    context: int = 0
    slots: int = SLOTS


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """An answer to a question: its status (0: none came) and JSON, or why there was none."""

    status: int = 0
    body: Any = None
    words: str = ""


class Asks(Protocol):
    """What answers questions: an `Asker`."""

    def get(self, url: str) -> Asked:
        """Ask for JSON."""
        ...

    def is_there(self, url: str) -> bool:
        """Whether a POST finds anybody at a path."""
        ...


class Asker:
    """Asks a server while the engine loads."""

    def __init__(self, options: OpenAIOptions) -> None:
        import httpx

        self._errors = httpx.HTTPError, httpx.InvalidURL
        self._key = options.key
        self._client = httpx.Client(headers=options.headers, timeout=_ASK_S, trust_env=not options.is_here)

    def get(self, url: str) -> Asked:
        """Ask for JSON."""
        return self._ask("GET", url)

    def is_there(self, url: str) -> bool:
        """Whether a POST finds anybody at a path, who then says what is wrong with it. No server runs a list."""
        return self._ask("POST", url, b"[]").status not in (0, 404, 405, 501)

    def _ask(self, method: str, url: str, content: bytes | None = None) -> Asked:
        headers = {"content-type": "application/json"} if content else None
        body, give_up_at = bytearray(), time.monotonic() + _ASK_S
        try:
            with self._client.stream(method, url, content=content, headers=headers) as answer:
                if answer.has_redirect_location:
                    place = words_of(answer.headers["location"].encode())
                    return Asked(status=answer.status_code, words=f"it is at {place} now")
                for data in answer.iter_bytes():
                    body += data
                    if len(body) > _MOST_BYTES or time.monotonic() > give_up_at:
                        return Asked(words=f"an answer that ends neither in {_MOST_BYTES} bytes nor {_ASK_S:.0f} s")
        except self._errors as error:
            return Asked(words=f"{type(error).__name__}: {error}")
        try:
            return Asked(status=answer.status_code, body=msgspec.json.decode(body))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return Asked(status=answer.status_code, words=words_of(bytes(body), self._key))

    def close(self) -> None:
        """Hang up."""
        self._client.close()


def wait_for(options: OpenAIOptions, get: Callable[[str], Asked], how_it_ended: Callable[[], str]) -> Asked:
    """Wait until the server answers, however long that takes; return its list of models.

    Raises:
        CannotLoadError: it refuses our key, or is elsewhere.
        RuntimeError: it is a child, and has ended.
    """
    said_at = -_SAY_EVERY_S
    while True:
        asked = get(f"{options.url}/models")
        if asked.status in (401, 403):
            raise CannotLoadError(f"{options.url} refuses the key of this node ({asked.status}); key_env names one")
        if 300 <= asked.status < 400:
            words = f"{options.url} sends us elsewhere ({asked.status}): {asked.words}; a key goes to no second address"
            raise CannotLoadError(words)
        if asked.status and (asked.status < 500 and asked.status != 429):
            return asked
        if ended := how_it_ended():
            raise RuntimeError(ended)
        if time.monotonic() >= said_at + _SAY_EVERY_S:
            said_at = time.monotonic()
            log.warning("waiting for the server at %s: %s", options.url, asked.words or f"it answers {asked.status}")
        time.sleep(_LOOK_EVERY_S)


def served_models(listed: Asked, wanted: str, options: OpenAIOptions, asker: Asks) -> list[ServedModel]:
    """Return the model that is wanted, or all there are. Raises CannotLoadError."""
    entries = _entries(listed)
    names = [wanted] if wanted else list(entries)
    if not names:
        raise CannotLoadError(f"{options.url}/models lists no model ({listed.status}); name one by --model")
    if len(names) > _MOST_MODELS:
        raise CannotLoadError(f"{options.url}/models lists {len(names)} models; name one by --model")
    if wanted and entries and wanted not in entries:
        log.warning("%s does not list %r; asking it all the same", options.url, wanted)
    told = asker.get(f"{options.root}/props").body, asker.get(f"{options.root}/info").body
    common = Dialect(
        model="",
        has_completions=asker.is_there(f"{options.url}{COMPLETIONS}"),
        resumes=options.resume != "no",
        max_tokens="max_completion_tokens" if options.host.endswith("openai.com") else "max_tokens",
        omit=options.omit,
    )
    return [_model(name, entries.get(name, {}), told, common, options) for name in names]


def _entries(listed: Asked) -> dict[str, dict[str, Any]]:
    body: object = listed.body
    data = cast("dict[str, object]", body).get("data") if isinstance(body, dict) else None
    rows = [cast("dict[str, Any]", row) for row in cast("list[object]", data or []) if isinstance(row, dict)]
    return {row["id"]: row for row in rows if isinstance(row.get("id"), str) and row["id"]}


def _model(
    name: str, entry: dict[str, Any], told: tuple[object, object], common: Dialect, options: OpenAIOptions
) -> ServedModel:
    props, info = told
    known = _OF_OWNER.get(str(entry.get("owned_by")), "")
    contexts = (
        *(_count(entry, context) for context in _CONTEXTS),
        _count(props, "default_generation_settings", "n_ctx"),
        _count(info, "max_total_tokens"),
        _count(entry, "meta", "n_ctx_train"),
    )
    slots = _count(props, "total_slots") or _count(info, "max_concurrent_requests") or SLOTS
    return ServedModel(
        dialect=msgspec.structs.replace(
            common,
            model=name,
            takes_ids=bool(known),  # of others nobody knows
            continuation=_CONTINUATIONS.get(options.resume, known),
        ),
        context=options.context or next(filter(None, contexts), 0),
        slots=options.slots or slots,
    )


def _count(said: object, *path: str) -> int:
    """Return a number that is somewhere in an answer; 0 if it is not there, or makes no sense."""
    for name in path:
        said = cast("dict[str, object]", said).get(name) if isinstance(said, dict) else None
    return said if isinstance(said, int) and not isinstance(said, bool) and 0 < said < 2**31 else 0
