"""litellm and `refllm serve`: python litellm_client.py http://127.0.0.1:8177

LITELLM_LOCAL_MODEL_COST_MAP=True in the environment keeps it from fetching a list of prices.
"""

import json
import sys

import litellm

server = {"api_base": f"{sys.argv[1]}/v1", "api_key": "none"}
hello = [{"role": "user", "content": "Hello!"}]
got = {}

answer = litellm.completion("openai/tiny-chat", messages=hello, **server)
got["chat"] = answer.choices[0].message.content

parts = litellm.completion("openai/tiny-chat", messages=hello, stream=True, **server)
got["stream"] = [part.choices[0].delta.content for part in parts]

answer = litellm.text_completion(
    model="text-completion-openai/tiny-chat", prompt="Once upon a time", **server
)
got["completion"] = answer.choices[0].text

answer = litellm.embedding("openai/tiny-embed", input=["A cat.", "A dog."], **server)
got["embeddings"] = [each["embedding"] for each in answer.data]

try:
    litellm.completion("openai/absent", messages=hello, **server)
except litellm.NotFoundError as error:
    got["unknown model"] = str(error)

long = [{"role": "user", "content": "word " * 1000}]
try:
    litellm.completion("openai/tiny-chat", messages=long, **server)
except litellm.BadRequestError as error:
    got["too long"] = str(error)

weather = {"type": "function", "function": {"name": "weather", "parameters": {}}}
try:
    litellm.completion("openai/tiny-chat", messages=hello, tools=[weather], **server)
except litellm.BadRequestError as error:
    got["refused"] = str(error)

print(json.dumps(got))
