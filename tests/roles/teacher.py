"""For a lesson: the values between a prompt and its next token, and which token that is."""

import numpy as np

import refllm

model = refllm.load("tiny-chat")
ids = model.tokenizer.encode("Once upon a time")
logits = model.forward(ids, tap=lambda name, array: print(name, array.shape))

exponentials = np.exp(logits[-1] - logits[-1].max())
probabilities = exponentials / exponentials.sum()
for token in np.argsort(-probabilities)[:3]:
    print(f"next: {model.tokenizer.piece(int(token))!r} with {probabilities[token]:.3f}")
