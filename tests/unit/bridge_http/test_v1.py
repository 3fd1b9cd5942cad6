"""The contract as a function: bytes in, a task out, or words."""

import pytest

from zmqrt.bridge_http.errors import InvalidFieldError
from zmqrt.bridge_http.json_body import NotJsonError
from zmqrt.bridge_http.v1 import InferRequest, parse, to_task
from zmqrt.protocol.tasks import Generate


def field_error(body: bytes) -> tuple[tuple[str, ...], str, str]:
    """Parse what must be refused; return place, words and type."""
    with pytest.raises(InvalidFieldError) as caught:
        parse(body)
    return caught.value.loc, caught.value.text, caught.value.type


def test_null_takes_the_defaults_of_the_contract() -> None:
    """100 tokens at 0.7."""
    request = parse(b'{"prompt": "Hi", "max_tokens": null, "temperature": null}')

    assert to_task(request) == Generate(prompt="Hi", max_tokens=100, temperature=0.7)


def test_what_is_given_is_kept() -> None:
    """Zero is a temperature, not an absent one."""
    assert to_task(InferRequest(prompt="", max_tokens=8, temperature=0.0)) == Generate(
        prompt="", max_tokens=8, temperature=0.0
    )


def test_an_unknown_field_is_answered_with_those_that_there_are() -> None:
    """A misspelt field is named before the one that is missing because of it."""
    assert field_error(b'{"promt": "Hi"}') == (
        ("body", "promt"),
        "unknown field; v1 has prompt, api_version, max_tokens, temperature",
        "extra_forbidden",
    )


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{}", (("body", "prompt"), "this field is required", "missing")),
        (b"[1]", (("body",), "an object is meant, not a list", "type_error")),
        (b'{"prompt": 5}', (("body", "prompt"), "a text is meant, not 5", "type_error")),
        (
            b'{"prompt": "", "max_tokens": 1.5}',
            (("body", "max_tokens"), "a whole number from 1 or null is meant, not 1.5", "type_error"),
        ),
        (
            b'{"prompt": "", "max_tokens": 0}',
            (("body", "max_tokens"), "a whole number from 1 or null is meant, not 0", "out_of_range"),
        ),
        (
            b'{"prompt": "", "temperature": 1e999}',
            (
                ("body", "temperature"),
                "a number from 0 to 2 or null is meant, not a number beyond all bounds",
                "out_of_range",
            ),
        ),
        (
            b'{"prompt": "", "api_version": "v2"}',
            (("body", "api_version"), '"v1" is meant, not "v2"', "value_error"),
        ),
    ],
)
def test_each_mistake_names_its_field_and_reason(body: bytes, expected: object) -> None:
    """Place, sentence, and a word for programs."""
    assert field_error(body) == expected


def test_a_field_name_chosen_by_a_stranger_is_cut() -> None:
    """It stands in our answer and in our log."""
    (_, name), _, _ = field_error(b'{"prompt": "", "' + b"x" * 5000 + b'": 1}')

    assert name == "x" * 100


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"unknown": 1, "prompt": ', "not valid JSON"),  # as a whole before its fields: one mistake, one answer
        ('{"prompt": "caf\xe9"}'.encode("latin-1"), r"not UTF-8 \(byte 15\).*UTF8\.GetBytes"),  # Windows PowerShell 5.1
        (b'{"prompt": "\\ud800"}', "lone surrogate"),  # the parser says "truncated": its author would look at the end
        (b'{"prompt":' + b"[" * 100_000, "nested too deeply"),
        *((body, "the body is empty") for body in (b"", b" \n", b"\xef\xbb\xbf")),  # a byte order mark alone, too
    ],
    ids=["broken", "latin-1", "surrogate", "nested", "empty", "blank", "byte order mark"],
)
def test_what_is_no_json_is_told_the_remedy(body: bytes, words: str) -> None:
    """Without harm, however long it is."""
    with pytest.raises(NotJsonError, match=words):
        parse(body)
