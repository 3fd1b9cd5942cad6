"""`--engine openai`: a node in front of a server that speaks OpenAI's API. Text comes and goes, nothing is loaded.

Options (`--engine-opt`) and what each server can do stand in docs/engines.md. The server is waited for while the engine
loads. Once it is gone (`HealthWatch`) every request goes elsewhere and the process ends, so that the node offers
nothing; the next process waits for the server again.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from ...protocol.capabilities import EXTRA, TOKEN_IDS
from ...protocol.limits import MAX_SERVICE_CHARS
from .base import (
    AnswerEnd,
    CannotLoadError,
    Capacity,
    Engine,
    EngineFatalError,
    EngineSpec,
    Failure,
    Progress,
    RequestFailedError,
)
from .openai_api import AnswerReader, Ask, ask_for, failure_of, is_busy
from .openai_server import Asker, OpenAIOptions, ServedModel, ServerChild, read_options, served_models, wait_for

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9._:/-]")
_PAUSE_S: Final = 0.25
"""A request that found the server busy, or broken off before its first token, is sent once more after this; then any
node may have it, this one too: so this is also how often a server that is busy for long is asked by each request."""
_LONGEST_PAUSE_S: Final = 5.0
"""For a server that says itself when to come again."""
_CONNECT_S: Final = 5.0
_PROBES: Final = 3
"""Who does not answer so many in a row is gone."""
_BETWEEN_PROBES_S: Final = 0.25
_LINGER_S: Final = 1.0
"""How long the usage, or the end of the connection, is awaited after an answer that is whole."""
_MOST_ERROR_BYTES: Final = 64 << 10
_MOST_TEMPLATE_BYTES: Final = 16 << 20
_PLAIN: Final = {"accept-encoding": "identity"}
"""Nothing is unpacked here: text comes event by event, and a small answer cannot become a large one."""


class HealthWatch:
    """Knows whether the server is there, by probes of its own and by what comes of requests."""

    def __init__(self, client: httpx.AsyncClient, url: str, options: OpenAIOptions, child: ServerChild | None) -> None:
        self._client = client
        self._url = url
        self._every_s = options.probe_s
        self._probe_s = options.stall_s / _PROBES
        self._child = child
        self._doubted = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self.moved_at = 0.0
        """When anything came of a request: whoever answers requests may be too busy for probes."""

    async def watch(self) -> None:
        """Look again and again. Raises EngineFatalError when the server is gone."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._doubted.wait(), self._every_s)
            self._doubted.clear()
            waiting, self._waiting = self._waiting, []
            why = await self._why_gone()
            if why:
                raise EngineFatalError(why)  # which ends those that wait
            for one in waiting:
                if not one.done():
                    one.set_result(None)

    async def ask(self) -> None:
        """Return if the server is there. If it is not, this wait ends with the engine."""
        asked = asyncio.get_running_loop().create_future()
        self._waiting.append(asked)
        self._doubted.set()
        await asked

    async def _why_gone(self) -> str:
        why = ""
        for _ in range(_PROBES):
            if self._child is not None and (ended := self._child.how_it_ended()):
                return ended
            began_at = time.monotonic()
            why = await self._probe()
            if not why or self.moved_at > began_at:
                return ""
            await asyncio.sleep(_BETWEEN_PROBES_S)
        return f"the server behind this node is gone: {why}"

    async def _probe(self) -> str:
        import httpx

        try:
            async with asyncio.timeout(self._probe_s), self._client.stream("GET", self._url) as answer:
                await _read(answer, _MOST_ERROR_BYTES)
        except TimeoutError:
            return f"{self._url} does not answer within {self._probe_s:.1f} s"
        except httpx.HTTPError as error:
            return f"{type(error).__name__} {error}".strip()
        is_well = answer.status_code < 500
        return "" if is_well else f"{self._url} answers {answer.status_code}"


class OpenAIEngine:
    """One model of a server."""

    resumes = True

    def __init__(
        self, model: ServedModel, options: OpenAIOptions, health_url: str, child: ServerChild | None = None
    ) -> None:
        import httpx

        self.model = model.dialect.model
        self.capabilities = [EXTRA, TOKEN_IDS] if model.dialect.takes_ids else [EXTRA]
        self.revision = "-".join(filter(None, ("openai", self.model, options.revision)))
        self._served = model
        self._options = options
        self._health_url = health_url
        self._child = child
        self._client = httpx.AsyncClient(
            headers=options.headers | _PLAIN,
            timeout=httpx.Timeout(options.silent_s or None, connect=_CONNECT_S, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=model.slots),
            trust_env=not options.is_here,
        )
        self._broken, self._silent = httpx.RequestError, (httpx.ReadTimeout, httpx.WriteTimeout)
        self._health = HealthWatch(self._client, health_url, options, child)

    def capacity(self) -> Capacity:
        """Tell what the server says."""
        return Capacity(slots=self._served.slots, context=self._served.context)

    async def watch(self) -> None:
        """Look after the server. Raises EngineFatalError when it is gone."""
        await self._health.watch()

    async def generate(self, task: dict[str, Any]) -> AsyncIterator[str | AnswerEnd]:
        """Ask the server, and pass its text on as it comes; to be closed early closes the connection."""
        delivered: list[str] = task.get("delivered") or []
        if len(delivered) >= task["max_tokens"]:
            yield AnswerEnd(finish_reason="length", completion_tokens=len(delivered))
            return
        ask = ask_for(task, self._served.dialect)
        if ask.template_of is not None:
            ask = ask.with_template(await self._render(ask.template_of))
        for is_last in (False, True):
            reader = AnswerReader(delivered, self._options.key)
            try:
                async with contextlib.aclosing(self._answer(ask, reader)) as pieces:
                    async for piece in pieces:
                        yield piece
                yield reader.ending()
                return
            except RequestFailedError as error:
                if not delivered or error.failure != "bad_request":
                    raise
                raise RequestFailedError(str(error), "not_resumable") from None  # it was taken when it began
            except _NotNowError as error:
                if is_last or reader.has_text:
                    raise RequestFailedError(str(error), error.failure) from None
                await asyncio.sleep(error.pause_s)

    async def _answer(self, ask: Ask, reader: AnswerReader) -> AsyncGenerator[str]:
        """Send one request and yield the texts of its answer. Raises RequestFailedError or _NotNowError."""
        content = msgspec.json.encode(ask.body)
        headers = {"content-type": "application/json"}
        try:
            async with self._client.stream(
                "POST", self._options.url + ask.path, content=content, headers=headers
            ) as answer:
                if answer.status_code != 200 or answer.headers.get("content-type", "").startswith("application/json"):
                    raise await _refusal(answer, self._options.key)
                chunks = answer.aiter_bytes()
                while data := await _next(chunks, _LINGER_S if reader.is_over else None):
                    self._health.moved_at = time.monotonic()
                    for text in reader.feed(data):
                        yield text
        except self._broken as error:
            if reader.is_over:
                return
            if isinstance(error, self._silent):
                words = f"the server behind this node has said nothing for {self._options.silent_s:.0f} s"
                raise RequestFailedError(words, "engine_restarted") from None
            why = f"{type(error).__name__} {error}".strip()
        else:
            if reader.is_over:
                return
            why = "its answer ended in the middle"
        await self._health.ask()
        raise _NotNowError(f"the server behind this node broke off: {why}", "engine_restarted")

    async def _render(self, conversation: dict[str, object]) -> str:
        """Have llama.cpp render a conversation."""
        url = f"{self._options.root}/apply-template"
        try:
            async with self._client.stream("POST", url, json=conversation) as answer:
                body = await _read(answer, _MOST_TEMPLATE_BYTES)
            rendered = msgspec.json.decode(body, type=_Rendered)
        except self._broken as error:
            raise RequestFailedError(f"the server behind this node: {error}", "engine_restarted") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise RequestFailedError("the server behind this node renders no conversation", "not_resumable") from None
        return rendered.prompt

    async def close(self) -> None:
        """Hang up, and end a server of ours."""
        if self._child is not None:
            await asyncio.to_thread(self._child.end)
        await self._client.aclose()


class _NotNowError(Exception):
    """The server cannot answer a request now; before its first token it may be sent again."""

    def __init__(self, words: str, failure: Failure, pause_s: float = _PAUSE_S) -> None:
        super().__init__(words)
        self.failure: Failure = failure
        self.pause_s = pause_s


class _Rendered(msgspec.Struct):
    prompt: str


async def _read(answer: httpx.Response, most_bytes: int) -> bytes:
    body = bytearray()
    async for data in answer.aiter_bytes():
        body += data
        if len(body) > most_bytes:
            break
    return bytes(body)


async def _next(chunks: AsyncIterator[bytes], timeout_s: float | None) -> bytes:
    """Return what comes next; nothing at the end, or if it takes too long."""
    if timeout_s is None:
        return await anext(chunks, b"")
    with contextlib.suppress(TimeoutError):
        return await asyncio.wait_for(cast("Awaitable[bytes]", anext(chunks, b"")), timeout_s)
    return b""


async def _refusal(answer: httpx.Response, key: str) -> Exception:
    """Say why there is no stream; some servers tell of their failures with a status of success."""
    failure = failure_of(answer.status_code, await _read(answer, _MOST_ERROR_BYTES), key)
    if not is_busy(answer.status_code):
        return failure
    wanted = answer.headers.get("retry-after", "")
    pause_s = min(_LONGEST_PAUSE_S, float(wanted)) if wanted.isdecimal() else _PAUSE_S
    return _NotNowError(str(failure), failure.failure, pause_s)


# --- from a spec to engines -------------------------------------------------------------------------------------------


def factory(spec: EngineSpec, progress: Progress) -> Mapping[str, Engine]:
    """Wait for the server and make an engine for each of its models that is wanted."""
    if importlib.util.find_spec("httpx") is None:
        raise CannotLoadError("--engine openai needs httpx: pip install 'zmqrt[openai]'")
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they tell of every probe
    options = read_options(spec)
    child = ServerChild(options.command) if options.command else None
    asker = Asker(options)
    try:
        progress("loading", 0.0)
        listed = wait_for(options, asker.get, child.how_it_ended if child else str)
        models = served_models(listed, spec.model_path, options, asker)
        health = f"{options.root}/health"
        health_url = health if asker.get(health).status == 200 else f"{options.url}/models"
    except BaseException:
        if child is not None:
            child.end()
        raise
    finally:
        asker.close()
    return {
        _service_of(model, spec, is_only=len(models) == 1): OpenAIEngine(model, options, health_url, child)
        for model in models
    }


def _service_of(model: ServedModel, spec: EngineSpec, *, is_only: bool) -> str:
    """Name a service: as the node was told to, else as the server calls the model."""
    name = _NOT_IN_NAMES.sub("-", model.dialect.model)
    if name.startswith(("/", "\\")) or model.dialect.model[1:3] == ":\\":
        name = name.rstrip("/").rpartition("/")[2]
    name = name[:MAX_SERVICE_CHARS]
    is_named = bool(spec.model_path) or spec.model != spec.engine
    if not is_named:
        return f"={name}"
    return "" if is_only else name
