"""Reranking over HTTP: what clients of Cohere, Jina and vLLM send, and what they read."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from support.asgi import Exchange, call
from support.fake_fleet import FakeFleet
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.bridge_http.paths import RERANK
from zmqrt.protocol import tasks
from zmqrt.protocol.errors import ErrorKind, request_error, too_long

ASK: dict[str, Any] = {"query": "q", "documents": ["a", "b", "c"]}


def post(body: object, path: str = "/v1/rerank", fleet: FakeFleet | None = None) -> tuple[Exchange, FakeFleet]:
    """Ask the real app in front of a fleet that answers anything."""
    fleet = fleet or FakeFleet()
    reply = asyncio.run(call(make_app(fleet, BridgeSettings()), "POST", path, body=json.dumps(body).encode()))
    return reply, fleet


@pytest.mark.parametrize("path", RERANK)
def test_each_path_answers_in_the_shape_that_all_share(path: str) -> None:
    """The best first, by index, with its text; and the tokens as Jina and as Cohere count them."""
    reply, fleet = post({**ASK, "model": "m"}, path)

    assert reply.status == 200
    (task, _, options) = fleet.asked[0]
    assert (task, options["model"]) == (tasks.Rerank(query="q", documents=["a", "b", "c"], truncate=True), "m")
    told = reply.json
    assert told.pop("id").startswith("rerank-")
    assert told == {
        "object": "list",
        "model": "m",
        "results": [
            {"index": 2, "relevance_score": 0.5, "document": {"text": "c"}},
            {"index": 1, "relevance_score": pytest.approx(1 / 3), "document": {"text": "b"}},
            {"index": 0, "relevance_score": 0.25, "document": {"text": "a"}},
        ],
        "meta": {"tokens": {"input_tokens": 1}},
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    }


@pytest.mark.parametrize(("top_n", "count"), [(1, 1), (2.0, 2), (0, 3), (-1, 3), (None, 3), (9, 3)])
def test_so_many_of_the_best(top_n: object, count: int) -> None:
    """Nothing, and what other servers take for it, means all; the node is asked for all of them in any case."""
    reply, fleet = post({**ASK, "top_n": top_n})

    assert [one["index"] for one in reply.json["results"]] == [2, 1, 0][:count]
    assert len(fleet.asked[0][0].documents) == 3


def test_documents_may_be_objects_and_need_not_come_back() -> None:
    """As Cohere's first API and Jina have them; what else is in them is their owner's."""
    documents = [{"text": "a", "title": "A"}, "b"]
    reply, fleet = post({**ASK, "documents": documents, "return_documents": False, "rank_fields": ["text"]})

    assert fleet.asked[0][0].documents == ["a", "b"]
    assert [sorted(one) for one in reply.json["results"]] == [["index", "relevance_score"]] * 2


def test_a_document_that_is_too_long_is_cut_unless_its_sender_minds() -> None:
    """As Cohere and Jina do."""
    assert post({**ASK, "max_tokens_per_doc": 4096})[1].asked[0][0].truncate
    assert not post({**ASK, "truncate": False})[1].asked[0][0].truncate


@pytest.mark.parametrize(
    ("wrong", "param", "words"),
    [
        ({"query": None}, "query", "a text is meant, not null"),
        ({"documents": []}, "documents", "1"),
        ({"documents": ["x"] * 2049}, "documents", "2048"),
        ({"documents": "x"}, "documents", "a list of 1 to 2048 entries (each a text or an object) is meant"),
        ({"documents": ["x", 5]}, "documents[1]", "a text or an object is meant, not 5"),
        ({"documents": [{"title": "A"}]}, "documents[0].text", "you must provide documents[0].text"),
        ({"top_n": -2}, "top_n", "from 0"),
        ({"max_tokens_per_doc": 100}, "max_tokens_per_doc", "leave it out"),
        ({"rank_fields": ["title"]}, "rank_fields", "its text counts"),
        ({"texts": ["a"]}, "texts", "Unrecognized request argument supplied: texts"),
    ],
)
def test_what_cannot_be_is_refused_by_its_field(wrong: dict[str, Any], param: str, words: str) -> None:
    """In OpenAI's shape, before anybody is asked."""
    reply, fleet = post({**ASK, **wrong})

    assert (reply.status, reply.json["error"]["param"], fleet.asked) == (400, param, [])
    assert words in reply.json["error"]["message"]


@pytest.mark.parametrize(
    ("kind", "text", "param"),
    [
        (ErrorKind.WRONG_TASK, "m serves the task 'generate', not 'rerank'", "model"),
        (ErrorKind.CONTEXT_EXCEEDED, too_long("documents", 9, 8), "documents"),
        (ErrorKind.BAD_REQUEST, "query: it is empty", "query"),
        (ErrorKind.BAD_REQUEST, "documents[3]: it is empty: 0 tokens", "documents"),
        (ErrorKind.CONTEXT_EXCEEDED, too_long("query", 9, 8), "query"),
        (ErrorKind.CONTEXT_EXCEEDED, too_long("documents[3]", 9, 8), "documents"),
    ],
)
def test_what_a_node_refuses_names_the_field_too(kind: ErrorKind, text: str, param: str) -> None:
    """As its caller calls it."""
    reply, _ = post(ASK, "/rerank", FakeFleet(error=request_error(kind, text)))

    assert (reply.status, reply.json["error"]["param"], reply.json["error"]["message"]) == (400, param, text)
