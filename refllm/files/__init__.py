"""Files: how refllm reads and writes them safely, and what becomes of each key and tensor in them.

    reading.py     a model's file: bytes, text or JSON, each within a limit; start here
    whole.py       a file or folder that appears whole or not at all
    private.py     a cache that no other user could have written
    accounting/    a model's keys and tensors: read, irrelevant by a table, or refused

Imports `refllm.errors` alone; every other package may import this one.
"""
