"""Models: from a name to files (find.py), and from files to a network and its tokenizer (load.py).

Start with load.py. loaded.py keeps models within a budget of memory, prompt_cache.py keys and
values of recent prompts, kept_panels.py packed weights on disk; describe.py reads what a model is.
starting_llama.py answers in NumPy (numpy_llama.py) while other processes compile what compiling.py
finds missing. pull/ fetches models, bundled/ has two small ones. It may import `refllm.checkpoints`
and the layers below.
"""
