"""Requests to the mock whose answers are known beforehand, and how they are read without forgiving anything."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from zmqrt.client import Client, GenerateOptions, Handle, Result
from zmqrt.worker.engines.mock_tokens import expected_tokens
from zmqrt.worker.tokenizer import ByteTokenizer


@dataclass(frozen=True)
class Expected:
    """One generation by the toy model. Every byte of it follows from these fields."""

    seed: int
    tokens: int = 100
    temperature: float = 0.7
    stop: str = ""
    is_stream: bool = True
    is_idempotent: bool = True

    @property
    def prompt(self) -> str:
        """Another one for each seed, so that greedy answers differ too."""
        return f"stream {self.seed}"

    @cached_property
    def _bytes(self) -> bytes:
        ids = ByteTokenizer().encode(self.prompt, is_raw=True)
        made = expected_tokens(ids, self.tokens, seed=self.seed, temperature=self.temperature, ignore_eos=True)
        return bytes(made)  # without EOS every token is a byte

    @property
    def _stop_at(self) -> int:
        return self._bytes.find(self.stop.encode()) if self.stop else -1

    @property
    def ids(self) -> list[int]:
        """The tokens, with those of the stop string."""
        return list(self._bytes if self._stop_at < 0 else self._bytes[: self._stop_at + len(self.stop.encode())])

    @property
    def text(self) -> str:
        """The text, without the stop string."""
        return (self._bytes if self._stop_at < 0 else self._bytes[: self._stop_at]).decode("utf-8", "replace")

    def options(self) -> GenerateOptions:
        """Return what to ask for."""
        options = GenerateOptions(
            model="mock",
            raw=True,
            max_tokens=self.tokens,
            seed=self.seed,
            temperature=self.temperature,
            ignore_eos=True,
        )
        if not self.is_idempotent:
            options["idempotent"] = False
        if self.stop:
            options["stop"] = self.stop
        return options


def mixed(count: int, tokens: int) -> list[Expected]:
    """Return as many of every sort: greedy, sampled, with a stop string that comes early or late, unary."""
    return [_sort(seed, tokens) for seed in range(count)]


def _sort(seed: int, tokens: int) -> Expected:
    match seed % 5:
        case 0:
            return Expected(seed, tokens, temperature=0.0)
        case 1:
            return Expected(seed, tokens, stop="ee")
        case 2:
            return _ending_late(seed, tokens)
        case 3:
            return Expected(seed, tokens, is_stream=False)
        case _:
            return Expected(seed, tokens)


def _ending_late(seed: int, tokens: int) -> Expected:
    """Choose for a stop string what stands near the end of the answer."""
    text = Expected(seed, tokens).text
    late = next(text[at : at + 3] for at in range(len(text) - 8, 0, -1) if text.find(text[at : at + 3]) == at)
    return Expected(seed, tokens, stop=late)


def ask_streams(client: Client, expected: Iterable[Expected]) -> list[Handle[Result]]:
    """Send them all."""
    return [client.submit(one.prompt, stream=one.is_stream, **one.options()) for one in expected]


def open_all(handles: Iterable[Handle[Result]], expected: Iterable[Expected]) -> list[list[int]]:
    """Wait until every stream has begun; return the first tokens of each. None may have ended."""
    begun: list[list[int]] = []
    for handle, one in zip(handles, expected, strict=True):
        chunk = handle.next_chunk() if one.is_stream else None
        assert chunk is not None or not one.is_stream, "it ended before the test began"
        begun.append(chunk.token_ids if chunk is not None else [])
    return begun


def read_on(handle: Handle[Result], begun: list[int], one: Expected) -> None:
    """Read to the end: no gap, no repeat, one end, and every byte as it should be."""
    ids, text = list(begun), ""
    while one.is_stream and (chunk := handle.next_chunk()) is not None:
        assert chunk.index == len(ids), f"{one}: tokens {chunk.index} came after {len(ids)}"
        ids += chunk.token_ids
        text += chunk.text
    result = handle.result()
    assert result.token_ids == one.ids, f"{one}: {result.token_ids} is not {one.ids}"
    assert result.text == one.text, f"{one}: {result.text!r} is not {one.text!r}"
    if one.is_stream:
        assert ids == one.ids
        assert one.text.endswith(text)
    assert result.usage.completion_tokens == len(one.ids)


def ids_of(handle: Handle[Result]) -> list[int]:
    """Return the whole answer's tokens."""
    return handle.result().token_ids
