"""pydantic-ai as its users write it: an agent with one tool, asked whole and streamed. The argument is the bridge."""

import asyncio
import json
import sys

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=f"{sys.argv[1]}/v1", api_key="none")
agent = Agent(OpenAIChatModel("mock", provider=provider), system_prompt="Be brief.")
asked: list[str] = []


@agent.tool_plain
def weather(city: str) -> str:
    """Tell how the weather is in a city."""
    asked.append(city)
    return "dry"


async def main() -> None:
    """Ask twice, and print what came of it."""
    whole = await agent.run("Rain?")
    async with agent.run_stream("Rain?") as run:
        pieces = [piece async for piece in run.stream_text(delta=True)]
    print(json.dumps({"answers": [whole.output, "".join(pieces)], "asked": asked}))


asyncio.run(main())
