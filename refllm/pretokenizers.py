r"""How byte-level BPE vocabularies cut text into words before they merge bytes, by name.

A GGUF file names the rule in `tokenizer.ggml.pre`. A rule is a list of regular expressions: each
in turn cuts every word that the ones before it left into its matches and what lies between them.

    "gpt-2":  "I'll see 12."  ->  "I" "'ll" " see" " 12" "."

The names, the rules, and which vocabularies take a whole word that is a token without merging
(`ignore_merges`) or put BOS before a text unless the file says otherwise (`add_bos`) are
llama.cpp's (src/llama-vocab.cpp); an expression is written as in the `tokenizer.json` of the model
that the rule is named after where llama.cpp quotes it.

llama.cpp never normalizes a text for such a vocabulary. The models of some names were trained on
texts in form C (`nfc`), and give another result for the letters e and U+0301 than for é only where
a tokenizer leaves that step out; so it is done here, as their tokenizer.json does. The sources are
the tokenizer classes of transformers 5.24: Qwen2Tokenizer (qwen2), Qwen3_5Tokenizer (qwen35),
CohereTokenizer (command-r), GPTNeoXTokenizer (mpt, olmo). Syntax is Oniguruma's, which the
tokenizers library uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["PRE_TOKENIZERS", "PreTokenizer"]


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """The expressions of one rule, and what else hangs on its name.

    Attributes:
        expressions: Each in turn cuts the words that the ones before it left.
        ignore_merges: Whether a word that is a token is taken whole.
        add_bos: Whether BOS begins a text unless the file says otherwise.
        nfc: Whether the models named so were trained on texts in Unicode's normalization form C.
    """

    expressions: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    nfc: bool = False


_SPACES = r"\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"

# GPT-2's own expression (openai/gpt-2, encoder.py).
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _SPACES

# The family of OpenAI's cl100k: it differs in how many digits are one word.
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_MARKS}|\s*[\r\n]+|{_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_MARKS}|\s*[\r\n]+|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|{_SPACES}"
)

# The family of OpenAI's o200k: a word also ends where a lower-case letter meets a capital.
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CAMEL = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*",
)
_O200K_REST = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|{_SPACES}"
_TEKKEN = rf"{_CAMEL[0]}|{_CAMEL[1]}|\p{{N}}|{_O200K_REST}"
_GPT4O = rf"{_CAMEL[0]}{_CONTRACTIONS}?|{_CAMEL[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_O200K_REST}"

_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    r"[\u4E00-\u9FA5\u3040-\u309F\u30A0-\u30FF]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|\s*[\r\n]+|{_SPACES}",
)
_DEEPSEEK_CODER = (
    r"[\r\n]",
    r"\s?\p{L}+",
    r"\s?\p{P}+",
    r"[\u4E00-\u9FA5\u0800-\u4E00\uAC00-\uD7FF]+",
    r"\p{N}",
)
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"

_BY_RULE: Mapping[PreTokenizer, tuple[str, ...]] = {
    PreTokenizer(
        (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    ): ("default",),
    PreTokenizer((_GPT2,)): (
        *("gpt-2", "phi-2", "jais", "mellum", "modern-bert", "roberta-bpe"),
        *("jina-v1-en", "jina-es", "jina-de"),
        *("a.x-4.0", "exaone4", "gigachat", "granite-docling", "trillion"),
    ),
    PreTokenizer((_GPT2,), nfc=True): ("mpt", "olmo"),
    PreTokenizer((r"\p{N}", _GPT2), nfc=True): ("command-r",),
    PreTokenizer((r"\p{N}", _GPT2)): (
        *("starcoder", "smollm", "refact", "codeshell"),
        *("exaone", "mellum2", "minerva-7b"),
    ),
    PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")): ("falcon",),
    PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True): (
        *("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "lfm2"),
        *("midm-2.0", "pixtral", "jina-v5-nano"),
    ),
    PreTokenizer((_LLAMA3,)): ("chatglm-bpe", "dbrx", "smaug-bpe"),
    PreTokenizer((_LLAMA3,), ignore_merges=True): ("glm4", "glm5"),
    PreTokenizer((_QWEN2,), nfc=True): ("qwen2",),
    PreTokenizer((_QWEN2,)): (
        *("deepseek-r1-qwen", "grok-2", "hunyuan", "kormo", "megrez"),
        *("solar-open", "stablelm2"),
    ),
    PreTokenizer((_QWEN35,), nfc=True): ("qwen35",),
    PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True): ("tekken",),
    PreTokenizer((_GPT4O,)): ("gpt-4o", "kanana2", "llama4"),
    PreTokenizer(_DEEPSEEK_V3): ("deepseek-v3", "hunyuan-dense"),
    PreTokenizer(_DEEPSEEK_CODER): ("deepseek-coder",),
    PreTokenizer((_BLOOM,)): ("bloom", "gpt3-finnish", "poro-chat"),
    PreTokenizer((_BLOOM, r"\p{N}")): ("viking",),
}

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = MappingProxyType(
    {name: rule for rule, names in _BY_RULE.items() for name in names}
)
