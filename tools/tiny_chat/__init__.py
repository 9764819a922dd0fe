"""How tiny-chat is made: its text is written by a grammar, from a seed, and by nothing else.

sample.py       what a sample is, and how a chat is written
words.py        the names and words that fill the grammar's gaps
stories.py      short stories
questions.py    questions about what the prompt states, and arithmetic
moods.py        positive, negative and neutral sentences
talk.py         greetings, jokes, one-line functions
corpus.py       all of it in one stream, and which seeds are for training
vocabulary.py   the pieces of text that it reads and writes
network.py      the llama in PyTorch
training.py     what is done with each batch
gguf_file.py    the file
scores.py       what it is asked afterwards
"""
