"""Trains tiny-chat: its text, its vocabulary, its weights.

    python -m tools.train_tiny_chat tiny-chat.gguf [--earlier FILE] [--steps N] [--seed N]

The weights begin as those of an earlier tiny-chat, or at random without one. The card says as which
the model that ships with refllm began.

PyTorch is needed here and nowhere else. The text depends on the seed alone; the weights depend on
PyTorch, the CPU and the number of threads as well, so another machine makes a model of the same
quality and not of the same bits.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import torch

from tools.tiny_chat.corpus import samples
from tools.tiny_chat.gguf_file import write_tiny_chat
from tools.tiny_chat.network import Shape
from tools.tiny_chat.plan import Plan
from tools.tiny_chat.training import trained
from tools.tiny_chat.vocabulary import learned, processor_of

N_TEXTS = 20_000  # that the vocabulary is learned from


def main() -> None:
    """Train, and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file", type=Path, help="the GGUF file to write")
    parser.add_argument("--earlier", type=Path, help="the GGUF file of the model to begin as")
    parser.add_argument("--steps", type=int, default=Plan().steps)
    parser.add_argument("--seed", type=int, default=Plan().seed)
    arguments = parser.parse_args()
    shape, plan = Shape(), Plan(seed=arguments.seed, steps=arguments.steps)
    texts = (sample.text for sample in islice(samples(plan.seed), N_TEXTS))
    vocabulary = learned(texts, shape.n_vocab)
    network = trained(shape, plan, processor_of(vocabulary), earlier=arguments.earlier)
    tensors = {name: parameter.detach().numpy() for name, parameter in network.named_parameters()}
    description = f"learned from refllm's own stories and questions, seed {plan.seed}, "
    description += f"{plan.steps} steps, PyTorch {torch.__version__}"
    write_tiny_chat(arguments.file, shape, tensors, vocabulary, description=description)
    print(f"{arguments.file}: {arguments.file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
