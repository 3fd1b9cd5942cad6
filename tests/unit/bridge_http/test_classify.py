"""Classifying over HTTP, in the shape that vLLM has for it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from support.asgi import Exchange, call
from support.fake_fleet import FakeFleet
from zmqrt.bridge_http.app import make_app
from zmqrt.bridge_http.config import BridgeSettings
from zmqrt.protocol import tasks


def post(body: object) -> tuple[Exchange, FakeFleet]:
    """Ask the real app in front of a fleet that answers anything."""
    fleet = FakeFleet()
    reply = asyncio.run(call(make_app(fleet, BridgeSettings()), "POST", "/v1/classify", body=json.dumps(body).encode()))
    return reply, fleet


def test_each_text_gets_its_label_and_all_probabilities() -> None:
    """In their order; the labels are told once."""
    reply, fleet = post({"model": "m", "input": ["a", "b"], "truncate": True})

    assert fleet.asked[0][0] == tasks.Classify(input=["a", "b"], truncate=True)
    assert reply.status == 200
    told = reply.json
    assert told.pop("id").startswith("classify-")
    assert told.pop("created") > 0
    row = {"label": "good", "probs": [0.25, 0.75], "num_classes": 2}
    assert told == {
        "object": "list",
        "model": "m",
        "labels": ["bad", "good"],
        "data": [{"index": 0, **row}, {"index": 1, **row}],
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    }


def test_one_text_is_a_list_of_one() -> None:
    """And the model may be left to the broker."""
    reply, fleet = post({"input": "a"})

    assert (fleet.asked[0][0], fleet.asked[0][2]["model"]) == (tasks.Classify(input="a"), None)
    assert len(reply.json["data"]) == 1


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "input", "you must provide input"),
        ({"input": []}, "input", "1"),
        ({"input": [1, 2]}, "input", "a text is meant, not 1"),
        ({"input": "a", "labels": ["x"]}, "labels", "a model has labels of its own"),
        ({"input": "a", "colour": 1}, "colour", "Unrecognized"),
    ],
)
def test_what_cannot_be_is_refused_by_its_field(body: dict[str, Any], param: str, words: str) -> None:
    """Token ids are no input here: a classifier's node reads texts alone."""
    reply, fleet = post(body)

    assert (reply.status, reply.json["error"]["param"], fleet.asked) == (400, param, [])
    assert words in reply.json["error"]["message"]
