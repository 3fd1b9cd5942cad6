"""The client library: the same verbs for plain threads and for asyncio, over ZRT/1.

    from zmqrt.client import Client

    with Client("tcp://127.0.0.1:7555") as client:
        print(client.infer("What is the capital of France?").text)
        with client.stream("Tell me a story", max_tokens=200) as stream:
            for chunk in stream:
                print(chunk.text, end="", flush=True)

It needs no HTTP stack, no torch and no compiler, and it never imports broker or worker.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .public import *  # noqa: F403 - each name once: there
else:  # or a checker would take every misspelt name for one of ours

    def __getattr__(name: str) -> object:
        """Import the library when a name of it is asked for: without that `zmqrt --help` takes three times as long."""
        if name[0].isupper() or name in ("errors", "__all__"):  # else it is a module of this package, or nothing
            return getattr(import_module(f"{__name__}.public"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
