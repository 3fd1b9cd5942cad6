"""Classes of priority are words for numbers."""

from __future__ import annotations

import pytest

from zmqrt.protocol.priority import CLASSES, NUMBERS, class_of, number_of


def test_words_stand_for_numbers_and_numbers_for_themselves() -> None:
    """The first class is served first."""
    numbers = [number_of(word) for word in CLASSES]

    assert numbers == sorted(numbers, reverse=True) == list(NUMBERS.values())
    assert number_of(-7) == -7
    assert class_of("vip") is None
    with pytest.raises(ValueError, match="interactive, default, bulk, or a number"):
        number_of("vip")
