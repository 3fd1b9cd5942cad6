"""instructor as its users write it: an answer that is an object, by a call of a tool. The argument is the bridge."""

import json
import sys
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel


class Weather(BaseModel):
    """How the weather is in a city."""

    city: Literal["Bern", "Zürich"]
    is_dry: bool


client = instructor.from_openai(OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none"), mode=instructor.Mode.TOOLS)
messages = [{"role": "user", "content": "Rain in Zürich?"}]
whole = client.chat.completions.create(model="mock", messages=messages, response_model=Weather, max_tokens=200)
*_, streamed = client.chat.completions.create_partial(
    model="mock", messages=messages, response_model=Weather, max_tokens=200
)
print(json.dumps({"answers": [whole.city, streamed.city], "asked": [whole.is_dry, streamed.is_dry]}))
