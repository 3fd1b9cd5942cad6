"""litellm as its users write it: the same question over chats and Anthropic's Messages. The argument is the bridge."""

import json
import sys

import litellm

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell how the weather is in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
asked: list[str] = []


def answer(model: str, base_url: str, *, is_streamed: bool) -> str:
    """Ask until no tool is called any more."""
    messages = [{"role": "user", "content": "Rain?"}]
    while True:
        said = litellm.completion(
            model=model, api_base=base_url, api_key="none", messages=messages, tools=[TOOL], stream=is_streamed
        )
        if is_streamed:
            said = litellm.stream_chunk_builder(list(said), messages=messages)
        message = said.choices[0].message
        messages.append(message.model_dump())
        if not message.tool_calls:
            return message.content
        for call in message.tool_calls:
            asked.append(json.loads(call.function.arguments)["city"])
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "dry"})


ways = (("openai/mock", f"{sys.argv[1]}/v1"), ("anthropic/mock", sys.argv[1]))
found = [answer(model, url, is_streamed=streamed) for model, url in ways for streamed in (False, True)]
print(json.dumps({"answers": found, "asked": asked}))
