r"""Byte-level BPE from a GGUF vocabulary of the kind `gpt2`, through the tokenizers library.

A token is spelled in 256 printable characters that stand for the 256 bytes ("Ġ" for a space, "Ċ"
for a line feed): the table of GPT-2's `bytes_to_unicode`. `tokenizer.ggml.merges` lists pairs of
tokens, the earliest merged first. `tokenizer.ggml.pre` names the rule that cuts a text into words
before that: a list of regular expressions, each of which cuts every word of the ones before it into
its matches and the parts between them.

    "gpt-2":  "I'll see 12."  ->  "I" "'ll" " see" " 12" "."

The names, the rules and their flags are llama.cpp's (src/llama-vocab.cpp). Where llama.cpp quotes
the `tokenizer.json` of the model that a rule is named after, the expression is the one of that
file. llama.cpp computes some of them with differences: in gpt-4o's family a separate accent
(U+0301) is not part of a word, and U+3000 is in no range of characters. The rule of kimi-k2 is the
one that llama.cpp computes, which is simpler than the model's. Syntax is Oniguruma's, as in the
tokenizers library.

llama.cpp never normalizes a text for such a vocabulary. Some models were trained on texts in form C
(`nfc`), as their tokenizer.json normalizes them, and refllm does so, too. Sources: the classes of
transformers 5.24, Qwen2Tokenizer (qwen2), Qwen3_5Tokenizer (qwen35), CohereTokenizer (command-r),
GPTNeoXTokenizer (mpt, olmo).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from refllm.errors import ModelNotSupported
from refllm.tokenizer.base import library_errors
from refllm.tokenizer.gguf_keys import (
    GgufKeys,
    read_special_ids,
    read_special_tokens,
    read_vocabulary,
)
from refllm.tokenizer.native_messages import hold_native_messages
from refllm.tokenizer.vocabulary import (
    SPECIAL_TYPES,
    SpecialIds,
    TokenType,
    Vocabulary,
    VocabularyTokenizer,
)

__all__ = [
    "BYTE_OF",
    "PRE_TOKENIZERS",
    "BytePairTokenizer",
    "PreTokenizer",
    "bpe_from_gguf",
    "byte_level_bytes",
]


# GPT-2's `bytes_to_unicode`, inverted. A byte that is printable in Latin-1 stands for itself; the
# other ones, in order, are U+0100 and on.
PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
BYTE_OF = {chr(byte): byte for byte in PRINTABLE}
BYTE_OF |= {chr(0x100 + i): byte for i, byte in enumerate(sorted({*range(256)} - {*PRINTABLE}))}
# The bytes that UTF-8 text can hold: never C0, C1 (overlong) nor F5 … FF (beyond U+10FFFF).
UTF8_BYTES = frozenset(range(0xF5)) - {0xC0, 0xC1}


def byte_level_bytes(token: str) -> bytes:
    """Return the bytes that a token spells; a token with any other character is plain text."""
    try:
        return bytes([BYTE_OF[character] for character in token])
    except KeyError:
        return token.encode()


class BytePairTokenizer(VocabularyTokenizer):
    """The tokenizers library's BPE over a GGUF vocabulary."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        special: SpecialIds,
        merges: Sequence[tuple[str, str]],
        pre_tokenizer: PreTokenizer,
    ) -> None:
        super().__init__(vocabulary, special, vocabulary.ids_of({TokenType.USER_DEFINED}))
        self._library = Tokenizer(
            models.BPE(
                vocab=vocabulary.ids_of(frozenset(TokenType) - SPECIAL_TYPES),
                merges=list(merges),
                ignore_merges=pre_tokenizer.ignore_merges,
            )
        )
        if pre_tokenizer.nfc:
            self._library.normalizer = normalizers.NFC()
            self.longest_token = 0  # NFC makes one character of several
        words = [pre_tokenizers.Split(Regex(x), "isolated") for x in pre_tokenizer.expressions]
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._library.pre_tokenizer = pre_tokenizers.Sequence([*words, to_bytes])

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that the token spells; see `Tokenizer.token_bytes`."""
        if self.vocabulary.is_special(token_id):
            return b""
        token = self.vocabulary.tokens[token_id]
        is_text = self.vocabulary.types[token_id] == TokenType.USER_DEFINED
        return token.encode() if is_text else byte_level_bytes(token)


def bpe_from_gguf(keys: GgufKeys) -> BytePairTokenizer:
    """Return the tokenizer of a GGUF file whose `tokenizer.ggml.model` is `gpt2`.

    A file without `tokenizer.ggml.pre` means `default`, as in llama.cpp.

    Raises:
        LlmRuntimeError: for a damaged key, naming it.
        ModelNotSupported: for an unknown rule for words.
    """
    name = keys.text("pre", default="default")
    if name not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise ModelNotSupported(
            f"{keys.path}: {keys.prefix}pre = {name!r:.80} is not supported: this rule for words "
            f"is not computed, those that are computed are {known}; take the model's folder "
            "instead, whose tokenizer.json has the rule itself"
        )
    pre_tokenizer = PRE_TOKENIZERS[name]
    vocabulary = read_vocabulary(keys)
    spelled = vocabulary.ids_of(frozenset(TokenType) - SPECIAL_TYPES)
    missing = [b for letter, b in BYTE_OF.items() if b in UTF8_BYTES and letter not in spelled]
    if missing:  # the library drops such a byte silently, so a text would lose letters
        raise keys.error("tokens", f"has no token for the byte 0x{min(missing):02X}")
    special = read_special_ids(
        keys, vocabulary, default_bos=None, default_eos=None, default_add_bos=pre_tokenizer.add_bos
    )
    merges = []
    for index, merge in enumerate(keys.strings("merges")):
        # The first token has at least one character, and that may be a space.
        left, space, right = merge[1:].partition(" ")
        if not space or not right:
            raise keys.error("merges", f"has {merge!r:.80} at index {index}, not two tokens")
        merges.append((merge[0] + left, right))
    with (
        library_errors(keys.path, f"{keys.prefix}merges do not fit {keys.prefix}tokens"),
        hold_native_messages(),
    ):
        tokenizer = BytePairTokenizer(vocabulary, special, merges, pre_tokenizer)
    tokenizer.special_tokens = read_special_tokens(keys, vocabulary, {})
    return tokenizer


# --- Rules for words ------------------------------------------------------------------------------


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
# DeepSeek LLM counts these as letters: the ones with a case, as of Unicode 11 or so.
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
_MINICPM5 = (r"\p{N}{1,3}", rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}+|{_MARKS}|\s*[\r\n]+|{_SPACES}")
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
    PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")): ("default",),
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

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    name: rule for rule, names in _BY_RULE.items() for name in names
}
