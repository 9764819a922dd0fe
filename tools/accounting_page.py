"""Writes the tables of docs/models.md: what is computed, refused and irrelevant.

    python -m tools.accounting_page

What is refused and irrelevant is read from the tables of `refllm.files.accounting`, which decide
it. What is computed is listed here, as far as possible from the tables of its readers;
`tests/support/peer_values/*.json` name the libraries that its right values come from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from refllm.checkpoints.config import HIDDEN_ACT
from refllm.checkpoints.names import FAMILIES
from refllm.checkpoints.sentence_config import GGUF_POOLING_TYPES, NOT_COMPUTED
from refllm.files.accounting import (
    gguf_keys,
    json_keys,
    sentence_keys,
    tensors,
    tokenizer_keys,
)
from refllm.files.accounting.keys import Known, MustBe
from refllm.pooling import ACTIVATIONS, POOLING_MODES
from refllm.quant import FORMATS
from refllm.tokenizer import GGUF_KINDS, OTHER_KINDS

__all__ = ["BEGIN", "END", "PAGE", "rewritten", "tables"]

PROJECT = Path(__file__).parents[1]
PAGE = PROJECT / "docs" / "models.md"
PEER_VALUES = PROJECT / "tests" / "support" / "peer_values"
BEGIN = "<!-- Begin of what `python -m tools.accounting_page` writes. -->"
END = "<!-- End of what `python -m tools.accounting_page` writes. -->"


@dataclass(frozen=True, slots=True)
class Computed:
    """A row of the first table.

    Attributes:
        what: What a model may have.
        how: Which kinds of it are computed.
        topics: The files of `tests/support/peer_values` that have the right values.
        others: Other sources of right values.
    """

    what: str
    how: str
    topics: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """What a table says of some keys or tensors of one place."""

    place: str
    names: tuple[str, ...]
    ruling: str | MustBe


def tables() -> str:
    """Return everything between the two markers."""
    rules = [*_merged(_rules())]
    one_value = [r for r in rules if isinstance(r.ruling, MustBe) and r.ruling.values]
    refused = [r for r in rules if isinstance(r.ruling, MustBe) and not r.ruling.values]
    irrelevant = [r for r in rules if isinstance(r.ruling, str)]
    return "\n".join(
        [
            "### Computed",
            "",
            *_table(
                ("what", "which", "right values from"),
                ((row.what, row.how, _sources(row)) for row in _computed()),
            ),
            "",
            "### Computed with one value alone",
            "",
            "Any other value is refused by name. A key that is absent, or null in a JSON file,",
            "asks for what is computed.",
            "",
            *_table(
                ("where", "key", "computed", "another value asks for"),
                (
                    (r.place, _code(r.names), _values(r.ruling), r.ruling.otherwise)
                    for r in one_value
                    if isinstance(r.ruling, MustBe)
                ),
            ),
            "",
            "### Refused",
            "",
            "These tensors and keys ask for what is not computed, whatever their value.",
            "",
            *_table(
                ("where", "key or tensor", "what it is, and what to do"),
                (
                    *(
                        (r.place, _code(r.names), r.ruling.otherwise)
                        for r in refused
                        if isinstance(r.ruling, MustBe)
                    ),
                    *_merged_rows("tensors", tensors.OTHER_KINDS),
                    *_merged_rows("GGUF, `tokenizer.ggml.model`", OTHER_KINDS),
                    *_merged_rows(
                        "GGUF, `bert.pooling_type`",
                        {str(number): why for number, why in NOT_COMPUTED.items()},
                    ),
                ),
            ),
            "",
            "### Irrelevant",
            "",
            "No result depends on these tensors and keys. Of a key that a reader uses where it",
            "applies, such as `chat_template`, the table has the reason for the other cases.",
            "",
            *_table(
                ("where", "key or tensor", "why"),
                (
                    (r.place, _code(r.names), r.ruling)
                    for r in irrelevant
                    if isinstance(r.ruling, str)
                ),
            ),
        ]
    )


def rewritten(page: str) -> str:
    """Return the page with the tables of today between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


def _computed() -> Iterator[Computed]:
    llamas = ("llama_folders", "llama_ggufs")
    encoders = ("encoders", "bert_gguf")
    yield Computed(
        "architectures",
        f"GGUF: `llama` and `bert`; config.json's `model_type`: {_code(FAMILIES)}",
        (*llamas, *encoders),
    )
    yield Computed(
        "biases of a llama",
        "of queries, keys, values and attention's output (`attention_bias`), and of the "
        "feed-forward part (`mlp_bias`)",
        llamas,
    )
    yield Computed(
        "queries, keys and values in one tensor",
        "`blk.N.attn_qkv.weight` and `.bias`, of a llama and of a BERT",
        ("llama_ggufs", "bert_gguf"),
    )
    yield Computed(
        "a number for each layer",
        "an array that repeats one number counts as that number",
        ("llama_ggufs", "bert_gguf"),
    )
    yield Computed(
        "a llama's output matrix",
        "its own, or the embedding (`tie_word_embeddings`)",
        ("llama_folders", "llama_ggufs"),
    )
    yield Computed(
        "RoPE",
        "config.json: `default`, `linear`, `dynamic`, `llama3`, `yarn`; GGUF: `none`, `linear`, "
        "`yarn`, and divisors of frequencies in `rope_freqs.weight`",
        llamas,
    )
    yield Computed("activations of an encoder", _code(HIDDEN_ACT), ("encoders",))
    modes = _code(POOLING_MODES)
    numbers = ", ".join(f"{number} ({mode})" for number, mode in GGUF_POOLING_TYPES.items())
    yield Computed(
        "pooling",
        f"{modes}, and several side by side; GGUF's `pooling_type` {numbers}",
        ("pooling", "pooling_gguf"),
    )
    yield Computed(
        "what follows pooling",
        f"`Dense` with torch.nn's {_code(ACTIVATIONS)}, `Normalize`, `Dropout` (nothing is "
        "dropped), `truncate_dim`",
        ("pooling",),
    )
    yield Computed(
        "prompts",
        "`prompts`, `default_prompt_name`, `include_prompt`; the caller's own",
        ("pooling",),
    )
    yield Computed(
        "tokenizers of a folder",
        "the first of tokenizer.json, tokenizer.model, vocab.txt, vocab.json with merges.txt, "
        "sentencepiece.bpe.model; with tokenizer_config.json, special_tokens_map.json and "
        "added_tokens.json",
        ("tokens",),
    )
    yield Computed(
        "tokenizers of a GGUF file", f"`tokenizer.ggml.model` {_code(GGUF_KINDS)}", ("tokens",)
    )
    yield Computed(
        "ends of a generation",
        "named by keys, by generation_config.json or config.json, and known spellings",
        ("tokens",),
    )
    yield Computed(
        "chat templates",
        "GGUF's `tokenizer.chat_template` and `tokenizer.chat_template.NAME`; chat_template.jinja "
        "and additional_chat_templates/, tokenizer_config.json, chat_template.json",
        ("chat_templates",),
    )
    yield Computed(
        "types of weights",
        f"safetensors: F32, F16, BF16; GGUF: {', '.join(FORMATS)}",
        others=("the gguf package and ggml's own C (`tools/golden_quant.py`)",),
    )
    yield Computed(
        "models in several files",
        "shards of safetensors with their index; `-00001-of-0000N.gguf` as llama-gguf-split "
        "writes them, found by the name of any part",
        others=("the same model in one file",),
    )


def _sources(row: Computed) -> str:
    """Return the libraries that made the right values of a row, with their versions."""
    found: dict[str, None] = {}
    for topic in row.topics:
        made_by = json.loads((PEER_VALUES / f"{topic}.json").read_text("utf-8"))["made_by"]
        found |= dict.fromkeys(one for one in made_by if not one.startswith(("torch ", "jinja2 ")))
    return ", ".join([*found, *row.others])


def _rules() -> Iterator[Rule]:
    """Every line of every table of keys and of irrelevant tensors."""
    any_bert = _common(json_keys.BERT_CONFIGS)
    any_bert = {k: rule for k, rule in any_bert.items() if json_keys.ANY_CONFIG.get(k) != rule}
    places: list[tuple[str, Known]] = [
        ("GGUF", gguf_keys.ANY_GGUF),
        ("GGUF, a llama", gguf_keys.LLAMA_GGUF),
        ("GGUF, a BERT", gguf_keys.BERT_GGUF),
        ("GGUF, any vocabulary", tokenizer_keys.GGUF_TOKENIZER),
        ("GGUF, vocabularies llama, gpt2, t5", tokenizer_keys.GGUF_LLAMA_TOKENIZER),
        ("GGUF, vocabulary bert", tokenizer_keys.GGUF_BERT_TOKENIZER),
        ("GGUF, chat templates", tokenizer_keys.GGUF_CHAT_TEMPLATES),
        ("config.json", json_keys.ANY_CONFIG),
        ("config.json, a llama", json_keys.LLAMA_CONFIG),
        ("config.json, `rope_scaling`", json_keys.ROPE_PARAMETERS),
        ("config.json, BERT's family", any_bert),
        *(
            (
                f"config.json, `{family}`",
                {
                    key: rule
                    for key, rule in known.items()
                    if rule not in (any_bert.get(key), json_keys.ANY_CONFIG.get(key))
                },
            )
            for family, known in json_keys.BERT_CONFIGS.items()
        ),
        ("modules.json", sentence_keys.MODULES),
        ("sentence_bert_config.json", sentence_keys.TRANSFORMER_CONFIG),
        ("config_sentence_transformers.json", sentence_keys.SENTENCE_TRANSFORMERS_CONFIG),
        ("config.json of `Pooling`", sentence_keys.POOLING_CONFIG),
        ("config.json of `Dense`", sentence_keys.DENSE_CONFIG),
        ("config.json of `Normalize`", sentence_keys.NORMALIZE_CONFIG),
        ("config.json of `Dropout`", sentence_keys.DROPOUT_CONFIG),
        ("tokenizer.json", tokenizer_keys.TOKENIZER_JSON),
        ("tokenizer_config.json", tokenizer_keys.TOKENIZER_CONFIG),
        ("special_tokens_map.json", tokenizer_keys.SPECIAL_TOKENS_MAP),
        ("generation_config.json", tokenizer_keys.GENERATION_CONFIG),
        ("chat_template.json", tokenizer_keys.CHAT_TEMPLATE_JSON),
        ("tensors", tensors.IRRELEVANT_TENSORS),
        *(
            (f"tensors, `{family}`" if family != "gguf" else "tensors, GGUF, a BERT", known)
            for family, known in tensors.BERT_TENSORS.items()
        ),
    ]
    for place, known in places:
        for name, ruling in known.items():
            yield Rule(place, (name,), ruling)


def _common(families: Mapping[str, Known]) -> Known:
    """Return what all families rule alike."""
    first, *others = families.values()
    return {
        key: rule for key, rule in first.items() if all(each.get(key) == rule for each in others)
    }


def _merged(rules: Iterable[Rule]) -> Iterator[Rule]:
    """Rules of one place with one ruling as one, in the order of their first."""
    names: dict[tuple[str, str], list[str]] = {}
    rulings: dict[tuple[str, str], str | MustBe] = {}
    for rule in rules:
        key = (rule.place, repr(rule.ruling))
        names.setdefault(key, []).extend(rule.names)
        rulings[key] = rule.ruling
    for (place, ruling), merged in names.items():
        yield Rule(place, tuple(merged), rulings[place, ruling])


def _merged_rows(place: str, table: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for rule in _merged(Rule(place, (name,), why) for name, why in table.items()):
        yield place, _code(rule.names), str(rule.ruling)


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _values(ruling: str | MustBe) -> str:
    values = ruling.values if isinstance(ruling, MustBe) else ()
    return " or ".join(f"`{json.dumps(value)}`" for value in values)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(rewritten(PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
