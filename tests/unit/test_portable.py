"""What the library raises and returns goes through pickle, copy, queues and process pools, with all that it says."""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import concurrent.futures
import copy
import dataclasses
import importlib
import inspect
import multiprocessing
import pickle
import pkgutil
import typing
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType

import msgspec
import pytest

import zmqrt.bridge_http
import zmqrt.broker
import zmqrt.client
import zmqrt.client.public
import zmqrt.protocol
import zmqrt.worker
from zmqrt.client import (
    AsyncClient,
    Chunk,
    Classification,
    Client,
    Embeddings,
    NotFoundError,
    RankedDocument,
    Ranking,
    Result,
)
from zmqrt.protocol import errors, tasks
from zmqrt.protocol.errors import ConnectError, ErrorKind, RequestError, ZmqrtError, request_error

_EXAMPLES: dict[object, object] = {
    str: "wörds\nof two lines",
    int: 7,
    float: 2.5,
    bool: True,
    ErrorKind: ErrorKind.NOT_FOUND,
    str | None: "maybe",
    int | None: 426,
    Sequence[str]: ["tiny"],
    tuple[str, ...]: ("body", "max_tokens"),
    Mapping[str, str]: {"allow": "POST"},
}
"""A value for each type that a constructor asks for; a new type needs one more line."""


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    yield package
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if found.name.endswith("__main__") or found.name.startswith("zmqrt.worker.engines."):
            continue  # an engine imports torch; what it raises is known to the others
        try:
            yield importlib.import_module(found.name)
        except ImportError:  # what needs Triton, a GPU's driver or an extra that is not here
            continue


def _exceptions() -> list[type[Exception]]:
    """Every exception of ours, found and not listed: a new one is tried by being there."""
    packages = (zmqrt.protocol, zmqrt.client, zmqrt.bridge_http, zmqrt.broker, zmqrt.worker)
    found = {
        one
        for package in packages
        for module in _modules(package)
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, Exception) and one.__module__.startswith("zmqrt.")
    }
    return sorted(found, key=lambda one: (one.__module__, one.__qualname__))


def _made(cls: type[Exception]) -> Exception:
    """Build one with every argument said."""
    if cls.__init__ is Exception.__init__:
        return cls("what happened, and what to do")
    hints = typing.get_type_hints(cls.__init__)
    hints.pop("return", None)
    parameters = inspect.signature(cls).parameters
    positional = [_EXAMPLES[hints[name]] for name, one in parameters.items() if one.kind is not one.KEYWORD_ONLY]
    named = {name: _EXAMPLES[hints[name]] for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY}
    return cls(*positional, **named)


def _pickled(one: object) -> object:
    return pickle.loads(pickle.dumps(one))


_WAYS: dict[str, Callable[[object], object]] = {"pickle": _pickled, "copy": copy.copy, "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("way", _WAYS.values(), ids=_WAYS)
@pytest.mark.parametrize("cls", _exceptions(), ids=lambda one: f"{one.__module__}.{one.__qualname__}")
def test_every_exception_survives_pickle_and_copy(cls: type[Exception], way: Callable[[object], object]) -> None:
    """Class, fields and words are the same afterwards; a new exception is tried without being named here."""
    error = _made(cls)

    other = way(error)

    assert type(other) is cls
    assert str(other) == str(error)
    assert vars(other) == vars(error)
    assert other.args == error.args


@pytest.mark.parametrize("way", _WAYS.values(), ids=_WAYS)
@pytest.mark.parametrize("kind", ErrorKind)
def test_every_kind_of_failure_keeps_what_callers_look_at(kind: ErrorKind, way: Callable[[object], object]) -> None:
    """Code, exit code, advice and the unit to go on from."""
    error = request_error(kind, "words", request_id="job-7", retry_after_s=1.5, resume_n=3)
    error.add_note("seen in the field")

    other = way(error)

    assert isinstance(other, RequestError)
    assert (other.kind, other.text, other.request_id, other.retry_after_s, other.resume_n) == (
        kind,
        "words",
        "job-7",
        1.5,
        3,
    )
    assert (other.code, other.exit_code, other.retryable, other.row) == (
        error.code,
        error.exit_code,
        error.retryable,
        error.row,
    )
    assert str(other) == str(error) == "words (request job-7)"
    assert other.__notes__ == ["seen in the field"]


def test_a_subclass_of_somebody_else_is_carried_too() -> None:
    """An application may add fields of its own, whatever its constructor asks for."""
    error = _Own(41, why="because")

    other = _pickled(error)

    assert isinstance(other, _Own)
    assert (str(other), other.number, other.why) == ("no 41", 41, "because")


class _Own(ZmqrtError):
    def __init__(self, number: int, *, why: str) -> None:
        super().__init__(f"no {number}")
        self.number = number
        self.why = why


def test_causes_come_along_and_what_cannot_be_pickled_leaves_its_words() -> None:
    """What led to an error is still told behind the pool."""
    ours, builtin, foreign = ConnectError("a"), ConnectError("b"), ConnectError("c")
    ours.__cause__ = request_error(ErrorKind.STALLED, "deep", request_id="x")
    builtin.__cause__ = OSError(2, "no such file")
    foreign.__cause__ = msgspec.ValidationError("Expected `int`")
    foreign.__cause__.lock = multiprocessing.get_context("spawn").Lock()  # type: ignore[attr-defined]

    causes = [_pickled(one).__cause__ for one in (ours, builtin, foreign)]  # type: ignore[attr-defined]

    assert [str(one) for one in causes] == [
        "deep (request x)",
        "[Errno 2] no such file",
        "msgspec.ValidationError: Expected `int`",
    ]
    assert isinstance(causes[0], errors.DeadlineError)
    assert all(one.__cause__ is not None and one.__suppress_context__ for one in (ours, builtin, foreign))


def test_what_is_raised_in_a_process_pool_is_caught_outside() -> None:
    """The pool lives on, and the caller sees the class with its fields; a queue carries it too."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    queue.put(request_error(ErrorKind.NOT_FOUND, "no such model", request_id="job-7"))
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        failed = pool.submit(request_error, ErrorKind.NOT_FOUND, "no such model", request_id="job-7")
        raised = pool.submit(tasks.check, {"task": "generate", "prompt": 7}, tasks.Generate)
        returned = failed.result(30)
        refused = raised.exception(30)
    queued = queue.get(timeout=30)
    queue.close()
    queue.join_thread()

    for one in (returned, queued):
        assert isinstance(one, NotFoundError)
        assert (one.kind, one.request_id, str(one)) == (ErrorKind.NOT_FOUND, "job-7", "no such model (request job-7)")
    assert isinstance(refused, errors.BadRequestError)
    assert "prompt" in refused.text


def _results() -> Iterator[object]:
    usage = tasks.Usage(prompt_tokens=1, completion_tokens=2)
    logprobs = [tasks.TokenLogprobs(logprob=-0.5, top={1: -0.5}, spelled={1: b"\xff"})]
    yield Chunk(text="a", token_ids=[1], index=0, pieces=["a"], logprobs=logprobs)
    yield Result(
        text="a",
        token_ids=[1],
        finish_reason="stop",
        usage=usage,
        seed=2**63 - 1,
        model="m",
        revision="r",
        request_id="job-7",
        logprobs=logprobs,
    )
    vectors = [array("f", [1.0, 2.0])]
    yield Embeddings(vectors=vectors, usage=usage, model="m", revision="r", request_id="job-7")
    yield RankedDocument(0, 0.5)
    yield Ranking(scores=[0.5], usage=usage, model="m", revision="r", request_id="job-7")
    yield Classification(labels=["a"], probabilities=[[1.0]], usage=usage, model="m", revision="r", request_id="job-7")
    for name in zmqrt.client.public.__all__:
        cls = getattr(zmqrt.client, name)
        is_record = isinstance(cls, type) and (dataclasses.is_dataclass(cls) or issubclass(cls, msgspec.Struct))
        if is_record and cls not in (Chunk, Result, Embeddings, RankedDocument, Ranking, Classification):
            yield _filled(cls)


def _filled(cls: type) -> object:
    """Build a record with something in every field that has to be said."""
    if not issubclass(cls, msgspec.Struct):
        return cls()
    needed = [one for one in msgspec.structs.fields(cls) if one.required]
    return cls(**{one.name: _any_of(one.type) for one in needed})


def _any_of(annotation: object) -> object:
    plain = typing.get_origin(annotation) or annotation
    if plain is typing.Literal:
        return typing.get_args(annotation)[0]
    if plain is typing.Annotated:
        return _any_of(typing.get_args(annotation)[0])
    if plain in (list, dict, str, int, float, bool, bytes):
        return typing.cast("Callable[[], object]", plain)()
    return _any_of(typing.get_args(annotation)[0])  # the first of a union


@pytest.mark.parametrize("way", _WAYS.values(), ids=_WAYS)
@pytest.mark.parametrize("result", list(_results()), ids=lambda one: type(one).__name__)
def test_every_public_record_survives_pickle_and_copy(result: object, way: Callable[[object], object]) -> None:
    """What the verbs return, and what can be given to them, is data."""
    other = way(result)

    assert type(other) is type(result)
    assert other == result


@pytest.mark.parametrize("make", [Client, AsyncClient])
def test_a_client_says_why_it_cannot_be_pickled(make: Callable[[], object]) -> None:
    """The sentence names the remedy instead of a lock that nobody knows of."""
    with pytest.raises(TypeError, match="make a client in each"):
        pickle.dumps(make())
