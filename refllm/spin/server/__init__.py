"""`refllm serve`: refllm's engine behind HTTP, for Spin applications and for OpenAI's clients.

app.py          the application: routes, errors, guards, put together
spin_routes.py  POST /infer, POST /embed: what Spin's `remote_http` speaks
openai_*.py     /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models
guards.py       who may ask, and how much: the token, the size of a body
errors.py       what an error looks like, for each of the two protocols
limits.py       what one request may cost
service.py      from a route's coroutine to the worker's thread and back
worker.py       the one thread that computes, for all requests together
metrics.py      what is counted
run.py          the port, and how the process ends
"""
