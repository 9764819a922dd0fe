"""The package openai and `refllm serve`: python openai_client.py http://127.0.0.1:8177"""

import json
import sys

from openai import BadRequestError, NotFoundError, OpenAI

client = OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none")
hello = [{"role": "user", "content": "Hello!"}]
got = {}

answer = client.chat.completions.create(model="tiny-chat", messages=hello)
got["chat"] = answer.choices[0].message.content

parts = client.chat.completions.create(model="tiny-chat", messages=hello, stream=True)
got["stream"] = [part.choices[0].delta.content for part in parts]

answer = client.completions.create(model="tiny-chat", prompt="Once upon a time")
got["completion"] = answer.choices[0].text

answer = client.embeddings.create(model="tiny-embed", input=["A cat.", "A dog."])
got["embeddings"] = [each.embedding for each in answer.data]

got["models"] = [model.id for model in client.models.list()]

try:
    client.chat.completions.create(model="absent", messages=hello)
except NotFoundError as error:
    got["unknown model"] = str(error)

long = [{"role": "user", "content": "word " * 1000}]
try:
    client.chat.completions.create(model="tiny-chat", messages=long)
except BadRequestError as error:
    got["too long"], got["code"] = str(error), error.code

weather = {"type": "function", "function": {"name": "weather", "parameters": {}}}
try:
    client.chat.completions.create(model="tiny-chat", messages=hello, tools=[weather])
except BadRequestError as error:
    got["refused"], got["param"] = str(error), error.param

print(json.dumps(got))
