"""openai-agents as its users write it, over chat completions and over Responses. The argument is the bridge."""

import asyncio
import json
import sys

from agents import (
    Agent,
    Model,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

set_tracing_disabled(disabled=True)
client = AsyncOpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none")
asked: list[str] = []


@function_tool
def weather(city: str) -> str:
    """Tell how the weather is in a city."""
    asked.append(city)
    return "dry"


async def answers(model: Model) -> list[str]:
    """Ask whole and streamed."""
    agent = Agent(name="Weatherman", instructions="Be brief.", model=model, tools=[weather])
    whole = await Runner.run(agent, "Rain?")
    streamed = Runner.run_streamed(agent, "Rain?")
    async for _event in streamed.stream_events():
        pass
    return [whole.final_output, streamed.final_output]


async def main() -> None:
    """Ask by both APIs, and print what came of it."""
    chats = await answers(OpenAIChatCompletionsModel(model="mock", openai_client=client))
    responses = await answers(OpenAIResponsesModel(model="mock", openai_client=client))
    print(json.dumps({"answers": [*chats, *responses], "asked": asked}))


asyncio.run(main())
