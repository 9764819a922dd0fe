"""LlamaIndex and `refllm serve`: python llama_index_client.py http://127.0.0.1:8177"""

import json
import sys

from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from openai import BadRequestError, NotFoundError

server = {"api_base": f"{sys.argv[1]}/v1", "api_key": "none"}
hello = [ChatMessage(role="user", content="Hello!")]
got = {}

# Without is_chat_model=True, chat() sends the messages as one text to /v1/completions.
chat = OpenAILike(model="tiny-chat", is_chat_model=True, **server)
got["chat"] = chat.chat(hello).message.content
got["stream"] = [part.delta for part in chat.stream_chat(hello)]

# It sends a temperature of 0.1 unless it has another.
text = OpenAILike(model="tiny-chat", **server)
got["completion"] = text.complete("Once upon a time").text

embedder = OpenAILikeEmbedding(model_name="tiny-embed", **server)
got["embeddings"] = embedder.get_text_embedding_batch(["A cat.", "A dog."])
got["query"] = embedder.get_query_embedding("A cat.")

try:
    OpenAILike(model="absent", is_chat_model=True, **server).chat(hello)
except NotFoundError as error:
    got["unknown model"] = str(error)

try:
    chat.chat([ChatMessage(role="user", content="word " * 1000)])
except BadRequestError as error:
    got["too long"], got["code"] = str(error), error.code

weather = {"type": "function", "function": {"name": "weather", "parameters": {}}}
try:
    chat.chat(hello, tools=[weather])
except BadRequestError as error:
    got["refused"], got["param"] = str(error), error.param

print(json.dumps(got))
