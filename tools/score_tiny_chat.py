"""Scores tiny-chat on questions that it has not seen: `just score-tiny`.

    python -m tools.score_tiny_chat FILE.gguf [--n N]

Exits with 1 where a score is below what the model card promises.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from refllm.models.load import LlamaModel, load
from tools.tiny_chat.plan import Plan
from tools.tiny_chat.scores import ASKED, PARAMETERS, questions_of_training, scores

# More than a training of the default length reads.
SAMPLES_OF_TRAINING = 400_000


def main() -> int:
    """0 where every score is as promised, 1 where one is not."""
    parser = argparse.ArgumentParser(description="Scores tiny-chat on unseen questions.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--n", type=int, default=200, help="questions of each kind")
    parser.add_argument("--seed", type=int, default=20_000)
    arguments = parser.parse_args()
    model = load(arguments.file)
    if not isinstance(model, LlamaModel):
        raise TypeError(f"{arguments.file} is not a llama")
    known = questions_of_training(Plan().seed, SAMPLES_OF_TRAINING)
    is_good = True
    for how, params in PARAMETERS.items():
        print(f"{how}:")
        for score in scores(model, params, n=arguments.n, seed=arguments.seed, known=known):
            asked = ASKED.get(score.name)
            is_enough = asked is None or score.value >= asked
            is_good &= is_enough
            wanted = "" if asked is None else f", asked {asked:g}"
            mark = "" if is_enough else "  MISSED"
            print(f"  {score}{wanted}{mark}")
    return 0 if is_good else 1


if __name__ == "__main__":
    raise SystemExit(main())
