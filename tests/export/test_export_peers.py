"""llama.cpp and transformers load what was exported, and compute what refllm computes.

They are not among the packages that tests need; where one is not installed, its tests are skipped.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from gguf import LlamaFileType
from numpy.typing import NDArray

from refllm.checkpoints.open import open_weights
from refllm.export import quantize
from refllm.models.bundled import ROOT
from refllm.models.load import BertModel, LlamaModel, load_path, load_tokenizer
from tests.support.exports import (
    FOLDERS,
    LLAMAS,
    PROMPT,
    TEXTS,
    exported,
    keys_of,
    result,
    tensors_of,
)
from tests.support.model_files import (
    tiny_bert_folder,
    tiny_bert_gguf,
    tiny_llama_folder,
    tiny_llama_gguf,
)
from tests.support.networks import same_bits
from tests.support.vocabularies import SENTENCES

# llama.cpp keeps keys and values in float16, and multiplies bfloat16 with bfloat16 (measured: 0.004
# and 0.02); transformers sums in another order (measured: 3e-6).
LLAMA_CPP_ERROR = 0.05
TRANSFORMERS_ERROR = 1e-5


@pytest.mark.filterwarnings("ignore")
class TestLlamaCpp:
    @pytest.fixture(autouse=True)
    def llama_cpp(self) -> ModuleType:
        found: ModuleType = pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python")
        return found

    def logits(self, llama_cpp: ModuleType, path: Path) -> NDArray[np.float32]:
        model = llama_cpp.Llama(str(path), n_ctx=128, logits_all=True, verbose=False)
        model.eval(PROMPT)
        return np.array(model.scores[: len(PROMPT)], np.float32)

    @pytest.mark.parametrize("name", ["F32", "tied", "biases", "llama3", "wide heads"])
    def test_a_llama_through_a_folder_gives_the_same_bits_as_its_source(
        self, llama_cpp: ModuleType, name: str, tmp_path: Path
    ) -> None:
        source = LLAMAS[name](tmp_path / "source.gguf")
        again = exported(exported(source, tmp_path, "hf"), tmp_path, "gguf")
        assert same_bits(self.logits(llama_cpp, again), self.logits(llama_cpp, source))

    @pytest.mark.parametrize("name", [name for name in FOLDERS if "BERT" not in name])
    def test_a_folder_s_llama_gives_nearly_our_logits(
        self, llama_cpp: ModuleType, name: str, tmp_path: Path
    ) -> None:
        source = FOLDERS[name](tmp_path / "source")
        theirs = self.logits(llama_cpp, exported(source, tmp_path, "gguf"))
        assert np.abs(theirs - result(source)).max() < LLAMA_CPP_ERROR

    @pytest.mark.parametrize("text", SENTENCES)
    def test_a_folder_s_llama_has_our_tokens(
        self, llama_cpp: ModuleType, text: str, tmp_path: Path
    ) -> None:
        source = tiny_llama_folder(tmp_path / "source")
        made = exported(source, tmp_path, "gguf")
        model = llama_cpp.Llama(str(made), vocab_only=True, verbose=False)
        assert model.tokenize(text.encode()) == load_tokenizer(source).encode(text)

    @pytest.mark.parametrize("type_name", ["F16", "BF16", "Q8_0", "Q4_0"])
    def test_quantizing_gives_the_bytes_of_llama_quantize_pure(
        self, llama_cpp: ModuleType, type_name: str, tmp_path: Path
    ) -> None:
        ours, theirs = quantized_by_both(llama_cpp, type_name, f"MOSTLY_{type_name}", tmp_path)
        assert keys_of(ours) == keys_of(theirs)
        assert tensors_of(ours) == tensors_of(theirs)

    def test_q4_k_is_as_close_as_that_of_llama_quantize_pure(
        self, llama_cpp: ModuleType, tmp_path: Path
    ) -> None:
        ours, theirs = quantized_by_both(llama_cpp, "Q4_K", "MOSTLY_Q4_K_S", tmp_path)
        assert keys_of(ours) == keys_of(theirs)
        exact = open_weights(tmp_path / "source.gguf").tensors
        for name in ("token_embd.weight", "blk.0.attn_q.weight", "blk.1.ffn_down.weight"):
            values, got, expected = (
                tensors[name].array()
                for tensors in (exact, open_weights(ours).tensors, open_weights(theirs).tensors)
            )
            error = np.sqrt(np.mean((got - values) ** 2))
            assert error < 1.02 * np.sqrt(np.mean((expected - values) ** 2))

    def test_a_bert_gives_nearly_our_embeddings(
        self, llama_cpp: ModuleType, tmp_path: Path
    ) -> None:
        source = tiny_bert_folder(tmp_path / "source")
        made = exported(source, tmp_path, "gguf")
        model = llama_cpp.Llama(str(made), embedding=True, verbose=False)
        theirs = np.array([model.embed(text, normalize=True) for text in TEXTS], np.float32)
        assert np.abs(theirs - result(source)).max() < 0.005


def quantized_by_both(
    llama_cpp: ModuleType, type_name: str, file_type: str, folder: Path
) -> tuple[Path, Path]:
    """One model as refllm quantizes it, and as llama.cpp does."""
    source = tiny_llama_gguf(folder / "source.gguf", n_embd=256, n_heads=4, n_ff=512)
    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
    quantize(source, ours, type_name=type_name)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.pure = int(LlamaFileType[file_type]), True
    assert llama_cpp.llama_model_quantize(bytes(source), bytes(theirs), params) == 0
    return ours, theirs


@pytest.mark.filterwarnings("ignore")
class TestTransformers:
    @pytest.fixture(autouse=True)
    def transformers(self) -> ModuleType:
        pytest.importorskip("torch", reason="pip install torch")
        found: ModuleType = pytest.importorskip("transformers", reason="pip install transformers")
        return found

    @pytest.mark.parametrize("name", LLAMAS)
    def test_a_llama_gives_nearly_our_logits(
        self, transformers: ModuleType, name: str, tmp_path: Path
    ) -> None:
        import torch

        source = LLAMAS[name](tmp_path / "source.gguf")
        made = exported(source, tmp_path, "hf")
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            made, output_loading_info=True
        )
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys"))
        with torch.no_grad():
            theirs = model(torch.tensor([PROMPT])).logits[0].numpy()
        assert np.abs(theirs - result(source)).max() < TRANSFORMERS_ERROR

    def test_a_bert_gives_nearly_our_embeddings(
        self, transformers: ModuleType, tmp_path: Path
    ) -> None:
        import torch

        source = tiny_bert_gguf(tmp_path / "source.gguf")
        made = exported(source, tmp_path, "hf")
        model = transformers.AutoModel.from_pretrained(made)
        tokenizer = transformers.AutoTokenizer.from_pretrained(made)
        inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
        with torch.no_grad():
            states = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        theirs = torch.nn.functional.normalize((states * mask).sum(1)).numpy()
        assert np.abs(theirs - result(source)).max() < TRANSFORMERS_ERROR

    @pytest.mark.parametrize("text", [*SENTENCES, "", "  two", "<s>a</s>"])
    def test_tokenizers_give_our_ids(
        self, transformers: ModuleType, text: str, tmp_path: Path
    ) -> None:
        for source in (
            tiny_llama_gguf(tmp_path / "llama.gguf"),
            tiny_llama_folder(tmp_path / "llama"),
            tiny_bert_gguf(tmp_path / "bert.gguf"),
        ):
            made = exported(source, tmp_path / f"from {source.name}", "hf")
            theirs = transformers.AutoTokenizer.from_pretrained(made)
            assert theirs(text)["input_ids"] == load_tokenizer(source).encode(text)


@pytest.mark.filterwarnings("ignore")
class TestModelsOfThePackage:
    """The models that ship, as they ship and as they are exported, in llama.cpp."""

    @pytest.fixture(autouse=True)
    def llama_cpp(self) -> ModuleType:
        found: ModuleType = pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python")
        return found

    @pytest.mark.parametrize("form", ["as it ships", "gguf", "gguf through a folder"])
    @pytest.mark.parametrize("text", ["", "hello", "A cat sat on the mat."])
    def test_tiny_embed_has_our_tokens_and_vectors(
        self, llama_cpp: ModuleType, form: str, text: str, tmp_path: Path
    ) -> None:
        shipped = ROOT / "bert" / "tiny-embed.gguf"
        path = shipped
        if form == "gguf through a folder":
            path = exported(exported(shipped, tmp_path, "hf"), tmp_path, "gguf")
        elif form == "gguf":
            path = exported(shipped, tmp_path, "gguf", "F32")
        ours = load_path(shipped)
        assert isinstance(ours, BertModel)
        model = llama_cpp.Llama(str(path), embedding=True, verbose=False)
        assert model.tokenize(text.encode(), special=True) == ours.tokenize([text]).token_ids[0]
        theirs = np.array(model.embed(text, normalize=True), np.float32)
        # An empty text is [CLS] [SEP]; llama.cpp rounds activations to float16.
        assert float(theirs @ ours.embed([text])[0]) > 0.9999

    @pytest.mark.parametrize("form", ["as it ships", "gguf", "gguf through a folder"])
    def test_tiny_chat_has_our_tokens_and_next_token(
        self, llama_cpp: ModuleType, form: str, tmp_path: Path
    ) -> None:
        shipped = ROOT / "llama" / "tiny-chat.gguf"
        path = shipped
        if form == "gguf through a folder":
            path = exported(exported(shipped, tmp_path, "hf"), tmp_path, "gguf")
        elif form == "gguf":
            path = exported(shipped, tmp_path, "gguf", "F32")
        ours = load_path(shipped)
        assert isinstance(ours, LlamaModel)
        prompt = "Once upon a time, there was a little"
        model = llama_cpp.Llama(str(path), n_ctx=128, logits_all=True, verbose=False)
        token_ids = model.tokenize(prompt.encode(), special=True)
        assert token_ids == ours.tokenizer.encode(prompt)
        model.eval(token_ids)
        theirs = np.array(model.scores[: len(token_ids)], np.float32)
        assert (theirs.argmax(axis=1) == ours.forward(token_ids).argmax(axis=1)).all()
