"""Accounting: each tensor and key of a model is used, irrelevant by a table, or refused.

A reference that computes another model than the files describe is worse than none. So a reader
reads values through `keys.py`, which records each read in the ledger of `ledger.py` and looks up
the keys that are left in the tables of the other modules: `gguf_keys.py` and `json_keys.py` (the
network), `tokenizer_keys.py`, `sentence_keys.py` (sentence-transformers), `tensors.py`.
`refllm models show MODEL --accounting` prints a model's ledger. Imports `refllm.errors` alone.
"""
