"""A broker of a hundred lines for tests of the client: real sockets, the real codec, behaviour that a test can bend.

It answers every generation by repeating the prompt's words, and can be told to lose, delay or refuse.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import msgspec
import zmq

from support import snapshots
from zmqrt.protocol import admin, codec, snapshot, tasks, transport
from zmqrt.protocol import messages as m
from zmqrt.protocol.keys import KeyPair
from zmqrt.protocol.snapshot import ServiceStatus

Answer = Callable[[m.Request], list[m.ToClient]]


def service(name: str = "toy", task: m.TaskName = "generate") -> ServiceStatus:
    """Describe a service."""
    return snapshots.service(name, task=task, context=100, running=0)


def words_of(request: m.Request) -> list[str]:
    """Return the tokens of the toy model: the prompt's words, each with its space."""
    task = tasks.decode_task(request.body)
    assert isinstance(task, tasks.Generate)
    words = (task.prompt or "").split(" ")
    return [word if i == 0 else " " + word for i, word in enumerate(words)]


def partial(request: m.Request, seq: int, words: list[str]) -> m.Partial:
    """Build one PARTIAL."""
    body = tasks.GenerateChunk(ids=list(range(seq, seq + len(words))), text=words)
    return m.Partial(request.rid, seq, len(words), tasks.encode(body))


def final(request: m.Request, words: list[str], *, tail: str = "") -> m.Final:
    """Build the FINAL of a generation."""
    whole = not request.flags & m.STREAM
    body = tasks.GenerateResult(
        finish_reason="stop",
        usage=tasks.Usage(prompt_tokens=1, completion_tokens=len(words)),
        seed=7,
        model=request.service,
        revision="r1",
        tail=tail,
        text="".join(words) if whole else None,
        ids=list(range(len(words))) if whole else None,
    )
    return m.Final(request.rid, len(words), {}, tasks.encode(body))


def echo(request: m.Request) -> list[m.ToClient]:
    """Answer at once: the prompt, word by word if it streams."""
    if tasks.unpack_map(request.body).get("task") in ("embed", "rerank", "classify"):
        return [judged(request)]
    words = words_of(request)
    chunks = range(request.resume_n, len(words)) if request.flags & m.STREAM else ()
    return [*(partial(request, i, words[i : i + 1]) for i in chunks), final(request, words)]


def judged(request: m.Request) -> m.Final:
    """Answer what comes whole: vectors of ones, scores that grow from one document to the next, two classes."""
    said: Any = {
        "usage": tasks.Usage(prompt_tokens=1, completion_tokens=0),
        "model": request.service,
        "revision": "r1",
    }
    body: msgspec.Struct
    match tasks.decode_task(request.body):
        case tasks.Embed(input=given):
            count = 1 if isinstance(given, str) else len(given)
            tensor = tasks.Tensor(dtype="f4", shape=[count, 3], data=(b"\x00\x00\x80\x3f" * 3) * count)
            body = tasks.EmbedResult(vectors=tensor, **said)
        case tasks.Rerank(documents=documents):
            body = tasks.RerankResult(scores=[at / 10 for at in range(len(documents))], **said)
        case tasks.Classify(input=given):
            count = 1 if isinstance(given, str) else len(given)
            body = tasks.ClassifyResult(labels=["bad", "good"], probabilities=[[0.25, 0.75]] * count, **said)
        case tasks.Generate() as task:
            raise AssertionError(task)
    return m.Final(request.rid, 0, {}, tasks.encode(body))


def refuse(request: m.Request, code: int, reason: str, retry_after_ms: int = 0) -> m.Error:
    """Build a refusal."""
    return m.Error(request.rid, code, reason, code in (429, 503), retry_after_ms, f"refused: {reason}")


class TinyBroker:
    """Run in a `with` block; `received` holds every message, `answer` makes the replies to a REQUEST."""

    def __init__(
        self,
        answer: Answer = echo,
        *,
        endpoint: str = "tcp://127.0.0.1:0",
        keys: KeyPair | None = None,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        services: list[ServiceStatus] | None = None,
        params: m.Params | None = None,
        epoch: int = 1,
    ) -> None:
        self.answer = answer
        self.services = [service()] if services is None else services
        self.params = params or m.Params(1000, 2000, 30_000, 256, 8 << 20)
        self.epoch = epoch
        self.received: list[m.FromClient] = []
        self.is_mute = False
        self._own_context = context is None
        self._context = context or transport.make_context()
        self._router, self.endpoint = transport.bind_frontend(self._context, endpoint, keys=keys)
        self._say: list[m.ToClient] = []
        self._peers: list[bytes] = []
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Vanish, as a killed broker does."""
        if not self._is_stopping:
            self._is_stopping = True
            self._thread.join()
            self._router.close(0)
            if self._own_context:
                self._context.term()

    def say(self, message: m.ToClient) -> None:
        """Send something to every client, unasked."""
        self._say.append(message)

    def requests(self) -> list[m.Request]:
        """Return the REQUESTs received so far."""
        return [one for one in list(self.received) if isinstance(one, m.Request)]

    def wait_for(self, kind: type[m.FromClient], count: int = 1, timeout_s: float = 5.0) -> list[m.FromClient]:
        """Wait until so many messages of a kind are here."""
        give_up_at = time.monotonic() + timeout_s
        while time.monotonic() < give_up_at:
            found = [one for one in list(self.received) if isinstance(one, kind)]
            if len(found) >= count:
                return found
            time.sleep(0.005)
        raise AssertionError(f"no {count} {kind.__name__} within {timeout_s} s: {self.received}")

    def _run(self) -> None:
        while not self._is_stopping:
            self._router.poll(5)
            out: dict[bytes, list[m.ToClient]] = {}
            while (envelope := transport.receive_routed(self._router)) is not None:
                peer, _, _, frames = envelope
                if peer not in self._peers:
                    self._peers.append(peer)
                for message in codec.FROM_CLIENT.unpack(frames).messages:
                    self.received.append(message)
                    if not self.is_mute:
                        out.setdefault(peer, []).extend(self._replies(message))
            while self._say:
                said = self._say.pop(0)
                for peer in self._peers:
                    out.setdefault(peer, []).append(said)
            for peer, replies in out.items():
                self._send(peer, replies)

    def _send(self, peer: bytes, replies: list[m.ToClient]) -> None:
        for frames in codec.pack(replies):
            try:
                transport.send_routed(self._router, peer, frames)
            except zmq.ZMQError:
                return

    def _replies(self, message: m.FromClient) -> list[m.ToClient]:
        match message:
            case m.Hello():
                return [m.Welcome("tiny", self.epoch, self.params)]
            case m.Request():
                return self.answer(self._named(message))
            case m.Ping():
                return [m.Pong(message.nonce)]
            case m.Cancel():
                return [m.Error(message.rid, 499, "cancelled", False, 0, "cancelled by its client")]
            case m.Query():
                return [m.Status(message.qid, snapshot.SCHEMA, snapshot.SCHEMA_VERSION, self._snapshot())]
            case m.Admin():
                known = message.args.get("node") == "tiny-node"
                text = "tiny-node is draining" if known else "there are: tiny-node"
                outcome = admin.AdminOutcome(
                    is_done=known, text=text, reason="" if known else "model_not_found", deadline_s=30.0
                )
                return [m.Status(message.qid, admin.SCHEMA, admin.SCHEMA_VERSION, admin.encode(outcome))]
            case m.Bye() | m.Window():
                return []

    def _named(self, request: m.Request) -> m.Request:
        """Take the first model of the task where none is named, as far as there is one."""
        names = [one.service for one in self.services if one.task == request.ext.get("task")]
        return msgspec.structs.replace(request, service=request.service or (names or [""])[0])

    def _snapshot(self) -> bytes:
        whole = snapshots.snapshot(services=self.services, broker_id="tiny", broker_epoch=self.epoch)
        return snapshot.encode(whole)
