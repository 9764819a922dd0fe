"""`refllm serve`: refllm's engine behind HTTP, for Spin applications and for OpenAI's clients.

app.py          the application: routes, errors, guards, put together
spin_routes.py  POST /infer, POST /embed: what Spin's `remote_http` speaks
openai_*.py     /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models
connections.py  a client's connection: how many there are, and how slow one may be
guards.py       who may ask, and how much: the token, the size of a body
errors.py       what an error looks like, for each of the two protocols
limits.py       what one request may cost
service.py      from a route's coroutine to the worker's thread and back
worker.py       the one thread that computes, for all requests together
jobs.py         what it works on: a text, or embeddings
metrics.py      what is counted
run.py          the port, and how the process ends
"""
