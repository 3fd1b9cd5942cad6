"""What a node can do beyond the task of its service, by name: so that each request goes where it can be served.

A node says in its offer what it can do (`capabilities`), and a client says in REQUEST's ext what a request needs, since
a broker reads no bodies. Names that a broker does not know are compared like any other: a new one needs no new broker.
Engine processes import this, so it imports no messages.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .messages import Ext, ServiceOffer

EXT_KEY: Final = "needs"
"""In REQUEST's ext: the names of what the request needs, separated by commas."""
LOGPROBS: Final = "logprobs"
TOKEN_IDS: Final = "token_ids"  # noqa: S105 - the name of a field
"""It takes token ids of the model's own tokenizer in place of a text."""
BEFORE: Final = frozenset({LOGPROBS, TOKEN_IDS})
"""What nodes could do before they said what they can."""
GRAMMAR: Final = "grammar"
"""It keeps to a JSON schema, a regular expression or a Lark grammar."""
EXTRA: Final = "extra"
"""It passes fields of another server's API on to that server."""
TOOLS: Final = "tools"
"""It tells its model of tools, and what was called before; it forces calls only where it has GRAMMAR as well."""
RENDERING: Final = "rendering"
"""It obeys what is said of how the model's chat template renders a conversation."""
NOTHING: Final = frozenset[str]()


def needs_in(ext: Ext) -> frozenset[str]:
    """Read what a request needs."""
    words = ext.get(EXT_KEY)
    return _names_in(words) if type(words) is str else NOTHING


def abilities_of(offer: ServiceOffer) -> frozenset[str]:
    """Return what a node can do for an offer of it."""
    return BEFORE if offer.capabilities is None else frozenset(offer.capabilities)


def shared_by(abilities: Iterable[frozenset[str]]) -> frozenset[str]:
    """Return what all of some nodes or engines can do; nothing if there are none."""
    each = iter(abilities)
    return reduce(lambda some, others: some & others, each, next(each, NOTHING))


@lru_cache(maxsize=256)
def _names_in(words: str) -> frozenset[str]:
    """Take names apart; the same few come again and again."""
    return frozenset(filter(None, words.split(",")))
