"""Hashes of how prompts begin: alike where the beginnings are, and only for what is long enough."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zmqrt.protocol.limits import MAX_EXT_VALUE_CHARS
from zmqrt.protocol.prefix import BORDERS, prefix_hint
from zmqrt.protocol.tasks import ChatMessage, Embed, Generate


def hashes(task: Generate) -> list[str]:
    """Return the hashes of a task."""
    hint = prefix_hint(task)
    return hint.split(",") if hint else []


@given(st.text(min_size=0, max_size=5000), st.text(max_size=300), st.text(max_size=300))
def test_prompts_share_a_hash_up_to_where_they_differ(shared: str, one: str, other: str) -> None:
    """At each border that both reach."""
    first, second = hashes(Generate(prompt=shared + one)), hashes(Generate(prompt=shared + other))

    length = len(shared.encode("utf-8", "surrogatepass"))
    for number, border in enumerate(BORDERS):
        if length >= border:
            assert first[number] == second[number]
    assert len(first) == sum(len((shared + one).encode("utf-8", "surrogatepass")) >= border for border in BORDERS)


def test_a_longer_conversation_begins_like_the_shorter_one() -> None:
    """Roles count, and so does where a turn ends."""
    turns = [ChatMessage(role="system", content="s" * 300), ChatMessage(role="user", content="hello")]
    more = [*turns, ChatMessage(role="assistant", content="hi"), ChatMessage(role="user", content="x" * 4000)]

    assert hashes(Generate(messages=more))[:1] == hashes(Generate(messages=turns))
    assert len(hashes(Generate(messages=more))) == 3
    otherwise = [ChatMessage(role="user", content="s" * 300), turns[1]]
    assert hashes(Generate(messages=otherwise)) != hashes(Generate(messages=turns))
    parted = [ChatMessage(role="user", content="a" * 200), ChatMessage(role="user", content="b" * 200)]
    shifted = [ChatMessage(role="user", content="a" * 199), ChatMessage(role="user", content="ab" + "b" * 199)]
    assert hashes(Generate(messages=parted)) != hashes(Generate(messages=shifted))


def test_token_ids_count_four_bytes_each_and_other_tasks_have_none() -> None:
    """And the value fits where it travels."""
    ids = list(range(5000))

    assert len(hashes(Generate(token_ids=ids))) == 3
    assert hashes(Generate(token_ids=ids[:64])) == hashes(Generate(token_ids=[*ids[:64], 9]))
    assert hashes(Generate(token_ids=ids[:63])) == []
    assert prefix_hint(Embed(input="x" * 5000)) is None
    assert len(prefix_hint(Generate(token_ids=ids)) or "") <= MAX_EXT_VALUE_CHARS
