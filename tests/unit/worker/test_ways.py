"""What an engine leaves out, one thing after the other, and how a process tells that to the one after it."""

from __future__ import annotations

import pytest

from zmqrt.worker.engines.generate.ways import Way, after, first, left_out


@pytest.mark.parametrize(
    ("used", "may_leave_path", "names"),
    [
        (Way("fused"), True, ["Triton's kernels", "CUDA graphs", "the path 'fused'", "flash attention"]),
        (Way("fused"), False, ["Triton's kernels", "CUDA graphs", "flash attention"]),
        (Way("modules", has_kernels=False), True, ["CUDA graphs", "flash attention"]),
        (Way("fused", has_kernels=False, has_graphs=False, has_flash=False), True, ["the path 'fused'"]),
        (Way("modules", has_kernels=False, has_graphs=False, has_flash=False), True, []),
    ],
)
def test_one_thing_goes_after_the_other(used: Way, may_leave_path: bool, names: list[str]) -> None:  # noqa: FBT001
    """What was not in use is not left out, and what was is not taken in again."""
    found: list[str] = []
    while (following := after(used, may_leave_path=may_leave_path)) is not None:
        used, what = following
        found.append(what)

    assert found == names


def test_a_process_begins_where_the_one_before_it_ended() -> None:
    """Whatever was left out; what an operator has asked for stays."""
    way: Way | None = Way("fused")
    while way is not None:
        assert first("auto", left_out(way), has_kernels=True, has_graphs=True) == (
            way if way.path == "modules" else Way("auto", way.has_kernels, way.has_graphs, way.has_flash)
        )
        following = after(way, may_leave_path=True)
        way = following[0] if following else None
    assert first("fused", "path", has_kernels=False, has_graphs=True) == Way("fused", has_kernels=False)
