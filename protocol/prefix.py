"""Hashes the beginning of a prompt, so that a broker that never reads prompts can recognise those that begin alike.

A node that has computed a prompt keeps its keys and values for a while, and need not compute the same beginning again.
So a request carries hashes of the first 256, 1,024 and 4,096 bytes of its prompt, those that it has, and a broker
prefers the node that had the longest one lately, among nodes about equally busy. A hint: nothing depends on it.
"""

from __future__ import annotations

import hashlib
from array import array
from typing import Final

from .tasks import Generate, Task

EXT_KEY: Final = "prefix"
BORDERS: Final = (256, 1024, 4096)
_HASH_BYTES: Final = 8


def prefix_hint(task: Task) -> str | None:
    """Return the value of `ext["prefix"]`: hashes in hex, the shortest prefix first, or None for a short prompt.

    The bytes are those of the prompt in UTF-8; of messages role and content of each, with a zero byte behind either; of
    token ids four bytes each. Each hash is BLAKE2b (RFC 7693) with 8 bytes.
    """
    start = _start_of(task) if isinstance(task, Generate) else b""
    if len(start) < BORDERS[0]:
        return None
    hashes = [hashlib.blake2b(start[:at], digest_size=_HASH_BYTES).hexdigest() for at in BORDERS if len(start) >= at]
    return ",".join(hashes)


def _start_of(task: Generate) -> bytes:
    """Return the beginning of the prompt, as much as counts."""
    most = BORDERS[-1]
    if task.prompt is not None:
        return task.prompt[:most].encode("utf-8", "surrogatepass")[:most]
    if task.token_ids is not None:
        return array("I", task.token_ids[: most // 4]).tobytes()
    start = b""
    for message in task.messages or ():
        start += f"{message.role}\0{message.content[:most]}\0".encode("utf-8", "surrogatepass")
        if len(start) >= most:
            break
    return start
