"""How the client library looks to type checkers. Never run: mypy and pyright read it, and complain when it changes."""

from __future__ import annotations

from array import array
from typing import assert_type

from zmqrt.client import (
    AdminOutcome,
    AsyncClient,
    AsyncHandle,
    AsyncStream,
    Chunk,
    Classification,
    Classify,
    Client,
    Embed,
    Embeddings,
    Generate,
    Handle,
    RankedDocument,
    Ranking,
    RequestTrace,
    Rerank,
    Result,
    ServiceStatus,
    Snapshot,
    Stream,
)


def threads(client: Client) -> None:
    """Use every verb of the one face."""
    assert_type(client.infer("hi", max_tokens=5, stop="x", logit_bias={1: 2.0}), Result)
    assert_type(client.infer(messages=[{"role": "user", "content": "hi"}], model="toy", retries=0), Result)
    assert_type(client.submit("hi", stream=True, timeout_s=5), Handle[Result])
    assert_type(client.submit_task(Generate(prompt="hi"), stream=True, rid=b"0" * 16), Handle[Result])
    assert_type(client.submit_task(Embed(input="hi")).result(), Embeddings)
    assert_type(client.embed(["hi", [1, 2]], dimensions=3, priority=1), list[array[float]])
    assert_type(client.rerank("hi", ["a", "b"], top_n=1, model="m"), list[RankedDocument])
    assert_type(client.classify("hi", truncate=True), list[dict[str, float]])
    assert_type(client.submit_task(Rerank(query="hi", documents=["a"])).result(), Ranking)
    assert_type(client.submit_task(Classify(input="hi")).result(), Classification)
    assert_type(client.status(), Snapshot)
    assert_type(client.explain("job-7"), list[RequestTrace])
    assert_type(client.models(), list[ServiceStatus])
    assert_type(client.drain("node-1"), AdminOutcome)
    with client.stream("hi", temperature=None) as stream:
        assert_type(stream, Stream)
        for chunk in stream:
            assert_type(chunk, Chunk)
        assert_type(stream.result, Result | None)


async def tasks(client: AsyncClient) -> None:
    """Use every verb of the other: the same names."""
    assert_type(await client.infer("hi", seed=1), Result)
    assert_type(client.submit("hi", stream=True), AsyncHandle[Result])
    assert_type(await client.submit_task(Generate(prompt="hi")).result(1.0), Result)
    assert_type(await client.submit_task(Embed(input="hi")).result(), Embeddings)
    assert_type(await client.embed("hi"), list[array[float]])
    assert_type(await client.rerank("hi", ["a"]), list[RankedDocument])
    assert_type(await client.classify(["hi"]), list[dict[str, float]])
    assert_type(await client.submit_task(Rerank(query="hi", documents=["a"])).result(), Ranking)
    assert_type(await client.submit_task(Classify(input="hi")).result(), Classification)
    assert_type(await client.status(), Snapshot)
    assert_type(await client.explain("job-7"), list[RequestTrace])
    assert_type(await client.models(), list[ServiceStatus])
    assert_type(await client.drain("node-1"), AdminOutcome)
    async with client.stream("hi") as stream:
        assert_type(stream, AsyncStream)
        async for chunk in stream:
            assert_type(chunk, Chunk)
        assert_type(stream.result, Result | None)


def mistakes(client: Client) -> None:
    """Have typical slips found before the program runs."""
    client.infer("hi", max_token=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    client.infer("hi", max_tokens="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    client.infer(["hi"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
