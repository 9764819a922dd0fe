"""Options of tokenizer_config.json that change what a tokenizer.json does.

transformers 5.24 rebuilds the pipeline of some classes, and takes only the vocabulary, the
merges and the post-processor from tokenizer.json. Then these options of tokenizer_config.json
count:

    class                                option                                  where
    BertTokenizer and its like, MPNet    do_lower_case, strip_accents,           normalizer
                                         tokenize_chinese_chars
    GPT2Tokenizer, RobertaTokenizer …    add_prefix_space                        pre_tokenizer
    LlamaTokenizer                       legacy, add_prefix_space                normalizer,
                                                                                 pre_tokenizer
    CodeLlamaTokenizer, XLMRoberta-      add_prefix_space                        normalizer,
    Tokenizer, CamembertTokenizer                                                pre_tokenizer

For an option that the file lacks, transformers takes the class's default even against
tokenizer.json (a cased BERT without `do_lower_case` becomes lower-cased); here tokenizer.json
decides, as in Spin, which reads no other file. It also decides for PreTrainedTokenizerFast, as in
transformers, and for further classes whose pipelines transformers rebuilds (AlbertTokenizer,
DebertaV2Tokenizer …).
"""

from __future__ import annotations

from typing import Any

from refllm.files.accounting.keys import Keys
from refllm.tokenizer.document import pipeline_steps

__all__ = ["prepend_scheme", "with_options"]

BERT_CLASSES = frozenset(
    {"BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer"}
)
BYTE_LEVEL_CLASSES = frozenset(
    {
        *("GPT2Tokenizer", "RobertaTokenizer", "BartTokenizer", "LongformerTokenizer"),
        *("LEDTokenizer", "GPTNeoXTokenizer"),
    }
)
UNIGRAM_CLASSES = frozenset({"XLMRobertaTokenizer", "CamembertTokenizer"})
# Option of tokenizer_config.json, field of the library's BertNormalizer, the class's default.
BERT_OPTIONS = (
    ("do_lower_case", "lowercase", True),
    ("strip_accents", "strip_accents", None),
    ("tokenize_chinese_chars", "handle_chinese_chars", True),
)


def with_options(
    document: dict[str, Any], tokenizer_class: str | None, config: Keys
) -> dict[str, Any]:
    """Return the tokenizer.json with the options that tokenizer_config.json has for its class.

    Args:
        document: The content of tokenizer.json.
        tokenizer_class: transformers' class without "Fast", None where no file names one.
        config: tokenizer_config.json.
    """
    if tokenizer_class in BERT_CLASSES:
        return document | _bert(document, config)
    if tokenizer_class in BYTE_LEVEL_CLASSES and "add_prefix_space" in config:
        return document | _byte_level(document, config)
    if tokenizer_class == "LlamaTokenizer":
        return document | _llama(document, prepend_scheme(config))
    if tokenizer_class == "CodeLlamaTokenizer" and "add_prefix_space" in config:
        adds = config.flag("add_prefix_space", default=True)
        return document | _llama(document, "first" if adds else "never", strips=True)
    if tokenizer_class in UNIGRAM_CLASSES and "add_prefix_space" in config:
        return document | _unigram(document, config)
    return document


def prepend_scheme(config: Keys) -> str | None:
    """Return where a LlamaTokenizer puts a space before a word: "always", "first", "never".

    "always" is at the beginning and after each special token, "first" at the beginning only. None
    where the file has neither `legacy` nor `add_prefix_space`.
    """
    if "legacy" not in config and "add_prefix_space" not in config:
        return None
    legacy = config.flag("legacy", default=False)
    if not config.flag("add_prefix_space", default=True):
        return "never"
    return "always" if legacy else "first"


def _bert(document: dict[str, Any], config: Keys) -> dict[str, Any]:
    if not any(option in config.values for option, _, _ in BERT_OPTIONS):
        return {}
    stated = next(
        (
            step
            for step in pipeline_steps(document.get("normalizer"))
            if step.get("type") == "BertNormalizer"
        ),
        {},
    )
    normalizer = {"type": "BertNormalizer", "clean_text": True}
    for option, name, default in BERT_OPTIONS:
        if option not in config.values:
            normalizer[name] = stated.get(name, default)
        elif option in config:
            normalizer[name] = config.flag(option, default=bool(default))
        else:
            config.get(option)
            normalizer[name] = default if default is None else stated.get(name, default)
    return {"normalizer": normalizer, "pre_tokenizer": {"type": "BertPreTokenizer"}}


def _byte_level(document: dict[str, Any], config: Keys) -> dict[str, Any]:
    adds = config.flag("add_prefix_space", default=False)

    def changed(step: object) -> object:
        if not isinstance(step, dict):
            return step
        if step.get("type") == "ByteLevel":
            return step | {"add_prefix_space": adds}
        inner = step.get("pretokenizers")
        if isinstance(inner, list):
            return step | {"pretokenizers": [changed(part) for part in inner]}
        return step

    return {"pre_tokenizer": changed(document.get("pre_tokenizer"))}


def _unigram(document: dict[str, Any], config: Keys) -> dict[str, Any]:
    """Return XLM-R's pipeline; of the file's own normalizer the table of characters stays."""
    normalizer = document.get("normalizer")
    stages = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, dict) else []
    tables = [step for step in stages if step.get("type") == "Precompiled"]
    metaspace = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "always" if config.flag("add_prefix_space", default=True) else "never",
        "split": True,
    }
    return {
        "normalizer": tables[0] if tables else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace],
        },
        "decoder": metaspace,
    }


def _llama(document: dict[str, Any], scheme: str | None, *, strips: bool = False) -> dict[str, Any]:
    """Return Llama's pipeline.

    Args:
        document: The file.
        scheme: As `prepend_scheme`.
        strips: Whether a space before the first word is no text even where none is put there.
    """
    steps = pipeline_steps(document.get("pre_tokenizer"))
    if any(step.get("type") == "ByteLevel" for step in steps):
        return {}  # transformers takes such a file (Llama 3's) as it is
    if scheme is None:
        return {}
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if strips or scheme != "never":
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    return {
        "normalizer": None,
        "pre_tokenizer": metaspace,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }
