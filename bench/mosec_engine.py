"""A worker process of mosec that answers at once: `python mosec_engine.py --address 127.0.0.1 --port PORT`.

Run by the Python that has mosec, which reads the flags itself.
"""

# ruff: noqa: ANN001, ANN201
# mypy: ignore-errors
# pyright: basic, reportMissingImports=false

from __future__ import annotations

from mosec import Server, Worker


class Engine(Worker):
    """Takes a request at a time."""

    def forward(self, data):
        """Answer."""
        return {"api_version": "v1", "text": "x" * data["max_tokens"], "request_id": "r"}


if __name__ == "__main__":
    server = Server()
    server.append_worker(Engine, num=1)
    server.run()
