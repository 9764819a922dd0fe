"""How tiny-embed is made: a small BERT that places sentences as all-MiniLM-L6-v2 does.

sentences.py    what it learns from, and what it is measured on
vocabulary.py   its word pieces
network.py      the BERT in PyTorch
training.py     learning to agree with the teacher
gguf_file.py    the file
scores.py       how nearly it agrees with its teacher on sentences that it never saw
"""
