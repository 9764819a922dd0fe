r"""How byte-level BPE vocabularies cut text into words before they merge bytes, by name.

A GGUF file names the rule in `tokenizer.ggml.pre`. A rule is a list of regular expressions: each
in turn cuts every word that the ones before it left into its matches and what lies between them.

    "gpt-2":  "I'll see 12."  ->  "I" "'ll" " see" " 12" "."

The names, the rules, and which vocabularies take a whole word that is a token without merging
(`ignore_merges`) or put BOS before a text unless the file says otherwise (`add_bos`) are
llama.cpp's (src/llama-vocab.cpp); an expression is written as in the `tokenizer.json` of the model
that the rule is named after where llama.cpp quotes it. llama.cpp itself computes some of them
only about so: in gpt-4o's family an accent of its own (U+0301) is not part of a word, and U+3000 is
in no range of characters. The rule of kimi-k2 is the one that llama.cpp computes, which is plainer
than the model's.

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
# DeepSeek LLM counts these as letters: those with a case, as of Unicode 11 or so.
_CASED = (
    r"A-Za-z\u00B5\u00C0-\u00D6\u00D8-\u00F6\u00F8-\u01BA\u01BC-\u01BF\u01C4-\u0293\u0295-\u02AF"
    r"\u0370-\u0373\u0376\u0377\u037B-\u037D\u037F\u0386\u0388-\u038A\u038C\u038E-\u03A1"
    r"\u03A3-\u03F5\u03F7-\u0481\u048A-\u052F\u0531-\u0556\u10A0-\u10C5\u13A0-\u13F5\u13F8-\u13FD"
    r"\u1C90-\u1CBA\u1CBD-\u1CBF\u1D00-\u1D2B\u1D6B-\u1D77\u1D79-\u1D9A\u1E00-\u1F15\u1F18-\u1F1D"
    r"\u1F20-\u1F45\u1F48-\u1F4D\u1F50-\u1F57\u1F59\u1F5B\u1F5D\u1F5F-\u1F7D\u1F80-\u1FB4"
    r"\u1FB6-\u1FBC\u1FBE\u1FC2-\u1FC4\u1FC6-\u1FCC\u1FD0-\u1FD3\u1FD6-\u1FDB\u1FE0-\u1FEC"
    r"\u1FF2-\u1FF4\u1FF6-\u1FFC\u2102\u2107\u210A-\u2113\u2115\u2119-\u211D\u2124\u2126\u2128"
    r"\u212A-\u212D\u212F-\u2134\u2139\u213C-\u213F\u2145-\u2149\u214E\u2183\u2184\u2C00-\u2C7B"
    r"\u2C7E-\u2CE4\u2CEB-\u2CEE\u2CF2\u2CF3\uA640-\uA66D\uA680-\uA69B\uA722-\uA76F\uA771-\uA787"
    r"\uA78B-\uA78E\uAB70-\uABBF\uFB00-\uFB06\uFB13-\uFB17\uFF21-\uFF3A\uFF41-\uFF5A"
    r"\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}"
    r"\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}"
)
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_CASED}]+",
    r"\s?[!-/:-~\uFF01-\uFF0F\uFF1A-\uFF5E\u2018-\u201F\u3000-\u3002]+",
    r"\s+\z",
    r"[\u4E00-\u9FA5\u0800-\u4E00\uAC00-\uD7FF]+",
    r"\p{N}+",
)
_HAN_KANA = _DEEPSEEK_V3[1]
_SPARK = (
    r"\p{N}{1,3}",
    _HAN_KANA,
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+|[\r\n]|{_SPACES}",
    r"\p{N}",
)
_YOUTU = (
    r"[\uAC00-\uD7A3\u3131-\u318E]+|[\uFF01\u2026\u201C\u201D\u2018\u2019\u2014\uFF1A\uFF1B\uFF0C"
    r"\u3001-\u303F\uFE30-\uFE4F]+|[\u3105-\u312F]+|[\u4E00-\u9FA5\u3040-\u309F\u30A0-\u30FF]+",
    rf"{_CAMEL[0]}{_CONTRACTIONS}?|{_CAMEL[1]}{_CONTRACTIONS}?|\p{{N}}|{_O200K_REST}",
)
_KIMI = (
    rf"\p{{Han}}+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^\p{{Han}}]]+{_CONTRACTIONS}?|\p{{N}}{{1,3}}"
    rf"|{_MARKS}|\s*[\r\n]+|{_SPACES}"
)
_HALVINGS = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
_JAIS2 = (
    rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_MARKS}|\s*[\r\n]+"
    rf"|{_HALVINGS}|\s{{1,2}}(?!\S)|\s"
)
_MINICPM5 = (
    r"\p{N}{1,3}",
    rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}+|{_MARKS}|\s*[\r\n]+|{_SPACES}",
)
_BAILING = rf"'(?i:[sdmt]|ll|ve|re)|{_WORDS}|\p{{N}}|{_MARKS}|\s*[\r\n]|{_SPACES}"
_SEED = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|{_SPACES}"
_UFAKZEKA = rf"{_WORDS}|\p{{N}}|{_MARKS}|\s*[\r\n]+|{_SPACES}"
_EXAONE_MOE = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|{_SPACES}"
)
_CHAMELEON = (
    "<sentinel:[0-9]+>",
    "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
    r"([\t\n]|    |  )",
    r"\p{N}",
    r"[\p{P}!-/:-@\[-`{-~]",
    _GPT2,
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
        *("jina-v2-code", "jina-v2-de", "jina-v2-es"),
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
        *("f2llmv2", "solar-open", "stablelm2"),
    ),
    PreTokenizer((_QWEN35,), nfc=True): ("qwen35",),
    PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True): ("tekken",),
    PreTokenizer((_GPT4O,)): ("gpt-4o", "kanana2", "llama4", "minimax-m2", "talkie"),
    PreTokenizer(_DEEPSEEK_V3): ("deepseek-v3", "hunyuan-dense", "hy_v4", "joyai-llm"),
    PreTokenizer(_DEEPSEEK_CODER): ("deepseek-coder",),
    PreTokenizer((_BLOOM,)): ("bloom", "gpt3-finnish", "poro-chat"),
    PreTokenizer((_BLOOM, r"\p{N}")): ("viking",),
    PreTokenizer(_DEEPSEEK_LLM): ("deepseek-llm",),
    PreTokenizer(_SPARK): ("spark2_5",),
    PreTokenizer(_YOUTU, ignore_merges=True): ("youtu",),
    PreTokenizer((_KIMI,)): ("kimi-k2",),
    PreTokenizer((_JAIS2,)): ("jais-2",),
    PreTokenizer(_MINICPM5, ignore_merges=True): ("minicpm5",),
    PreTokenizer((_BAILING,)): ("bailingmoe", "bailingmoe2", "llada-moe"),
    PreTokenizer((_SEED,)): ("seed-coder",),
    PreTokenizer((_UFAKZEKA,)): ("ufakzeka",),
    PreTokenizer((r"[^\n]+|[\n]+", _QWEN2)): ("laguna",),
    PreTokenizer((_EXAONE_MOE,)): ("exaone-moe",),
    PreTokenizer(_CHAMELEON, add_bos=True): ("chameleon",),
    PreTokenizer((r"\p{N}+", r"(?=(\d{3})+(?!\d))")): ("superbpe",),
}

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = MappingProxyType(
    {name: rule for rule, names in _BY_RULE.items() for name in names}
)
