"""Accounting: every tensor and every key of a model is used, irrelevant by a table, or refused.

A reference that computes another model than the files describe is worse than none. Each reader of
a file therefore says what it read, and what is left over is looked up in the tables of this folder.

    ledger.py          the ledger: one entry for each tensor and key, and what becomes of it
    keys.py            the values of a file by key: each read is checked and recorded
    tensors.py         tensors that no network needs, and tensors that name another kind of model
    gguf_keys.py       GGUF metadata of a llama, and of any file
    json_keys.py       config.json of a llama, and of any model
    bert_keys.py       config.json of BERT's family, and GGUF metadata under "bert."
    bert_tensors.py    what is stored of BERT's family and an embedding does not use
    sentence_keys.py   modules.json, the folders it names, and sentence-transformers' other files
    chat_templates.py  templates that chats do not use

`refllm models show MODEL --accounting` prints the ledger of a model.
"""
