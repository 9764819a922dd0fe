"""Scores tiny-embed on sentences that it has not seen: `just score-tiny`.

    python -m tools.score_tiny_embed FILE.gguf [--teacher all-minilm-l6-v2]

Exits with 1 where the correlation over all sentences is below what the model card promises.
"""

from __future__ import annotations

import argparse

from tools.tiny_embed.scores import ASKED, bert_of, scores


def main() -> int:
    """0 where the score is as promised, 1 where it is not."""
    parser = argparse.ArgumentParser(description="Scores tiny-embed on unseen sentences.")
    parser.add_argument("file")
    parser.add_argument("--teacher", default="all-minilm-l6-v2")
    arguments = parser.parse_args()
    all_kinds, *each = scores(bert_of(arguments.file), bert_of(arguments.teacher))
    print("correlation of cosine similarities with the teacher's, over all pairs of sentences")
    mark = "" if all_kinds.correlation >= ASKED else "  MISSED"
    of_all = f"{all_kinds.correlation:.3f} of {all_kinds.n_sentences}"
    print(f"  {all_kinds.name}: {of_all}, asked {ASKED}{mark}")
    for score in each:
        print(f"  {score.name}: {score.correlation:.3f} of {score.n_sentences}")
    return 0 if all_kinds.correlation >= ASKED else 1


if __name__ == "__main__":
    raise SystemExit(main())
