"""A Spin application behind HTTP.

`application.py` reads spin.toml, with `files.py` for a component's files and `routes.py` for the
component that answers a path. `asgi.py` is the ASGI application that `refllm run` gives to the HTTP
server of `refllm.server`; start there.
"""
