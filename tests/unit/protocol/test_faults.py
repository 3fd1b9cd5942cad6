"""What a caller is told about a value that does not fit, in words of ours."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from zmqrt.protocol.faults import Fault, find_fault, show, soften


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    """What stands inside."""

    kind: Literal["a", "b"] = "a"


class Outer(msgspec.Struct):
    """One field of each type that bodies have."""

    count: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    share: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    flag: bool = False
    name: Annotated[str, Meta(min_length=1, max_length=4)] = "x"
    inner: list[Inner] = []
    texts: str | Annotated[list[str | int], Meta(min_length=1, max_length=3)] = ""
    bias: dict[str, Annotated[float, Meta(ge=-1.0, le=1.0)]] = {}


def fault_in(value: object) -> Fault:
    """Return what is wrong, once msgspec has refused the value."""
    with pytest.raises((msgspec.ValidationError, OverflowError)) as refusal:
        msgspec.convert(value, Outer)
    return find_fault(refusal.value, value, Outer)


@pytest.mark.parametrize(
    ("value", "path", "text", "word"),
    [
        ([], "", "an object is meant, not a list", "type"),
        ({"count": 0}, "count", "a whole number from 1 or null is meant, not 0", "range"),
        ({"count": 10**30}, "count", "a whole number from 1 or null is meant, not a number beyond 64 bits", "range"),
        (
            {"count": float("inf")},
            "count",
            "a whole number from 1 or null is meant, not a number beyond all bounds",
            "range",
        ),
        ({"count": True}, "count", "a whole number from 1 or null is meant, not true", "type"),
        ({"count": "5"}, "count", 'a whole number from 1 or null is meant, not "5"', "type"),
        ({"share": 0}, "share", "a number above 0, at most 1 is meant, not 0", "range"),
        (
            {"share": float("inf")},
            "share",
            "a number above 0, at most 1 is meant, not a number beyond all bounds",
            "range",
        ),
        ({"share": 10**400}, "share", "a number above 0, at most 1 is meant, not a number beyond 64 bits", "range"),
        (
            {"bias": {"1": 0.5, "2": 10**400}},
            "bias.2",
            "a number from -1 to 1 is meant, not a number beyond 64 bits",
            "range",
        ),
        (
            {"name": float("inf")},
            "name",
            "a text of 1 to 4 characters is meant, not a number beyond all bounds",
            "type",
        ),
        ({"flag": 1}, "flag", "true or false is meant, not 1", "type"),
        ({"name": ""}, "name", 'a text of 1 to 4 characters is meant, not ""', "range"),
        (
            {"name": "x" * 99},
            "name",
            f'a text of 1 to 4 characters is meant, not "{"x" * 40}"… (99 characters)',
            "range",
        ),
        ({"inner": [{}, {"kind": "c"}]}, "inner[1].kind", '"a" or "b" is meant, not "c"', "value"),
        ({"inner": [{"colour": 1}]}, "inner[0].colour", "unknown field; there are kind", "unknown"),
        ({"texts": []}, "texts", "1 to 3 entries are meant, not 0", "range"),
        ({"texts": ["a", None]}, "texts[1]", "a text or a whole number is meant, not null", "type"),
        ({"bias": {"7": 2}}, "bias.7", "a number from -1 to 1 is meant, not 2", "range"),
    ],
)
def test_the_first_fault_is_named_with_what_is_meant(value: object, path: str, text: str, word: Any) -> None:
    """A place, a sentence and a kind."""
    assert fault_in(value) == Fault(path=path, text=text, word=word)


def test_what_is_wrong_first_in_the_document_comes_first() -> None:
    """People read from the top."""
    assert fault_in({"flag": 1, "count": 0}).path == "flag"


def test_what_a_program_gives_as_a_tuple_is_a_list() -> None:
    """The library takes any; what is wrong is something else."""
    assert fault_in({"texts": ("a", "b"), "count": 0}).path == "count"


def test_a_fault_in_a_map_is_named_with_its_key() -> None:
    """Msgspec tells neither the key of a wrong value nor the wrong key itself."""
    assert str(fault_in({"bias": {"a": 1, "b": "x"}})) == 'bias.b: a number from -1 to 1 is meant, not "x"'
    assert str(fault_in({"bias": {"a": 1, 7: 1}})) == "bias: as a name in it, a text is meant, not 7"


def test_a_sentence_that_is_not_known_makes_no_trouble() -> None:
    """Another release of msgspec may have other ones."""
    fault = find_fault(ValueError("what? - at `$.nowhere[3]`"), {}, Outer)

    assert (fault.path, fault.word) == ("", "value")


def test_integers_written_as_floats_become_integers_where_only_those_are_meant() -> None:
    """Not the halves, not the infinite, and not where a number with a point may stand."""
    given = {"count": 5.0, "share": 1.0, "texts": ["a", 3.0], "bias": {"7": 1.0}}
    softened: Any = soften(given, Outer)

    assert softened == {"count": 5, "share": 1.0, "texts": ["a", 3], "bias": {"7": 1.0}}
    assert [type(one) for one in (softened["count"], softened["share"], softened["texts"][1])] == [int, float, int]
    assert soften({"count": 0.5}, Outer) == {"count": 0.5}
    assert soften({"count": float("inf")}, Outer) == {"count": float("inf")}


def test_a_value_is_shown_in_few_characters_whatever_it_is() -> None:
    """It is a stranger's, and ends in a log."""
    shown = [show(one) for one in ({"a": 1}, [1], "a\n", None, 10**5000, float("nan"), object(), b"x")]

    assert shown == [
        "an object",
        "a list",
        '"a\\n"',
        "null",
        "a number beyond 64 bits",
        "a number beyond all bounds",
        "a object",
        "bytes",
    ]
