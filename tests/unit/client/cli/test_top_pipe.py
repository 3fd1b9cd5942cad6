"""What `zmqrt top` says to a pipe before a broker has answered."""

from __future__ import annotations

import pytest

from zmqrt.client.cli import cmd_top
from zmqrt.client.config import ClientSettings
from zmqrt.client.top.brokers import WatchedBrokers
from zmqrt.protocol.errors import ConnectError


def test_a_broker_that_is_late_with_its_first_answer_is_named() -> None:
    """One that greets and is then slow has no problem yet that anybody knows of."""
    brokers = WatchedBrokers(ClientSettings(broker=("tcp://127.0.0.1:1",)), waits=True)

    with pytest.raises(ConnectError, match=r"tcp://127\.0\.0\.1:1: it has not answered yet"):
        cmd_top._print(brokers, goes_on=False, as_json=False)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - a pipe's part of the command
