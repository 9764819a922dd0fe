"""How tiny-chat is made: its text is written by a grammar, from a seed, and by nothing else.

sample.py       what a sample is, and how a chat is written
words.py        the names and words that fill the grammar's gaps
stories.py      short stories
grammar.py      how a template's choices are drawn
plots.py        the rules by which stories are written
requests.py     how people ask for a joke, a story or a function
questions.py    questions about what the prompt states, and arithmetic
moods.py        positive, negative and neutral sentences
talk.py         greetings, jokes, one-line functions, and what it cannot know
functions.py    the functions
corpus.py       all of it in one stream, and which seeds are for training
vocabulary.py   the pieces of text that it reads and writes
network.py      the llama in PyTorch
induction.py    what it begins with, drawn by hand
earlier.py      or with what an earlier model learned
plan.py         how long and how fast it learns
training.py     what is done with each batch
gguf_file.py    the file
unseen.py       requests that training never had, and the words of their answers
scores.py       what it is asked afterwards
"""
