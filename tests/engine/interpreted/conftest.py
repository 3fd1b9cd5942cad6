"""Tests of kernels in Triton's interpreter, which a process has for all of its kernels or for none.

Triton reads TRITON_INTERPRET where a kernel is defined. A process with tests of a real GPU must never have it, so
nothing here is collected without it: `test_interpreted.py` gives these tests a process of their own, as `make kernels`
does.
"""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
