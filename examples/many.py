"""Ask many things at once with asyncio: one connection carries them all, and the fleet batches them."""

import asyncio
import os

from zmqrt.client import AsyncClient


async def main() -> None:
    """Ask a hundred questions together."""
    async with AsyncClient(os.environ.get("ZMQRT_BROKER", "tcp://127.0.0.1:7555")) as client:
        questions = [f"What is {number} plus {number}?" for number in range(100)]
        answers = await asyncio.gather(*(client.infer(question, max_tokens=8) for question in questions))
        for question, answer in zip(questions[:3], answers, strict=False):
            print(f"{question} {answer.text!r}")
        print(f"{len(answers)} answers")


asyncio.run(main())
