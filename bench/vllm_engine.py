"""vLLM as a contestant of `bench_engine.py`: `python vllm_engine.py MODEL SLOTS THREADS`, in an environment of its own.

It reads one order a line (requests, and how many at a time) and answers with a line of tokens made and seconds of CPU.
Its engine is in this process, and computes call by call: compiled it needs minutes to start.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Serve orders until there are no more."""
    model, slots, threads = sys.argv[1:]
    os.environ |= {
        "OMP_NUM_THREADS": threads,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_TARGET_DEVICE": "cpu",
    }
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what it prints is no answer
    vllm: Any = importlib.import_module("vllm")
    engine = vllm.LLM(
        model=model,
        dtype="float32",
        max_model_len=512,
        max_num_seqs=int(slots),
        enable_prefix_caching=False,
        enforce_eager=True,
        skip_tokenizer_init=True,
    )
    print(f"ready vllm {vllm.__version__}", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_run(vllm, engine.llm_engine, **json.loads(line))), file=answers, flush=True)


def _run(vllm: Any, engine: Any, requests: list[tuple[list[int], int]], at_once: int) -> tuple[int, float]:  # noqa: ANN401
    """Keep so many requests in the engine until all are done; return the tokens made and seconds of CPU."""
    waiting, running, made = list(reversed(requests)), 0, 0
    began = time.process_time()
    while waiting or running:
        while waiting and running < at_once:
            ids, tokens = waiting.pop()
            parameters = vllm.SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True, detokenize=False)
            engine.add_request(str(len(waiting)), vllm.TokensPrompt(prompt_token_ids=ids), parameters)
            running += 1
        for output in engine.step():
            if output.finished:
                running -= 1
                made += len(output.outputs[0].token_ids)
    return made, time.process_time() - began


if __name__ == "__main__":
    main()
