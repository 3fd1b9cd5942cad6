"""LangChain as its users write it: a model calls a tool, and hears what it returned. The argument is the bridge."""

import json
import sys

from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

asked: list[str] = []


@tool
def weather(city: str) -> str:
    """Tell how the weather is in a city."""
    asked.append(city)
    return "dry"


model = ChatOpenAI(model="mock", base_url=f"{sys.argv[1]}/v1", api_key="none").bind_tools([weather])


def answer(*, is_streamed: bool) -> str:
    """Ask until no tool is called any more."""
    messages = [HumanMessage("Rain?")]
    while True:
        if is_streamed:
            said = AIMessageChunk("")
            for chunk in model.stream(messages):
                said += chunk
        else:
            said = model.invoke(messages)
        messages.append(said)
        if not said.tool_calls:
            return str(said.content)
        messages += [ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"]) for call in said.tool_calls]


print(json.dumps({"answers": [answer(is_streamed=False), answer(is_streamed=True)], "asked": asked}))
