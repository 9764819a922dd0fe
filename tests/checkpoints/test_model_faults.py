"""Each fault for which a model is refused is found by `doctor` and by `models verify`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from refllm.api import LlmError
from refllm.cli import app
from refllm.doctor import examine
from refllm.models.describe import verify
from tests.support.model_files import (
    hf_llama_name,
    safetensors_tensor,
    tiny_bert_folder,
    tiny_bert_gguf,
    tiny_llama_folder,
    tiny_llama_gguf,
    tiny_llama_tensors,
    write_safetensors,
)
from tests.support.sentence_folders import NORMALIZE, Module, dense, pooling, write_sentence_folder

Make = Callable[[Path], object]

N_VOCAB = 342
EIGHT = np.ones(8, np.float32)


def llama(**config: object) -> Make:
    return lambda root: tiny_llama_folder(root / "llama" / "tiny", config=config)


def llama_gguf(**metadata: object) -> Make:
    keys = {key.replace("__", "."): value for key, value in metadata.items()}
    return lambda root: tiny_llama_gguf(root / "llama" / "tiny.gguf", metadata=keys)


def llama_tensor(name: str) -> Make:
    """A llama's folder with one more tensor."""

    def make(root: Path) -> None:
        folder = tiny_llama_folder(root / "llama" / "tiny")
        arrays = tiny_llama_tensors(n_vocab=N_VOCAB)
        stored = {hf_llama_name(key): safetensors_tensor(array) for key, array in arrays.items()}
        stored[name] = safetensors_tensor(EIGHT)
        write_safetensors(folder / "model.safetensors", stored, None)

    return make


def llama_beside(name: str, content: Mapping[str, object]) -> Make:
    """A llama's folder with one more file."""

    def make(root: Path) -> None:
        folder = tiny_llama_folder(root / "llama" / "tiny")
        (folder / name).write_text(json.dumps(content), "utf-8")

    return make


def llama_without_output(root: Path) -> None:
    config = {"tie_word_embeddings": False}
    tiny_llama_folder(root / "llama" / "tiny", tied=True, config=config)


def unannounced_biases(made: str, key: str) -> Make:
    return lambda root: tiny_llama_folder(
        root / "llama" / "tiny",
        config={key: False},
        **{made: True},  # type: ignore[arg-type]
    )


def bert(**config: object) -> Make:
    return lambda root: tiny_bert_folder(root / "tiny", config=config)


def bert_gguf(**metadata: object) -> Make:
    keys = {key.replace("__", "."): value for key, value in metadata.items()}
    return lambda root: tiny_bert_gguf(root / "tiny.gguf", metadata=keys)


def sentence(*modules: Module, prompts: Mapping[str, object] | None = None) -> Make:
    return lambda root: write_sentence_folder(root / "tiny", *modules, prompts=prompts)


FAULTS: Mapping[str, tuple[Make, str]] = {
    "a bias that config.json does not announce": (
        unannounced_biases("biases", "attention_bias"),
        "attention_bias is not true, and the file has",
    ),
    "a feed-forward bias that config.json does not announce": (
        unannounced_biases("mlp_biases", "mlp_bias"),
        "mlp_bias is not true, and the file has",
    ),
    "biases that are missing": (llama(mlp_bias=True), "mlp_bias is true, and there is none of"),
    "an output matrix that is missing": (llama_without_output, "lm_head.weight is missing"),
    "a llama that is not causal": (llama(is_causal=False), "is_causal = False"),
    "a GGUF llama that is not causal": (
        llama_gguf(llama__attention__causal=False),
        "llama.attention.causal = False",
    ),
    "norms of queries": (
        llama_tensor("model.layers.0.self_attn.q_norm.weight"),
        "norms of queries and keys",
    ),
    "attention sinks": (llama_tensor("model.layers.0.self_attn.sinks"), "attention sinks"),
    "experts": (llama(num_local_experts=8), "num_local_experts = 8"),
    "experts of a GGUF": (llama_gguf(llama__expert_count=8), "llama.expert_count = 8"),
    "tensors of experts": (
        llama_tensor("model.layers.0.block_sparse_moe.gate.weight"),
        "a mixture of experts",
    ),
    "a sliding window": (llama(sliding_window=64), "sliding_window = 64"),
    "a sliding window of a GGUF": (
        llama_gguf(llama__attention__sliding_window=64),
        "llama.attention.sliding_window = 64",
    ),
    "a soft cap of logits": (llama(final_logit_softcapping=30.0), "final_logit_softcapping = 30.0"),
    "scales beside weights": (
        llama_tensor("model.layers.0.mlp.up_proj.weight_scale"),
        "weights with scales of their own",
    ),
    "GPTQ": (llama(quantization_config={"quant_method": "gptq"}), "quantized by 'gptq'"),
    "AWQ": (llama(quantization_config={"quant_method": "awq"}), "quantized by 'awq'"),
    "tensors of GPTQ": (
        llama_tensor("model.layers.0.mlp.up_proj.qweight"),
        "weights with scales of their own",
    ),
    "a LoRA adapter": (llama_beside("adapter_config.json", {}), "holds a LoRA adapter; merge it"),
    "tensors of a LoRA adapter": (
        llama_tensor("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"),
        "a LoRA adapter; merge it",
    ),
    "a LoRA adapter as a GGUF": (llama_gguf(general__type="adapter"), "general.type = 'adapter'"),
    "a multimodal model": (llama(vision_config={"hidden_size": 8}), "vision_config"),
    "longrope": (
        llama(rope_scaling={"rope_type": "longrope", "factor": 4.0}),
        "rope_scaling.rope_type = 'longrope'",
    ),
    "longrope of a GGUF": (
        llama_gguf(llama__rope__scaling__type="longrope"),
        "llama.rope.scaling.type = 'longrope'",
    ),
    "another activation of a llama": (llama(hidden_act="gelu"), "hidden_act = 'gelu'"),
    "an unknown key of a llama": (llama_gguf(llama__unheard_of=1), "llama.unheard_of = 1"),
    "an unknown key of the tokenizer": (
        llama_gguf(tokenizer__ggml__unheard_of=1),
        "tokenizer.ggml.unheard_of",
    ),
    "an end token that the vocabulary lacks": (
        llama_beside("tokenizer_config.json", {"eos_token": "<|gone|>"}),
        "<|gone|>",
    ),
    "an id of an end token that the vocabulary lacks": (
        llama_beside("generation_config.json", {"eos_token_id": [2, 99999]}),
        "99999",
    ),
    "a decoder of BERT's kind": (bert(is_decoder=True), "is_decoder = True"),
    "relative positions of a BERT": (
        bert(position_embedding_type="relative_key"),
        "position_embedding_type = 'relative_key'",
    ),
    "another activation of a BERT": (bert(hidden_act="unheard_of"), "hidden_act = 'unheard_of'"),
    "a BERT's GGUF that is a reranker": (bert_gguf(bert__pooling_type=4), "bert.pooling_type = 4"),
    "an unknown key of a BERT": (bert_gguf(bert__unheard_of=1), "bert.unheard_of = 1"),
    "another module": (sentence(pooling("mean"), Module(kind="LSTM", config={})), "LSTM"),
    "another activation of a dense layer": (
        sentence(pooling("mean"), dense(32, 8, "torch.nn.modules.activation.Mish"), NORMALIZE),
        "Mish",
    ),
    "a default prompt that is missing": (
        sentence(
            pooling("mean"),
            NORMALIZE,
            prompts={"prompts": {"query": "query: "}, "default_prompt_name": "gone"},
        ),
        "gone",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
class TestEachFault:
    def broken(self, name: str, root: Path) -> tuple[Path, str]:
        """The model with the fault, in a root, and the expected message."""
        make, named = FAULTS[name]
        (root / "llama").mkdir()
        make(root)
        [path] = [*(root / "llama").iterdir(), *root.glob("tiny*")]
        return path, named

    def test_verify_names_it(self, name: str, tmp_path: Path) -> None:
        path, named = self.broken(name, tmp_path)
        with pytest.raises(LlmError) as error:
            verify(path)
        assert named in str(error.value)

    def test_doctor_names_it(self, name: str, tmp_path: Path) -> None:
        _, named = self.broken(name, tmp_path)
        findings = examine(tmp_path, [tmp_path], {})
        assert any(named in finding.what for finding in findings if finding.level != "ok")

    def test_the_command_exits_with_1_and_one_line(self, name: str, tmp_path: Path) -> None:
        path, named = self.broken(name, tmp_path)
        result = CliRunner().invoke(app, ["models", "verify", str(path)])
        assert (result.exit_code, result.stdout) == (1, "")
        [line, *_] = result.stderr.splitlines()
        assert named in line
        assert "Traceback" not in result.stderr


class TestAccountingCommand:
    """`refllm models show --accounting`, as it is typed."""

    def test_doctor_model_prints_a_line_for_each_tensor_and_key(self, tmp_path: Path) -> None:
        path = tiny_llama_gguf(tmp_path / "tiny.gguf")
        result = CliRunner().invoke(app, ["models", "show", str(path), "--accounting"])
        assert result.exit_code == 0
        header, *lines = result.stdout.splitlines()
        assert header.split() == ["WHERE", "NAME", "VERDICT", "REASON"]
        rows = {line.split()[1]: line.split()[2] for line in lines}
        assert rows["blk.1.ffn_down.weight"] == rows["llama.block_count"] == "used"
        assert rows["general.name"] == "irrelevant"

    def test_doctor_model_exits_with_1_where_something_is_refused(self, tmp_path: Path) -> None:
        path = tiny_llama_gguf(tmp_path / "tiny.gguf", metadata={"llama.expert_count": 8})
        result = CliRunner().invoke(app, ["models", "show", str(path), "--accounting"])
        assert result.exit_code == 1
        [row] = [line for line in result.stdout.splitlines() if "expert_count" in line]
        assert row.split()[2] == "refused"
        assert "a mixture of experts" in row

    def test_json_has_every_entry(self, tmp_path: Path) -> None:
        path = tiny_bert_folder(tmp_path / "tiny")
        result = CliRunner().invoke(app, ["models", "show", str(path), "--accounting", "--json"])
        entries = json.loads(result.stdout)
        assert {"where", "name", "verdict", "reason"} == set(entries[0])
        assert {"tensors", "config.json", "tokenizer.json"} <= {each["where"] for each in entries}
