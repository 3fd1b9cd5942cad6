"""What names the numbers of an engine: a stream that has begun goes on only where they are the same."""

from __future__ import annotations

from pathlib import Path

from support.engines import describe
from zmqrt.worker.engines.factories import revision_of


def test_weights_in_other_bits_are_another_revision() -> None:
    """And in another type; an engine without files has its own name alone."""
    plain = revision_of(describe(Path(), revision="abc"))
    eight, four = (revision_of(describe(Path(), revision="abc", quantize=kind)) for kind in ("int8", "int4"))

    assert (plain, eight, four) == ("abc-float32-generate", "abc-float32-int8-generate", "abc-bfloat16-int4-generate")
    assert revision_of(describe(Path(), revision="abc", dtype="bfloat16")) == "abc-bfloat16-generate"
    assert revision_of(describe(Path(), quantize="int8")) == "generate"
