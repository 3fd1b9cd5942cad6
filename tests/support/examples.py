"""How many examples a property is tried with: under a third of them in `make test`, all in `make test-all`."""

from hypothesis import settings


def examples(count: int) -> int:
    """Return how many to try of those that a property is worth."""
    return max(1, count * settings().max_examples // 100)
