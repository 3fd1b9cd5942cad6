"""Run another role so that it ends with us: `python -m zmqrt.worker.leashed PARENT_PID MODULE ARGUMENTS…`.

A broker that outlived the worker which brought it would hold its ports, and nobody would look for it.
"""

from __future__ import annotations

import runpy
import sys

from .engines.parentage import end_with_parent


def main() -> None:
    """Take the leash, then become the role."""
    parent, module, *arguments = sys.argv[1:]
    end_with_parent(int(parent))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
