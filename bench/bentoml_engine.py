"""A service of BentoML that answers at once, in one worker: `python bentoml_engine.py PORT`.

Run by the Python that has BentoML.
"""

# mypy: ignore-errors
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import os
import sys
from pathlib import Path

import bentoml


@bentoml.service(workers=1, traffic={"timeout": 60})
class Engine:
    """Takes a request at a time."""

    @bentoml.api(route="/infer")
    def infer(self, prompt: str, max_tokens: int) -> dict:  # noqa: ARG002 - its length is what counts
        """Answer."""
        return {"api_version": "v1", "text": "x" * max_tokens, "request_id": "r"}


if __name__ == "__main__":
    os.chdir(Path(__file__).parent)
    program = Path(sys.executable).with_name("bentoml")
    words = ("serve", "bentoml_engine:Engine", "--host", "127.0.0.1", "--port", sys.argv[1])
    os.execv(program, (str(program), *words))  # noqa: S606 - it needs none
