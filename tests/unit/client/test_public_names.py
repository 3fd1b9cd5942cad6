"""The library's public names: all of them there, none loaded before it is asked for."""

import subprocess
import sys

import pytest

from zmqrt import client
from zmqrt.client import public


@pytest.mark.parametrize("name", public.__all__)
def test_every_public_name_is_there(name: str) -> None:
    """Whatever is asked for first."""
    assert getattr(client, name) is not None


def test_another_name_is_an_attribute_error() -> None:
    """As of any module."""
    with pytest.raises(AttributeError, match="has no attribute 'Server'"):
        client.Server  # type: ignore[attr-defined]  # noqa: B018 # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnusedExpression]


def test_importing_the_package_loads_next_to_nothing() -> None:
    """`zmqrt --help` and every supervised process pay for it."""
    code = "import sys, zmqrt.client; print([n for n in ('zmq', 'asyncio', 'msgspec', 'rich') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout == "[]\n"
