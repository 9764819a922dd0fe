"""`refllm serve`: refllm's engine behind HTTP, for Spin applications and for OpenAI's clients.

Start with app.py, which puts routes, errors and middleware together. A request passes middleware.py
and a route (routes_spin.py, routes_openai.py with openai_*.py), and service.py hands it as a job
(jobs.py) to the one computing thread (worker.py). run.py opens the port and shuts down. It imports
`refllm.spin` and the layers below, and FastAPI, uvicorn and prometheus_client, the extra [server].
"""
