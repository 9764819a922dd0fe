"""Vocabularies of older tools, as the tokenizer.json that transformers makes of each.

    vocab.txt                    WordPiece     BertTokenizer, and MPNetTokenizer by its class
    vocab.json and merges.txt    bytes' BPE    RobertaTokenizer, and GPT2Tokenizer by its class
    sentencepiece.bpe.model      unigram       XLMRobertaTokenizer

The pipelines are those of the classes in transformers 5.24, with the same options of
tokenizer_config.json.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from refllm.errors import LlmRuntimeError, ModelNotSupported
from refllm.files.reading import (
    MAX_TOKENIZER_BYTES,
    MAX_TOKENIZER_VALUES,
    read_json_object,
    read_text,
)
from refllm.tokenizer.base import library_errors
from refllm.tokenizer.document import check_charsmap, check_vocabulary
from refllm.tokenizer.folder import FolderFiles
from refllm.tokenizer.native_messages import hold_native_messages
from refllm.tokenizer.sentencepiece import read_model
from refllm.tokenizer.vocabulary import TokenType

__all__ = ["document_from_vocabulary"]


def document_from_vocabulary(path: Path, files: FolderFiles) -> dict[str, Any]:
    """Return the tokenizer.json of a vocabulary.

    Args:
        path: vocab.txt, vocab.json or sentencepiece.bpe.model.
        files: The files beside it.

    Raises:
        LlmRuntimeError: for a file that is damaged.
        ModelNotSupported: for a class that makes another pipeline of the file.
    """
    with library_errors(path, "not a usable vocabulary"), hold_native_messages():
        match path.name:
            case "vocab.txt":
                library = _wordpiece(path, files)
            case "vocab.json":
                library = _byte_level(path, files)
            case _:
                library = _unigram(path, files)
    document: dict[str, Any] = json.loads(library.to_str())
    return document


def _spelling(files: FolderFiles, name: str, default: str) -> str:
    return files.special[name].content if name in files.special else default


def _id(vocabulary: dict[str, int], token: str, path: Path) -> int:
    if token not in vocabulary:
        raise LlmRuntimeError(f"{path}: there is no token {token}")
    return vocabulary[token]


def _check_class(path: Path, files: FolderFiles, *classes: str) -> str:
    """Return the class that makes the pipeline, by default the first one."""
    name = files.tokenizer_class or classes[0]
    if name not in classes:
        raise ModelNotSupported(
            f"{path}: the pipeline of tokenizer_class {name!r:.80} is not computed; let "
            "transformers' save_pretrained write a tokenizer.json"
        )
    return name


def _lines(path: Path, errors: str = "strict") -> list[str]:
    text = read_text(path, max_bytes=MAX_TOKENIZER_BYTES, errors=errors)
    text = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    if text.count("\n") >= MAX_TOKENIZER_VALUES:
        raise LlmRuntimeError(
            f"{path}: has more than {MAX_TOKENIZER_VALUES} lines, and no tokenizer needs as many"
        )
    return text.split("\n")


def _wordpiece(path: Path, files: FolderFiles) -> Tokenizer:
    mpnet = _check_class(
        path, files, *("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer")
    ).startswith("MPNet")
    # Lines as Python reads a text file: a token may contain U+2028, and no line feed.
    lines = _lines(path)
    vocabulary = {token: token_id for token_id, token in enumerate(lines)}
    if len(vocabulary) < len(lines):
        [(twice, _)] = Counter(lines).most_common(1)
        raise LlmRuntimeError(f"{path}: has the token {twice!r:.80} twice")
    usual = ("<s>", "</s>", "<pad>", "<mask>") if mpnet else ("[CLS]", "[SEP]", "[PAD]", "[MASK]")
    names = ("cls_token", "sep_token", "pad_token", "mask_token")
    cls, sep, pad, mask = map(_spelling, [files] * len(names), names, usual)
    unknown = _spelling(files, "unk_token", "[UNK]")
    _id(vocabulary, unknown, path)
    library = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    config = files.config
    library.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.flag("tokenize_chinese_chars", default=True),
        strip_accents=(
            config.flag("strip_accents", default=True) if "strip_accents" in config else None
        ),
        lowercase=config.flag("do_lower_case", default=True),
    )
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece(prefix="##")
    for token in (unknown, sep, pad, cls, mask):
        if token in vocabulary:
            lstrip = mpnet and token == mask
            library.add_special_tokens([AddedToken(token, lstrip=lstrip, special=True)])
    library.post_processor = processors.TemplateProcessing(
        single=[cls, "$A", sep],
        special_tokens=[(token, _id(vocabulary, token, path)) for token in {cls, sep}],
    )
    return library


def _byte_level(path: Path, files: FolderFiles) -> Tokenizer:
    name = _check_class(path, files, "RobertaTokenizer", "GPT2Tokenizer")
    vocabulary = read_json_object(
        path, max_bytes=MAX_TOKENIZER_BYTES, max_values=MAX_TOKENIZER_VALUES
    )
    check_vocabulary(vocabulary, path)
    merges_path = path.with_name("merges.txt")
    if not merges_path.is_file():
        raise LlmRuntimeError(f"{merges_path}: there is no such file beside {path.name}")
    merges = []
    for line in _lines(merges_path, errors="replace"):
        pair = line.strip().split()
        if pair and not line.startswith("#"):
            if len(pair) != len(("left", "right")):
                raise LlmRuntimeError(f"{merges_path}: {line!r:.80} is not two tokens")
            merges.append((pair[0], pair[1]))
    library = Tokenizer(models.BPE(vocabulary, merges, fuse_unk=False))
    adds_space = files.config.flag("add_prefix_space", default=False)
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=adds_space)
    library.decoder = decoders.ByteLevel()
    if name == "GPT2Tokenizer":
        end = _spelling(files, "eos_token", "<|endoftext|>")
        library.add_special_tokens([AddedToken(end, special=True)])
        return library
    cls = _spelling(files, "cls_token", "<s>")
    sep = _spelling(files, "sep_token", "</s>")
    own = (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"))
    for token in (*(_spelling(files, *one) for one in own), sep, cls):
        _id(vocabulary, token, path)
        library.add_special_tokens([AddedToken(token, special=True)])
    for one in (("pad_token", "<pad>"), ("mask_token", "<mask>")):
        if _spelling(files, *one) in vocabulary:
            library.add_special_tokens([AddedToken(_spelling(files, *one), special=True)])
    library.post_processor = processors.RobertaProcessing(
        (sep, _id(vocabulary, sep, path)),
        (cls, _id(vocabulary, cls, path)),
        trim_offsets=True,
        add_prefix_space=adds_space,
    )
    return library


def _unigram(path: Path, files: FolderFiles) -> Tokenizer:
    """XLM-R's tokens: <s> <pad> </s> <unk>, the model's own pieces from its fourth on, <mask>."""
    _check_class(path, files, "XLMRobertaTokenizer")
    model = read_model(path)
    if model.trainer_spec.model_type != model.trainer_spec.UNIGRAM:
        raise ModelNotSupported(f"{path}: only a unigram model is computed, and this is another")
    charsmap = model.normalizer_spec.precompiled_charsmap
    if charsmap:
        check_charsmap(charsmap, f"{path}: normalizer_spec.precompiled_charsmap")
    first = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [(piece.piece, float(piece.score)) for piece in model.pieces[3:]]
    vocabulary = [*((token, 0.0) for token in first), *pieces, ("<mask>", 0.0)]
    library = Tokenizer(models.Unigram(vocabulary, unk_id=3, byte_fallback=False))
    if charsmap:
        library.normalizer = normalizers.Precompiled(charsmap)
    adds_space = files.config.flag("add_prefix_space", default=True)
    scheme = "always" if adds_space else "never"
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    library.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    library.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    if any(piece.type == TokenType.USER_DEFINED for piece in model.pieces[3:]):
        raise ModelNotSupported(f"{path}: user-defined pieces are not computed")
    for token in first:
        library.add_special_tokens([AddedToken(token, special=True)])
    library.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    library.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A", "</s>"], special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return library
