"""Hypothesis strategies for every message of ZRT/1, built from the structs' own annotations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from hypothesis import strategies as st

from zmqrt.protocol import messages as m

ALL_MESSAGES: list[type[Any]] = [
    struct
    for union in (m.FromClient, m.ToClient, m.FromWorker, m.ToWorker)
    for struct in union.__args__  # pyright: ignore[reportUnknownVariableType, reportAttributeAccessIssue]
]


def of_type(info: msgspec.inspect.Type) -> st.SearchStrategy[Any]:  # noqa: C901, PLR0912 - one case a type
    """Build values that fit one annotated field type, bounds included."""
    match info:
        case msgspec.inspect.IntType():
            return st.integers(info.ge if info.ge is not None else -(2**63), info.le if info.le is not None else 2**63)
        case msgspec.inspect.StrType():
            if info.pattern:
                return st.from_regex(info.pattern, fullmatch=True).filter(
                    lambda s: (info.min_length or 0) <= len(s) <= (info.max_length or 9)
                )
            return st.text(
                st.characters(codec="utf-8"), min_size=info.min_length or 0, max_size=min(info.max_length or 64, 64)
            )
        case msgspec.inspect.BytesType():
            return st.binary(min_size=info.min_length or 0, max_size=info.max_length or 200)
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.LiteralType():
            return st.sampled_from(info.values)
        case msgspec.inspect.UnionType():
            return st.one_of([of_type(one) for one in info.types])
        case msgspec.inspect.ListType():
            return st.lists(of_type(info.item_type), max_size=3)
        case msgspec.inspect.DictType():
            return st.dictionaries(of_type(info.key_type), of_type(info.value_type), max_size=3)
        case msgspec.inspect.StructType():
            return of_struct(info.cls)
        case msgspec.inspect.Metadata():
            return of_type(info.type)
        case _:
            raise TypeError(f"no strategy for {info}")


def of_struct(struct: type[Any]) -> st.SearchStrategy[Any]:
    """Build instances of one struct."""
    info = msgspec.inspect.type_info(struct)
    assert isinstance(info, msgspec.inspect.StructType)
    return st.builds(struct, **{field.name: of_type(field.type) for field in info.fields})


def plausible(struct: type[Any], likely: Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """Build instances that lead deep into a receiver: fields by name from `likely`, all others as small as can be."""
    info = msgspec.inspect.type_info(struct)
    assert isinstance(info, msgspec.inspect.StructType)
    return st.builds(
        struct,
        **{
            field.name: likely[field.name] if field.name in likely else st.just(_smallest_of(field.type))
            for field in info.fields
            if field.required or field.name in likely
        },
    )


def weighted(*shares: tuple[int, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """Choose among strategies by weight; `one_of` takes a repeated one for the same and flattens what is nested."""
    strategies = [strategy for weight, strategy in shares for _ in range(weight)]
    return st.sampled_from(range(len(strategies))).flatmap(strategies.__getitem__)


messages: st.SearchStrategy[Any] = st.one_of([of_struct(struct) for struct in ALL_MESSAGES])


def smallest(struct: type[Any]) -> Any:
    """Build the smallest instance of a struct."""
    info = msgspec.inspect.type_info(struct)
    assert isinstance(info, msgspec.inspect.StructType)
    return struct(**{field.name: _smallest_of(field.type) for field in info.fields if field.required})


def _smallest_of(info: msgspec.inspect.Type) -> Any:
    match info:
        case msgspec.inspect.IntType():
            return info.ge or 0
        case msgspec.inspect.StrType():
            return "a" * (info.min_length or 0)
        case msgspec.inspect.BytesType():
            return b"a" * (info.min_length or 0)
        case msgspec.inspect.BoolType():
            return False
        case msgspec.inspect.LiteralType():
            return info.values[0]
        case msgspec.inspect.UnionType():
            return None
        case msgspec.inspect.ListType():
            return []
        case msgspec.inspect.DictType():
            return {}
        case msgspec.inspect.StructType():
            return smallest(info.cls)
        case _:
            raise TypeError(f"no example for {info}")
