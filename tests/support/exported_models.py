"""Every kind of model that is exported, and what other engines compute of the exports.

`said_by` loads an export in llama-cpp-python, transformers or sentence-transformers and compares it
with the source in refllm. tests/export/test_export_engines.py does so where they are installed, and
`tools/peer_values/exports.py` records it for where they are not.

Letters: T tokens, V vocabulary, N texts, D width of a vector.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from refllm.checkpoints.chat_template import chat_prompt, chat_templates_of
from refllm.checkpoints.open import open_weights
from refllm.export import Layout, export
from refllm.models.bundled import ROOT
from refllm.models.load import BertModel, LlamaModel, load_path
from refllm.tokenizer.bpe import PRE_TOKENIZERS
from tests.support import llama_variants, sentence_folders
from tests.support.model_files import (
    spm_vocabulary,
    tiny_bert_gguf,
    tiny_llama_folder,
    tiny_llama_gguf,
)
from tests.support.model_formats import random_matrix
from tests.support.tiny_encoders import tiny_encoder_folder
from tests.support.token_cases import BERT_WORDS, FOLDERS, UNIGRAM, charsmap, write_folder
from tests.support.vocabularies import trained_bpe

__all__ = ["BOUNDS", "ENCODER_TEXTS", "MODELS", "ExportedModel", "said_by", "sha256_of"]

Floats = NDArray[np.float32]

# By what share of the largest number another engine may differ, and by what it does at most. The
# libraries on PyTorch sum in another order (measured: 2e-6). llama.cpp keeps keys and values in
# float16, takes GELU's tanh approximation from a table in float16, and multiplies quantized weights
# with quantized activations (measured: 2e-3, and 1e-2 for tiny-chat, which is quantized).
BOUNDS: Mapping[str, float] = {
    "transformers": 1e-5,
    "sentence-transformers": 1e-5,
    "llama-cpp-python": 0.02,
}
CHAT_TEXTS = ("once upon a time", "The cat\n sat.", "12 é")
ENCODER_TEXTS = ("the cafe playing.", "a b c ab", "The  Café", "")
CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """A source, and the layouts that it can be exported in.

    Attributes:
        make: Writes the source into an empty folder, and returns its path.
        layouts: Of "hf" and "gguf".
        texts: What is compared.
    """

    make: Callable[[Path], Path]
    layouts: tuple[Layout, ...] = ("hf", "gguf")
    texts: Sequence[str] = ENCODER_TEXTS

    def exported(self, folder: Path, layout: Layout) -> tuple[Path, Path]:
        """Write the source and its export into a folder, and return their paths."""
        (folder / "source").mkdir(parents=True)
        source = self.make(folder / "source")
        return source, export(source, to=folder / "exported", name="model", layout=layout)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's names and files."""
    whole = hashlib.sha256()
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            whole.update(file.relative_to(path).as_posix().encode() + b"\0")
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


# --- Sources -------------------------------------------------------------------------------------


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), "utf-8")


def _encoder(
    kind: str,
    files: Callable[[], Mapping[str, object]],
    n_vocab: int,
    mode: str = "mean",
    **config: object,
) -> Callable[[Path], Path]:
    """An encoder of `kind` with the tokenizer's files, whose vectors are normalized."""

    def make(folder: Path) -> Path:
        write_folder(folder, files())
        table = random_matrix(np.random.default_rng(n_vocab), n_vocab, 32)  # [V, D]
        tensors = {"token_embd.weight": table}
        tiny_encoder_folder(folder, kind, tensors=tensors, config={"vocab_size": n_vocab, **config})
        kinds = ["Transformer", "Pooling", "Normalize"]
        modules = [
            {
                "idx": i,
                "name": str(i),
                "path": f"{i}_{kind}" if i else "",
                "type": f"sentence_transformers.models.{kind}",
            }
            for i, kind in enumerate(kinds)
        ]
        _write(folder / "modules.json", modules)
        _write(
            folder / "1_Pooling" / "config.json",
            {
                "word_embedding_dimension": 32,
                "pooling_mode_cls_token": mode == "cls",
                "pooling_mode_mean_tokens": mode == "mean",
            },
        )
        return folder

    return make


def _camembert_files() -> Mapping[str, object]:
    """A unigram tokenizer.json as transformers makes it of a SentencePiece model."""
    first = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = [*((token, 0.0) for token in first), *UNIGRAM, ("<mask>", 0.0)]
    library = Tokenizer(models.Unigram(list(vocabulary), unk_id=3, byte_fallback=False))
    library.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(bytes(charsmap())),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), "▁"),
        ]
    )
    library.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    library.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    library.add_special_tokens([AddedToken(token, special=True) for token in first])
    library.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    library.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A", "</s>"], special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    return {
        "tokenizer.json": json.loads(library.to_str()),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **named},
    }


def _mpnet_files() -> Mapping[str, object]:
    words = [word for word in BERT_WORDS if not word.startswith("[")]
    tokens = ["<s>", "<pad>", "</s>", "[UNK]", *words, "<mask>"]
    return {
        "vocab.txt": "\n".join(tokens) + "\n",
        "tokenizer_config.json": {"tokenizer_class": "MPNetTokenizer"},
    }


def _bert_without_types(folder: Path) -> Path:
    return tiny_bert_gguf(
        folder / "model.gguf",
        metadata={
            "tokenizer.ggml.token_type_count": 1,
            "bert.pooling_type": 2,
            "tokenizer.ggml.pre": None,
        },
        tensors={"token_types.weight": None},
    )


TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
ENDS = ("<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<x>")


def _chat_model(folder: Path) -> Path:
    """Two chat templates, five ends of a generation, and tokens added beside a tokenizer.model."""
    tokens = spm_vocabulary()["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    tiny_llama_folder(folder)
    file = folder / "model.safetensors"
    rows = random_matrix(np.random.default_rng(9), 2 * len(ENDS), 32)  # [2 * ends, D]
    tensors = load_file(file)
    for name, more in zip(
        ("model.embed_tokens.weight", "lm_head.weight"), np.split(rows, 2), strict=True
    ):
        tensors[name] = np.concatenate([tensors[name], more])
    save_file(tensors, file)
    eos_ids = [2, *(len(tokens) + i for i in range(len(ENDS)))]
    _write(folder / "generation_config.json", {"eos_token_id": eos_ids, "top_k": 7})
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "eos_token": "</s>",
            "additional_special_tokens": list(ENDS),
            "chat_template": [
                {"name": "default", "template": TEMPLATE},
                {"name": "rag", "template": "{{ documents }}"},
            ],
        },
    )
    return folder


def _more_tokens_than_rows(folder: Path) -> Path:
    """Two added tokens that have no embedding."""
    tiny_llama_folder(folder)
    tokens = spm_vocabulary()["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    n_vocab = len(tokens)
    _write(folder / "added_tokens.json", {"<|x|>": n_vocab, "<|y|>": n_vocab + 1})
    return folder


def _llama(**options: Any) -> Callable[[Path], Path]:
    return lambda folder: tiny_llama_folder(folder, **options)


def _llama_gguf(**options: Any) -> Callable[[Path], Path]:
    return lambda folder: tiny_llama_gguf(folder / "model.gguf", **options)


def _byte_level(pre: str, nfc: bool) -> Callable[[Path], Path]:
    """A llama's folder with a tokenizer.json of byte-level BPE whose words a rule of GGUF cuts."""

    def make(folder: Path) -> Path:
        rule = PRE_TOKENIZERS[pre]
        tiny_llama_folder(folder, tied=True)
        (folder / "tokenizer.model").unlink()
        library = Tokenizer.from_str(trained_bpe().to_str())
        cuts = [pre_tokenizers.Split(Regex(each), "isolated") for each in rule.expressions]
        library.pre_tokenizer = pre_tokenizers.Sequence(
            [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        if nfc:
            library.normalizer = normalizers.NFC()
        library.add_special_tokens(["<|begin|>", "<|im_end|>"])
        library.add_tokens(["<tool>"])
        document = json.loads(library.to_str())
        document["model"]["ignore_merges"] = rule.ignore_merges
        _write(folder / "tokenizer.json", document)
        _write(
            folder / "tokenizer_config.json",
            {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"},
        )
        config = json.loads((folder / "config.json").read_text("utf-8"))
        file = folder / "model.safetensors"
        table = random_matrix(np.random.default_rng(3), 403, 32)  # [V, D]
        save_file({**load_file(file), "model.embed_tokens.weight": table}, file)
        _write(folder / "config.json", {**config, "vocab_size": 403, "eos_token_id": 401})
        return folder

    return make


def _as_gguf(name: str) -> Callable[[Path], Path]:
    """A GGUF file that refllm makes of another model."""
    return lambda folder: MODELS[name].exported(folder / "first", "gguf")[1]


def _sentence(name: str) -> Callable[[Path], Path]:
    return lambda folder: sentence_folders.CASES[name].write(folder / "model")


def _last_token(folder: Path) -> Path:
    modules = (sentence_folders.pooling("lasttoken"), sentence_folders.NORMALIZE)
    return sentence_folders.write_sentence_folder(folder / "model", *modules)


MODELS: Mapping[str, ExportedModel] = {
    "tiny-chat": ExportedModel(lambda _: ROOT / "llama" / "tiny-chat.gguf", texts=CHAT_TEXTS),
    "tiny-embed": ExportedModel(lambda _: ROOT / "bert" / "tiny-embed.gguf"),
    "llama": ExportedModel(_llama(), texts=CHAT_TEXTS),
    "llama in float16": ExportedModel(_llama(dtype="F16"), texts=CHAT_TEXTS),
    "llama, tied": ExportedModel(_llama(tied=True), texts=CHAT_TEXTS),
    "llama with biases": ExportedModel(_llama_gguf(biases=True, mlp_biases=True), texts=CHAT_TEXTS),
    "llama with yarn": ExportedModel(llama_variants.GGUFS["yarn"], texts=CHAT_TEXTS),
    "llama, linear": ExportedModel(llama_variants.GGUFS["linear"], texts=CHAT_TEXTS),
    "llama with fused queries": ExportedModel(
        llama_variants.GGUFS["fused queries, keys and values"], texts=CHAT_TEXTS
    ),
    "chat model": ExportedModel(_chat_model, texts=CHAT_TEXTS),
    "llama with Llama 3's tokenizer": ExportedModel(
        _byte_level("llama-bpe", nfc=False), texts=(*CHAT_TEXTS, "a <tool> b<|im_end|>c")
    ),
    "llama with Qwen's tokenizer": ExportedModel(
        _byte_level("qwen2", nfc=True), texts=(*CHAT_TEXTS, "a <tool> b<|im_end|>c")
    ),
    "more tokens than rows": ExportedModel(_more_tokens_than_rows, texts=CHAT_TEXTS),
    "bert, cased, by cls": ExportedModel(
        _encoder("bert", lambda: FOLDERS["bert: vocab.txt, cased"], len(BERT_WORDS), "cls")
    ),
    "bert, lower-cased": ExportedModel(
        _encoder("bert", lambda: FOLDERS["bert: do_lower_case, other way"], len(BERT_WORDS))
    ),
    "bert without token types": ExportedModel(_bert_without_types),
    "distilbert": ExportedModel(
        _encoder("distilbert", lambda: FOLDERS["distilbert: vocab.txt"], len(BERT_WORDS), "cls")
    ),
    "roberta": ExportedModel(
        _encoder("roberta", lambda: FOLDERS["roberta: vocab.json and merges.txt"], 405)
    ),
    "xlm-roberta": ExportedModel(
        _encoder("xlm-roberta", lambda: FOLDERS["xlm-roberta: sentencepiece.bpe.model"], 24)
    ),
    "camembert": ExportedModel(
        _encoder("camembert", _camembert_files, len(UNIGRAM) + 5, "cls", pad_token_id=1)
    ),
    "mpnet": ExportedModel(_encoder("mpnet", _mpnet_files, len(BERT_WORDS)), layouts=("hf",)),
    "roberta from a GGUF": ExportedModel(_as_gguf("roberta")),
    "xlm-roberta from a GGUF": ExportedModel(_as_gguf("xlm-roberta")),
    "distilbert from a GGUF": ExportedModel(_as_gguf("distilbert")),
    "bert by the last token": ExportedModel(_last_token, texts=sentence_folders.GGUF_TEXTS),
    **{
        f"bert, {name}": ExportedModel(
            _sentence(name), layouts=("hf",), texts=sentence_folders.GGUF_TEXTS
        )
        for name in (
            "every switch is on",
            "dense after two modes, normalized",
            "only some numbers kept",
            "a default prompt",
        )
    },
    "bert with gelu_new": ExportedModel(
        _encoder(
            "bert", lambda: FOLDERS["bert: vocab.txt"], len(BERT_WORDS), hidden_act="gelu_new"
        ),
        layouts=("hf",),
    ),
    "roberta with relu": ExportedModel(
        _encoder(
            "roberta",
            lambda: FOLDERS["roberta: vocab.json and merges.txt"],
            405,
            hidden_act="relu",
        ),
        layouts=("hf",),
    ),
}


# --- What engines compute ------------------------------------------------------------------------


def said_by(model: ExportedModel, source: Path, made: Path) -> dict[str, Any]:
    """Return what the engine of an export computes, beside what refllm computes of its source.

    Raises:
        ImportError: The engine is not installed.
    """
    ours = load_path(source)
    if isinstance(ours, LlamaModel):
        said_of = _llama_in_transformers if made.is_dir() else _llama_in_llama_cpp
        return said_of(ours, made, model.texts)
    encoder_in = _encoder_in_sentence_transformers if made.is_dir() else _encoder_in_llama_cpp
    return encoder_in(ours, made, model.texts)


def _largest(pairs: Sequence[tuple[Any, Any]]) -> float:
    """The largest difference of theirs and ours, as a share of our largest number."""
    return max(
        float(np.abs(np.asarray(theirs) - ours).max() / np.abs(ours).max())
        for theirs, ours in pairs
    )


def _llama_in_transformers(ours: LlamaModel, made: Path, texts: Sequence[str]) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network, info = AutoModelForCausalLM.from_pretrained(made, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(made)
    ids = [ours.tokenizer.encode(text) for text in texts]
    with torch.no_grad():
        pairs = [
            (network(torch.tensor([each])).logits[0].numpy(), ours.forward(each)) for each in ids
        ]
    eos = network.generation_config.eos_token_id
    message = {
        "engine": "transformers",
        "tensors_are_complete": not info["missing_keys"] and not info["unexpected_keys"],
        "tokens_are_equal": [tokenizer(text)["input_ids"] for text in texts] == ids,
        "ends_are_equal": {*(eos if isinstance(eos, list) else [eos])} == ours.tokenizer.eos_ids,
        "largest_difference": _largest(pairs),
    }
    if ours.chat_template is not None:
        special = ours.tokenizer.special_tokens
        templates = tokenizer.chat_template
        if isinstance(templates, str):
            templates = {"default": templates}
        message["templates_are_equal"] = templates == chat_templates_of(open_weights(ours.path))
        prompt = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
        expected = chat_prompt(ours.chat_template, CHAT, special_tokens=special)
        message["chats_are_equal"] = prompt == expected
    return message


def _llama_in_llama_cpp(ours: LlamaModel, made: Path, texts: Sequence[str]) -> dict[str, Any]:
    import llama_cpp

    model = llama_cpp.Llama(str(made), n_ctx=64, logits_all=True, verbose=False)
    ids = [ours.tokenizer.encode(text) for text in texts]
    pairs = []
    for each in ids:
        model.reset()
        model.eval(each)
        pairs.append((np.array(model.scores[: len(each)], np.float32), ours.forward(each)))
    vocabulary = llama_cpp.llama_model_get_vocab(model.model)
    ends = {i for i in range(model.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocabulary, i)}
    found = [model.tokenize(text.encode(), special=True) for text in texts]
    message = {
        "engine": "llama-cpp-python",
        "tokens_are_equal": found == ids,
        "ends_are_equal": ends == ours.tokenizer.eos_ids,
        "largest_difference": _largest(pairs),
    }
    if ours.chat_template is not None:
        key = "tokenizer.chat_template"
        templates = {
            name.removeprefix(f"{key}.").replace(key, "default"): template
            for name, template in model.metadata.items()
            if name == key or name.startswith(f"{key}.")
        }
        message["templates_are_equal"] = templates == chat_templates_of(open_weights(ours.path))
    return message


def _encoder_in_sentence_transformers(
    ours: BertModel, made: Path, texts: Sequence[str]
) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(made), device="cpu")
    found = [model.tokenizer(text)["input_ids"] for text in texts]
    return {
        "engine": "sentence-transformers",
        "class": type(model[0].auto_model).__name__,
        "tokens_are_equal": found == [ours.tokenizer.encode(text) for text in texts],
        "largest_difference": _largest([(model.encode(list(texts)), ours.embed(list(texts)))]),
    }


def _encoder_in_llama_cpp(ours: BertModel, made: Path, texts: Sequence[str]) -> dict[str, Any]:
    import llama_cpp

    model = llama_cpp.Llama(str(made), embedding=True, verbose=False)
    found = [model.tokenize(text.encode(), special=True) for text in texts]
    vectors = [model.embed(text, normalize=True) for text in texts]  # [N, D]
    return {
        "engine": "llama-cpp-python",
        "tokens_are_equal": found == ours.tokenize(list(texts)).token_ids,
        "largest_difference": _largest([(vectors, ours.embed(list(texts)))]),
    }
