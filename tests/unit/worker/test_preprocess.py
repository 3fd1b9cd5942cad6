"""Where a request is preprocessed: at once if that takes milliseconds, else beside the loop of the node."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from support.node import Node, ids_of, sent, submitted
from zmqrt.protocol import messages as m
from zmqrt.protocol import tasks
from zmqrt.worker import actions as a
from zmqrt.worker.engines import ipc
from zmqrt.worker.engines.base import TokenEvent
from zmqrt.worker.tokenizer import ByteTokenizer

RAW = tasks.encode(tasks.Generate(prompt="hi", raw=True))
CHAT = tasks.encode(tasks.Generate(messages=[tasks.ChatMessage(role="user", content="hi")]))
LONG = tasks.encode(tasks.Generate(prompt="hi", raw=True, stop=["x" * 4000, "y" * 4000, "z" * 4000]))


class BrokenTokenizer(ByteTokenizer):
    """One with a fault."""

    def encode(self, text: str, *, is_raw: bool = False, most: int | None = None) -> list[int]:
        """Raise what no tokenizer should."""
        raise KeyError(text)


def serving(*, has_tokenizer_pool: bool) -> Node:
    """Return a node that runs requests."""
    node = Node()
    node.register()
    node.load()
    node.core.requests.preprocessor.has_tokenizer_pool = has_tokenizer_pool
    return node


def handed_on(made: Sequence[a.Action]) -> list[bool]:
    """Return what is preprocessed beside the loop: whether the tokenizer pool has a part in it."""
    return [action.needs_pool for action in made if isinstance(action, a.Preprocess)]


def test_a_short_prompt_runs_in_the_same_pass() -> None:
    """Without a thread, a process or an action in between."""
    for payload in (RAW, CHAT):
        made = serving(has_tokenizer_pool=False).dispatch(1, payload=payload)

        assert handed_on(made) == []
        assert [type(message) for message in submitted(made)] == [ipc.Submit]


def test_a_template_is_rendered_by_the_pool_alone() -> None:
    """It is a stranger's program; a raw prompt needs none."""
    node = serving(has_tokenizer_pool=True)

    assert handed_on(node.dispatch(1, payload=CHAT)) == [True]
    assert handed_on(node.dispatch(2, payload=RAW)) == []


def test_a_long_body_is_preprocessed_beside_the_loop() -> None:
    """By the pool if there is one, else on a thread."""
    assert handed_on(serving(has_tokenizer_pool=True).dispatch(1, payload=LONG)) == [True]
    assert handed_on(serving(has_tokenizer_pool=False).dispatch(1, payload=LONG)) == [False]


def test_what_is_no_task_is_refused_before_anything_is_encoded() -> None:
    """With and without a pool."""
    for has_pool in (True, False):
        made = serving(has_tokenizer_pool=has_pool).dispatch(1, payload=b"\xc1")

        assert [error.code for error in sent(made, m.WorkerError)] == [400]
        assert handed_on(made) == []


def test_a_fault_in_a_tokenizer_fails_its_request_and_is_logged_with_its_traceback() -> None:
    """Never the node."""
    node = serving(has_tokenizer_pool=False)
    node.core.requests.preprocessor.tokenizer = BrokenTokenizer()

    made = node.dispatch(1, payload=RAW)

    assert [(error.code, error.reason) for error in sent(made, m.WorkerError)] == [(500, "model_raised")]
    assert [type(action.error) for action in made if isinstance(action, a.Note) and action.error] == [KeyError]


GRAMMAR = tasks.encode(
    tasks.Generate(prompt="hi", raw=True, max_tokens=3, grammar=tasks.Grammar(kind="regex", text="[abc]{3}"))
)


def able(can: list[str]) -> Node:
    """Return a node whose engine can do something."""
    node = Node()
    node.register()
    node.load(can=can)
    return node


@pytest.mark.parametrize("kind", ["token", "stream"])
def test_a_grammar_that_the_engine_would_ignore_is_refused(kind: ipc.Kind) -> None:
    """A broker from before capabilities gives it to any node, and free text in place of JSON is no answer."""
    node = Node()
    node.register()
    node.load(kind=kind)

    (error,) = sent(node.dispatch(1, payload=GRAMMAR), m.WorkerError)

    assert error.code == 400
    assert error.text.startswith("grammar: ")
    assert submitted(able(["grammar"]).dispatch(1, payload=GRAMMAR))


def test_whether_a_resumed_answer_of_full_length_is_whole_its_engine_says() -> None:
    """It ends with `stop` where the grammar does, undisturbed or not: an answer of exactly `max_tokens` tokens."""
    node = able(["grammar"])

    made = node.dispatch(1, payload=GRAMMAR, prefix=[tasks.GenerateChunk(ids=ids_of("abc"), text=["a", "b", "c"])])
    ended = node.step(TokenEvent(ticket=node.ticket(), finish_reason="stop"))

    (submit,) = submitted(made)
    assert isinstance(submit, ipc.Submit)
    assert submit.request.resume_ids == ids_of("abc")
    assert tasks.decode(sent(ended, m.WorkerFinal)[0].body, tasks.GenerateResult).finish_reason == "stop"
