"""What refllm's Python API answers to the questions of the clients beside this file, as JSON."""

import json

import refllm


def text(prompt: str, **params: float) -> str:
    return refllm.infer_with_options("tiny-chat", prompt, refllm.InferencingParams(**params)).text


vectors = refllm.generate_embeddings("tiny-embed", ["A cat.", "A dog."]).embeddings
hello = "[INST] Hello! [/INST]"
story = "Once upon a time"
openai_s = {
    "chat": text(hello).removeprefix(" "),
    "completion": text(story),
    "embeddings": vectors,
}
expected = {
    "openai": openai_s,
    "litellm": openai_s,
    "langchain": {
        **openai_s,
        "completion": text(story, temperature=0.7, top_p=1.0, max_tokens=256, repeat_penalty=1.0),
        "query": vectors[0],
    },
    "llama_index": {
        "chat": text(hello, temperature=0.1).removeprefix(" "),
        "completion": text(story, temperature=0.1),
        "embeddings": vectors,
        "query": vectors[0],
    },
}
print(json.dumps({"file": refllm.__file__, **expected}))
