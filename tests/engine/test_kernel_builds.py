"""Every GPU kernel compiles for the cards that people have, without one here: within their memory, and nothing spills.

`make kernels` runs this and shows what each takes. How fast they are only a GPU says (`bench/gpu_first_run.py`).
"""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from support.kernel_builds import ARCHITECTURES, build, defined_kernels, launches

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.mark.parametrize("name", launches())
def test_a_kernel_compiles_for_every_card(name: str) -> None:
    """Registers suffice, and so does the shared memory of the smallest."""
    builds = [made for architecture in ARCHITECTURES for made in build(name, launches()[name], architecture)]

    print(*builds, sep="\n")
    assert [made for made in builds if made.spilled_bytes] == []
    assert [made for made in builds if made.shared_bytes > ARCHITECTURES[made.architecture] * 1024] == []


def test_no_kernel_is_left_out() -> None:
    """Whatever can be launched stands in the list."""
    launched = {made.kernel for name, launch in launches().items() for made in build(name, launch, 90)}

    assert defined_kernels() - launched == set()
