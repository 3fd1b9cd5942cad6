"""What the driver of a device tells about it at the moment. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Facts:
    """None = the driver does not tell. `busy_percent` is the share of the last moment in which a kernel ran."""

    memory_used_bytes: int | None = None
    busy_percent: int | None = None
    celsius: int | None = None


NO_FACTS: Final = Facts()
