"""LangChain and `refllm serve`: python langchain_client.py http://127.0.0.1:8177"""

import json
import sys

from langchain_core.exceptions import ModelInvalidRequestError, ModelNotFoundError
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from openai import BadRequestError

server = {"base_url": f"{sys.argv[1]}/v1", "api_key": "none"}
got = {}

chat = ChatOpenAI(model="tiny-chat", **server)
got["chat"] = chat.invoke("Hello!").content
got["stream"] = [part.content for part in chat.stream("Hello!")]

# It sends a temperature of 0.7, and 0 for both penalties of OpenAI's.
got["completion"] = OpenAI(model="tiny-chat", **server).invoke("Once upon a time")

# check_embedding_ctx_length=False sends text; otherwise ids of OpenAI's tokenizer are sent.
embedder = OpenAIEmbeddings(model="tiny-embed", check_embedding_ctx_length=False, **server)
got["embeddings"] = embedder.embed_documents(["A cat.", "A dog."])
got["query"] = embedder.embed_query("A cat.")

try:
    ChatOpenAI(model="absent", **server).invoke("Hello!")
except ModelNotFoundError as error:
    got["unknown model"] = str(error)

try:
    chat.invoke("word " * 1000)
except ModelInvalidRequestError as error:
    got["too long"] = str(error)

weather = {"type": "function", "function": {"name": "weather", "parameters": {}}}
try:
    chat.bind_tools([weather]).invoke("Hello!")
except ModelInvalidRequestError as error:
    got["refused"] = str(error)

got["ids of OpenAI's"] = []
for text in ("A cat.", "#1$"):
    try:
        OpenAIEmbeddings(model="tiny-embed", **server).embed_query(text)
    except BadRequestError as error:
        got["ids of OpenAI's"].append(str(error))

print(json.dumps(got))
