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


def test_json_is_judged_as_a_whole_before_its_fields() -> None:
    """A wrong field in front of broken JSON is 400, not 422: one mistake, one answer."""
    with pytest.raises(NotJsonError, match="not valid JSON"):
        parse(b'{"unknown": 1, "prompt": ')


def test_bytes_of_an_old_powershell_are_answered_with_the_remedy() -> None:
    """Windows PowerShell 5.1 sends ISO-8859-1."""
    with pytest.raises(NotJsonError, match=r"not UTF-8 \(byte 15\).*UTF8\.GetBytes"):
        parse('{"prompt": "caf\xe9"}'.encode("latin-1"))


def test_a_lone_surrogate_is_called_by_its_name() -> None:
    """The parser says "truncated", and that would send people looking at the end."""
    with pytest.raises(NotJsonError, match="lone surrogate"):
        parse(b'{"prompt": "\\ud800"}')


def test_deep_nesting_is_refused_without_harm() -> None:
    """A hundred thousand brackets."""
    with pytest.raises(NotJsonError, match="nested too deeply"):
        parse(b'{"prompt":' + b"[" * 100_000)


@pytest.mark.parametrize("body", [b"", b" \n", b"\xef\xbb\xbf"])
def test_an_empty_body_is_told_what_to_send(body: bytes) -> None:
    """Also one that is a byte order mark alone."""
    with pytest.raises(NotJsonError, match="the body is empty"):
        parse(body)
