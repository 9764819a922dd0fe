"""Accounting: every tensor and every key of a model is used, irrelevant by a table, or refused.

A reference that computes another model than the files describe is worse than none. Each reader of
a file therefore says what it read, and what is left over is looked up in the tables of this folder.

    ledger.py      the ledger: one entry for each tensor and key, and what becomes of it
    keys.py        the values of a file by key: each read is checked and recorded
    tensors.py     tensors that no network needs, and tensors that name a model of another kind
    gguf_keys.py   GGUF metadata of a llama and a BERT, and of any file
    json_keys.py   config.json and the files beside it
    sentence_keys.py   modules.json, the folders it names, and the files of sentence-transformers

`refllm models show MODEL --accounting` prints the ledger of a model.
"""
