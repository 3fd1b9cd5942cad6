"""Every bound of the wire in one place, each with the reason for its number.

A receiver refuses what is over a bound; a sender checks first, so that nobody is cut off for a mistake made here.
"""

from __future__ import annotations

from typing import Final

MAX_INT: Final = 2**63 - 1
"""Largest integer in any header: msgspec refuses larger bounds, and JSON edges take any int64."""
MAX_HEADER_BYTES: Final = 1 << 20
"""One F0. A pass that has more to say sends several envelopes, so one peer cannot hold the loop for long."""
MAX_MESSAGES: Final = 1024
"""Messages in one envelope: about 2 ms of typed decoding."""
MAX_LARGE_BODIES: Final = 8
"""Frames F1..F8: a peer that sends more is malformed, and the reader stops counting."""
INLINE_BODY_BYTES: Final = 32 << 10
"""Bodies from this size travel as a frame of their own: below it copying is cheaper than reference counting."""
MAX_FRAME_BYTES: Final = 16 << 20
"""One ZeroMQ frame (ZMQ_MAXMSGSIZE): libzmq cuts the connection above it."""
MAX_ENVELOPE_BYTES: Final = 32 << 20
"""All frames of one envelope."""
MAX_SERVICE_CHARS: Final = 128
MAX_TEXT_CHARS: Final = 512
"""Words for people inside a header (errors, reasons): a sentence, never a traceback."""
MAX_NAME_CHARS: Final = 128
MAX_EXT_KEYS: Final = 16
MAX_EXT_KEY_CHARS: Final = 64
MAX_EXT_VALUE_CHARS: Final = 256
MAX_SERVICES: Final = 256
"""Services one node may offer."""
MAX_CAPABILITIES: Final = 16
MAX_CAPABILITY_CHARS: Final = 32
"""Five times what a service can be able to do today; 16,384 offers of that take a broker 40 MiB."""
MAX_DEVICES: Final = 64
"""Devices of one node: four times the largest GPU server."""
MAX_FLEET_SERVICES: Final = 1024
"""Names of services a broker knows at once, whoever told them: a status still fits a frame, and memory a few MiB."""
MAX_FLEET_PARTS: Final = 16_384
"""Nodes, their devices and what they offer, together: a thousand servers of eight devices, and half as much again."""
MAX_AWAITED_SERVICES: Final = 64
"""Names that only clients have said, waited for while a broker is new: what a fleet has and a typo or two."""
MAX_BUCKETS: Final = 64
"""Counts of one histogram: those of histogram.py, and room for finer ones."""
MAX_HELD: Final = 4096
"""Leases a returning worker may claim: NODE_MAX_CAPACITY is far below. A broker gives no node more than that."""
MAX_ANSWER_TOKENS: Final = 1 << 24
"""Tokens of one prompt or answer, where its node tells no context: what says more is mistaken."""
MAX_GRAMMAR_CHARS: Final = 256 << 10
"""A JSON schema as text: the largest in public collections have 100,000."""
MAX_TOOLS: Final = 128
"""Of one request, and calls of one turn; as many as OpenAI takes."""
MAX_TEMPLATE_NAMES: Final = 64
MAX_TEMPLATE_VALUES: Final = 4096
"""In what is given to a chat template, counted at all depths: a few documents have hundreds."""
MAX_TEMPLATE_DEPTH: Final = 16
MAX_BROKERS: Final = 16
MAX_ENDPOINT_CHARS: Final = 256
MAX_TTL_MS: Final = 86_400_000
"""One day: longer waits are a mistake in units."""
MAX_RESUME_BYTES: Final = 1 << 20
"""Delivered prefix kept for a resume; above it a lost worker ends the stream (502 with resume_n)."""

MAX_OUTSTANDING: Final = 256
"""Requests one client connection may have unanswered (WELCOME.max_out)."""
MAX_OUTSTANDING_BRIDGE: Final = 4096
WINDOW_BYTES: Final = 8 << 20
"""Unconsumed PARTIAL and FINAL bytes per client session."""
STREAM_BUFFER_BYTES: Final = 1 << 20
"""Unread bytes of one stream in the client library, and unsent ones at the broker."""
QUEUE_REQUESTS: Final = 1024
QUEUE_BYTES: Final = 64 << 20
"""Waiting per service; beyond it 429 with a computed retry-after."""
MAX_HELD_BYTES: Final = 1 << 30
"""Bodies, journals and outcomes of a broker together; beyond it 429."""
MAX_ATTEMPTS: Final = 5
MAX_CRASHES: Final = 3
"""A request that kills this many engines without a new unit is poison."""
MAX_SESSIONS: Final = 20_000
MAX_STRIKES: Final = 8
STRIKE_WINDOW_S: Final = 10.0
STRIKE_SILENCE_S: Final = 60.0
"""A session closed for strikes is ignored this long."""

BODY_MAX_STR_BYTES: Final = 16 << 20
BODY_MAX_BIN_BYTES: Final = 16 << 20
BODY_MAX_ARRAY: Final = 1 << 20
BODY_MAX_MAP: Final = 4096
