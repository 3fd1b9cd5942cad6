"""What a node can do and what a request needs, by name."""

from __future__ import annotations

import msgspec
import pytest

from zmqrt.protocol import codec
from zmqrt.protocol import messages as m
from zmqrt.protocol.capabilities import abilities_of, needs_in
from zmqrt.protocol.tasks import Embed, Generate, Task, needs_of


@pytest.mark.parametrize(
    ("task", "needs"),
    [
        (Generate(prompt="hi"), None),
        (Generate(prompt="hi", logprobs=0), "logprobs"),
        (Generate(token_ids=[1]), "token_ids"),
        (Generate(token_ids=[], logprobs=2), "logprobs,token_ids"),
        (Embed(input=[[1, 2]]), None),
    ],
)
def test_a_request_needs_what_its_fields_ask_for(task: Task, needs: str | None) -> None:
    """And most requests nothing. (Which ids an embedding model knows, its node says better.)"""
    assert needs_of(task) == needs


@pytest.mark.parametrize(
    ("ext", "needs"),
    [({}, set[str]()), ({"needs": "a,b"}, {"a", "b"}), ({"needs": ",a,,"}, {"a"}), ({"needs": 7}, set[str]())],
)
def test_needs_are_read_from_ext(ext: m.Ext, needs: set[str]) -> None:
    """What is no list of names asks for nothing."""
    assert needs_in(ext) == needs


def test_an_offer_from_before_can_do_what_nodes_did_before() -> None:
    """It is six fields long, or fewer."""
    batch = [[33, b"u" * 16, "n", 1, [["s", 1, "generate", "", "r1", 64]], []]]
    (ready,) = codec.FROM_WORKER.unpack([b"ZR\x01\x00" + msgspec.msgpack.encode(batch)]).messages
    assert isinstance(ready, m.Ready)

    assert abilities_of(ready.services[0]) == {"logprobs", "token_ids"}
    assert abilities_of(m.ServiceOffer("s", 1, "generate", capabilities=["tools"])) == {"tools"}
    assert abilities_of(m.ServiceOffer("s", 1, "generate", capabilities=[])) == set()
