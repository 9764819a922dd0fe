"""A planted fault is found at its value and layer, and named; rounding is no difference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from refllm import InferencingParams, InvalidInput
from refllm.trace import Trace, open_trace, record
from refllm.trace.compare import Comparison, compare
from refllm.trace.expected import Formulas
from refllm.trace.faults.bert import ENCODER_FAULTS, Encoder
from refllm.trace.faults.formulas import causal
from refllm.trace.faults.llama import NETWORK_FAULTS, Network
from refllm.trace.report import lines_of
from refllm.trace.sides import RunOptions, formulas_for, open_side, side_of
from tests.support.planted import planted_bert, planted_llama, write_trace

FAULTS = {fault.name: fault for fault in NETWORK_FAULTS}
ENCODERS = {fault.name: fault for fault in ENCODER_FAULTS}

LLAMA_VALUES = {
    "RoPE layout swapped": "Qcur-0#2",
    "RoPE base 500000": "Qcur-0#2",
    "RoPE base 1000000": "Qcur-0#2",
    "RoPE backwards": "Qcur-0#2",
    "RoPE on queries only": "Kcur-0#2",
    "RoPE on keys only": "Qcur-0#2",
    "RoPE missing": "Qcur-0#2",
    "RMSNorm epsilon 1e-06": "attn_norm-0",
    "RMSNorm epsilon 1e-12": "attn_norm-0",
    "RMSNorm with mean subtracted": "attn_norm-0",
    "RMSNorm by the sum": "attn_norm-0",
    "RMSNorm without weight": "attn_norm-0",
    "RMSNorm weight from one": "attn_norm-0",
    "RMSNorm epsilon outside the root": "attn_norm-0",
    "last norm missing": "result_norm",
    "scores not scaled": "kq_soft_max-0",
    "scores scaled by the width": "kq_soft_max-0",
    "GQA heads by modulo": "kq_soft_max-0",
    "GQA all on the first head": "kq_soft_max-0",
    "causal mask missing": "kq_soft_max-0",
    "causal mask one ahead": "kq_soft_max-0",
    "token does not see itself": "kq_soft_max-0",
    "token before not seen": "kq_soft_max-0",
    "first token not seen": "kq_soft_max-0",
    "GELU for SiLU": "ffn_swiglu-0",
    "tanh GELU for SiLU": "ffn_swiglu-0",
    "ReLU for SiLU": "ffn_swiglu-0",
    "sigmoid for SiLU": "ffn_swiglu-0",
    "gate and up exchanged": "ffn_gate-0",
    "residual missing at attention": "ffn_inp-0",
    "residual missing at feed-forward": "l_out-0",
    "norms exchanged": "attn_norm-0",
    "embeddings scaled": "inp_embd",
    "attn_output transposed": "attn_out-0",
    "attn_q transposed": "Qcur-0",
}
"""The first value that each fault changes, by the order of a llama's operations."""

NO_FAULT_OF_TINY_CHAT = {
    "RoPE base 10000": "it is the file's",
    "RMSNorm epsilon 1e-05": "it is the file's",
    "embeddings for output": "the output matrix is the embeddings'",
}

BERT_VALUES = {
    "tanh GELU": "ffn_gelu-0",
    "sigmoid GELU": "ffn_gelu-0",
    "ReLU for GELU": "ffn_gelu-0",
    "SiLU for GELU": "ffn_gelu-0",
    "LayerNorm epsilon 1e-05": "inp_norm",
    "LayerNorm epsilon 1e-06": "inp_norm",
    "embeddings not normalized": "result_embd",
    "CLS pooling": "result_embd_pooled",
    "last token pooling": "result_embd_pooled",
    "max pooling": "result_embd_pooled",
    "mean without special tokens": "result_embd_pooled",
    "encoder attends causally": "kqv_out-0",
    "scores not scaled": "kqv_out-0",
    "positions from one": "inp_embd",
    "positions from two": "inp_embd",
    "positions missing": "inp_embd",
    "token types missing": "inp_embd",
    "second token type": "inp_embd",
    "encoder residual missing": "ffn_inp-0",
}

NO_FAULT_OF_ONE_TEXT = {
    "LayerNorm epsilon 1e-12": "it is the file's",
    "padded mean pooling": "one text has no padding",
    "padding in the mean": "one text has no padding",
    "no attention mask": "one text has no padding",
    "special tokens missing": "it changes the tokens",
    "CLS missing": "it changes the tokens",
    "SEP missing": "it changes the tokens",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


@pytest.fixture(scope="module")
def prompt(folder: Path) -> Trace:
    params = InferencingParams(max_tokens=0)
    return record("tiny-chat", "Once upon a time", to=folder / "prompt", params=params)


@pytest.fixture(scope="module")
def run(folder: Path) -> Trace:
    params = InferencingParams(max_tokens=3, temperature=0)
    return record("tiny-chat", "Once upon a time", to=folder / "run", params=params)


@pytest.fixture(scope="module")
def text(folder: Path) -> Trace:
    return record("tiny-embed", "A cat sat on the mat.", to=folder / "text")


@pytest.fixture(scope="module")
def llama(prompt: Trace) -> Formulas:
    found = formulas_for(prompt.metadata)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def bert(text: Trace) -> Formulas:
    found = formulas_for(text.metadata)
    assert found is not None
    return found


def with_network(a: Trace, network: Network, to: Path, formulas: Formulas | None) -> Comparison:
    [sequence] = a.metadata.texts
    n_computed = sum(call.n_tokens for call in a.metadata.calls)
    b = planted_llama(
        to, sequence.token_ids[:n_computed], network, n_prompt=a.metadata.calls[0].n_tokens
    )
    return compare(a, b, formulas=formulas)


def test_every_known_fault_has_its_value_here() -> None:
    assert LLAMA_VALUES.keys() | NO_FAULT_OF_TINY_CHAT.keys() == FAULTS.keys()
    assert BERT_VALUES.keys() | NO_FAULT_OF_ONE_TEXT.keys() == ENCODERS.keys()


@pytest.mark.parametrize("name", LLAMA_VALUES)
def test_a_fault_of_a_llama_is_found_at_its_value_and_named(
    name: str, prompt: Trace, llama: Formulas, tmp_path: Path
) -> None:
    found = with_network(prompt, FAULTS[name].network, tmp_path / "b", llama)
    assert found.first is not None
    assert (found.first.name, found.first.wrong) == (LLAMA_VALUES[name], "B")
    reproducing = [cause.name for cause in found.first.causes if cause.share == 1]
    expected = ["RoPE on keys only", "RoPE missing"]  # its queries are those of either
    assert reproducing == (expected if name == "RoPE missing" else reproducing)
    assert name in reproducing
    if name not in {"RoPE missing", "RoPE on queries only", "RoPE on keys only"}:
        assert reproducing[0] == name
    assert found.first.causes[0].text.endswith((".", ")"))


@pytest.mark.parametrize("name", BERT_VALUES)
def test_a_fault_of_a_bert_is_found_at_its_value_and_named(
    name: str, text: Trace, bert: Formulas, tmp_path: Path
) -> None:
    ids = text.metadata.texts[0].token_ids
    found = compare(text, planted_bert(tmp_path / "b", ids, ENCODERS[name].encoder), formulas=bert)
    assert found.first is not None
    assert (found.first.name, found.first.wrong) == (BERT_VALUES[name], "B")
    assert found.first.causes[0].name == name
    assert found.first.causes[0].share == 1


def test_float64_instead_of_float32_is_no_difference(
    run: Trace, text: Trace, llama: Formulas, bert: Formulas, tmp_path: Path
) -> None:
    found = with_network(run, Network(), tmp_path / "b", llama)
    assert (found.is_different, found.n_alone) == (False, 0)
    assert found.n_equal < found.n_values == 201
    assert 0 < max(growth.share for growth in found.growth) < 1e-5
    ids = text.metadata.texts[0].token_ids
    found = compare(text, planted_bert(tmp_path / "c", ids, Encoder()), formulas=bert)
    assert not found.is_different
    assert found.n_equal < found.n_values


def test_a_fault_of_one_layer_alone_is_found_there(
    prompt: Trace, llama: Formulas, tmp_path: Path
) -> None:
    arrays = load_file(prompt.path)
    values = {
        name: arrays[f"calls/0/{name}"].astype(np.float64)
        for name in prompt.metadata.calls[0].values
    }
    values["attn_out-2"][4, 7] += 1.0
    b = write_trace(
        tmp_path / "b",
        [values],
        architecture="llama",
        model="tiny-chat",
        texts=prompt.metadata.texts,
    )
    found = compare(prompt, b, formulas=llama)
    assert found.first is not None
    assert (found.first.name, found.first.layer) == ("attn_out-2", 2)
    assert (found.first.index, found.first.token) == ((4, 7), 4)
    assert found.first.b - found.first.a == pytest.approx(1.0)
    assert found.first.expected == pytest.approx(found.first.a, abs=1e-5)
    assert found.first.causes == ()
    assert found.others == ()


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("position one too large", Network(positions=lambda p: np.where(p >= 5, p + 1, p))),
        ("position one too small", Network(positions=lambda p: np.where(p >= 5, p - 1, p))),
    ],
)
def test_a_cache_that_is_off_by_one_is_found_at_the_first_drawn_token(
    name: str, network: Network, run: Trace, llama: Formulas, tmp_path: Path
) -> None:
    found = with_network(run, network, tmp_path / "b", llama)
    assert found.first is not None
    assert (found.first.call, found.first.name, found.first.token) == (1, "Qcur-0#2", 5)
    assert found.first.causes[0].name == name


def test_a_cache_without_the_newest_token_is_found_at_its_attention(
    run: Trace, llama: Formulas, tmp_path: Path
) -> None:
    def mask(n_tokens: int, n_seen: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        visible = causal(n_tokens, n_seen)
        visible[np.arange(5, n_tokens), np.arange(5, n_tokens)] = False
        return visible

    found = with_network(run, Network(mask=mask), tmp_path / "b", llama)
    assert found.first is not None
    assert (found.first.call, found.first.name) == (1, "kq_soft_max-0")
    assert found.first.causes[0].name == "token does not see itself"


def test_a_fault_in_a_value_that_is_not_recorded_is_found_at_the_next_one(
    prompt: Trace, llama: Formulas, tmp_path: Path
) -> None:
    whole = planted_llama(
        tmp_path / "whole", prompt.metadata.texts[0].token_ids, FAULTS["RoPE backwards"].network
    )
    arrays = load_file(whole.path)
    values = {
        name: arrays[f"calls/0/{name}"].astype(np.float64)
        for name in whole.metadata.calls[0].values
        if not name.startswith(("Qcur", "Kcur", "kq_soft_max"))
    }
    b = write_trace(
        tmp_path / "b",
        [values],
        architecture="llama",
        model="tiny-chat",
        texts=prompt.metadata.texts,
    )
    found = compare(prompt, b, formulas=llama)
    assert found.first is not None
    assert found.first.name == "kqv_out-0"
    assert [cause.name for cause in found.first.causes if cause.share == 1] == ["RoPE backwards"]
    assert found.n_alone == 20


def test_without_weights_a_value_differs_beyond_a_share(prompt: Trace, tmp_path: Path) -> None:
    found = with_network(prompt, Network(), tmp_path / "b", None)
    assert (found.is_different, found.is_bounded) == (False, False)
    found = with_network(prompt, FAULTS["RoPE missing"].network, tmp_path / "c", None)
    assert found.first is not None
    assert (found.first.name, found.first.wrong, found.first.causes) == ("Qcur-0#2", "", ())


def test_a_value_of_nan_is_a_difference(prompt: Trace, llama: Formulas, tmp_path: Path) -> None:
    nan = Network(norm=lambda x, _weight, _eps: np.full_like(x, np.nan))
    for formulas in (llama, None):
        found = with_network(prompt, nan, tmp_path / f"b{formulas is None}", formulas)
        assert found.first is not None
        assert found.first.name == "attn_norm-0"


def test_values_of_another_shape_are_a_difference(
    prompt: Trace, llama: Formulas, tmp_path: Path
) -> None:
    arrays = load_file(prompt.path)
    values = {n: arrays[f"calls/0/{n}"].astype(np.float64) for n in ("inp_embd", "attn_norm-0")}
    values["attn_norm-0"] = values["attn_norm-0"][:, :100]
    b = write_trace(
        tmp_path / "b", [values], architecture="llama", model="x", texts=prompt.metadata.texts
    )
    found = compare(prompt, b, formulas=llama)
    assert found.first is not None
    assert found.first.shapes == ((5, 256), (5, 100))


def changed_tokens(prompt: Trace, ids: list[int], pieces: list[str], to: Path) -> Trace:
    sequence = replace(
        prompt.metadata.texts[0], token_ids=tuple(ids), pieces=tuple(pieces), n_given=len(ids)
    )
    values = {"inp_embd": np.zeros((len(ids), 256))}
    return write_trace(to, [values], architecture="llama", model="x", texts=(sequence,))


@pytest.mark.parametrize(
    ("change", "position", "words"),
    [
        (lambda i, p: (i[1:], p[1:]), 0, "The first token is missing"),
        (lambda i, p: ([i[0], *i], [p[0], *p]), 1, "BOS is added once"),
        (lambda i, p: (i[:-1], p[:-1]), 4, "The last token is missing"),
        (lambda i, p: ([*i, 2], [*p, "</s>"]), 5, "a token more at the end"),
        (lambda i, p: (i[:2], p[:2]), 2, "The text is cut"),
        (lambda i, p: ([*i, 0], [*p, "<pad>"]), 5, "padding behind the text"),
        (lambda i, p: ([*i, 0, 0], [*p, "[PAD]", "[PAD]"]), 5, "padding behind the text"),
        (lambda i, p: ([i[0], 9, *i[2:]], [p[0], "Once", *p[2:]]), 1, "The space before the first"),
        (lambda i, p: ([i[0], 9, *i[2:]], [p[0], "▁once", *p[2:]]), 1, "Upper and lower case"),
        (lambda i, p: ([i[0], 9, *i[2:]], [p[0], "▁Twice", *p[2:]]), 1, ""),
    ],
)
def test_tokens_come_first(
    change: object, position: int, words: str, prompt: Trace, llama: Formulas, tmp_path: Path
) -> None:
    [sequence] = prompt.metadata.texts
    assert callable(change)
    ids, pieces = change(list(sequence.token_ids), list(sequence.pieces))
    found = compare(prompt, changed_tokens(prompt, ids, pieces, tmp_path / "b"), formulas=llama)
    assert found.tokens is not None
    assert found.first is None
    assert found.tokens.position == position
    assert words in found.tokens.cause
    assert bool(words) == bool(found.tokens.cause)


def test_a_draw_by_another_seed_is_the_sampler_s_difference(
    run: Trace, llama: Formulas, folder: Path
) -> None:
    from refllm import LocalEngine

    params = InferencingParams(max_tokens=3)
    a, b = (
        record(
            "tiny-chat",
            "Once upon a time",
            to=folder / f"seed{seed}",
            params=params,
            engine=LocalEngine(seed=seed),
        )
        for seed in (0, 3)
    )
    found = compare(a, b, formulas=llama)
    assert found.first is None
    assert found.draw is not None
    assert found.draw.is_own
    assert found.draw.stage == "token"
    assert ("seed", "0", "3") in [(s.name, s.a, s.b) for s in found.settings]


def test_another_drawn_token_ends_the_comparison(
    run: Trace, llama: Formulas, tmp_path: Path
) -> None:
    ids = list(run.metadata.texts[0].token_ids[:-1])
    ids[6] += 1  # the second drawn token, of a program that records no draws
    found = compare(run, planted_llama(tmp_path / "b", ids, Network(), n_prompt=5), formulas=llama)
    assert found.first is None
    assert found.draw is not None
    assert (found.draw.draw, found.draw.stage, found.draw.is_own) == (1, "token", True)
    assert {growth.call for growth in found.growth} == {0, 1}


def test_calls_of_other_tokens_are_refused(run: Trace, folder: Path, llama: Formulas) -> None:
    [sequence] = run.metadata.texts
    b = planted_llama(folder / "split", sequence.token_ids[:5], Network(), n_prompt=3)
    sequence_b = replace(b.metadata.texts[0], n_given=5)
    b = replace(b, metadata=replace(b.metadata, texts=(sequence_b,)))
    with pytest.raises(InvalidInput, match=r"call 0 of .* computes 5 tokens from position 0") as e:
        compare(run, b, formulas=llama)
    assert "give the model instead of its trace" in str(e.value)


def test_a_model_beside_a_trace_computes_the_prompt_in_the_calls_of_the_trace(
    folder: Path, llama: Formulas, tmp_path: Path
) -> None:
    ids = record("tiny-chat", "Once upon a time", to=tmp_path / "a").metadata.texts[0].token_ids
    b = planted_llama(folder / "parts", ids[:5], FAULTS["RoPE missing"].network, n_prompt=3)
    like = replace(b.metadata, texts=(replace(b.metadata.texts[0], n_given=5),))
    assert [call.n_tokens for call in like.calls] == [3, 1, 1]
    a = open_side(side_of("tiny-chat"), like=like, options=RunOptions(), folder=tmp_path)
    assert [call.n_tokens for call in a.metadata.calls] == [3, 1, 1]
    found = compare(a, replace(b, metadata=like), formulas=llama)
    assert (found.n_values, found.n_alone) == (3 * 67, 0)
    assert found.first is not None
    assert (found.first.call, found.first.name) == (0, "Qcur-0#2")


def test_settings_are_in_the_order_of_a(prompt: Trace, llama: Formulas) -> None:
    names = list(prompt.metadata.params)
    assert len(names) == 6
    orders = (names, names[::-1], sorted(names))
    for order in orders:
        a, b = (
            replace(prompt, metadata=replace(prompt.metadata, params=dict.fromkeys(keys, value)))
            for keys, value in ((order, 0.25), (names, 0.5))
        )
        settings = compare(a, b, formulas=llama).settings
        assert [(each.name, each.a, each.b) for each in settings] == [
            (name, "0.25", "0.5") for name in order
        ]


def test_a_value_whose_inputs_have_other_shapes_in_one_trace_is_compared_without_a_bound(
    prompt: Trace, llama: Formulas, tmp_path: Path
) -> None:
    only = ("inp_embd", "ffn_swiglu-0")
    a = record("tiny-chat", "Once upon a time", to=tmp_path / "a", only=only)
    arrays = load_file(prompt.path)
    values = {
        name: arrays[f"calls/0/{name}"].astype(np.float64)
        for name in ("inp_embd", "ffn_gate-0", "ffn_up-0", "ffn_swiglu-0")
    }
    for name in ("ffn_gate-0", "ffn_up-0"):
        values[name] = np.concatenate([values[name], values[name]], axis=1)
    values["ffn_swiglu-0"] *= 2
    b = write_trace(
        tmp_path / "b", [values], architecture="llama", model="x", texts=a.metadata.texts
    )
    for sides in ((a, b), (b, a)):
        found = compare(*sides, formulas=llama)
        assert found.first is not None
        assert (found.first.name, found.first.wrong) == ("ffn_swiglu-0", "")
        assert (found.others, found.n_alone) == ((), 2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_that_are_stored_as_float16_differ_by_its_rounding(
    dtype: type[np.floating], run: Trace, llama: Formulas, tmp_path: Path
) -> None:
    with safe_open(run.path, framework="numpy") as file:
        stored = file.metadata()
    arrays = {
        key: array.astype(dtype) if key.startswith("calls/") else array
        for key, array in load_file(run.path).items()
    }
    save_file(arrays, tmp_path / "b", stored)
    found = compare(run, open_trace(tmp_path / "b"), formulas=llama)
    assert not found.is_different
    assert (found.n_equal == found.n_values) == (dtype is not np.float16)
    arrays["calls/0/attn_out-2"][1] *= 1.01
    save_file(arrays, tmp_path / "c", stored)
    found = compare(run, open_trace(tmp_path / "c"), formulas=llama)
    assert found.first is not None
    assert found.first.name == "attn_out-2"


def test_the_calls_of_the_longer_trace_are_counted(
    run: Trace, prompt: Trace, llama: Formulas
) -> None:
    for sides in ((run, prompt), (prompt, run)):
        found = compare(*sides, formulas=llama)
        assert (found.n_values, found.n_alone) == (67, 2 * 67)


def test_an_axis_more_before_the_rows_is_no_difference(
    prompt: Trace, llama: Formulas, tmp_path: Path
) -> None:
    arrays = load_file(prompt.path)
    values = {"l_out-1": arrays["calls/0/l_out-1"], "inp_embd": arrays["calls/0/inp_embd"]}
    values["l_out-1"] = values["l_out-1"][None]
    b = write_trace(
        tmp_path / "b",
        [{name: value.astype(np.float64) for name, value in values.items()}],
        architecture="llama",
        model="x",
        texts=prompt.metadata.texts,
    )
    found = compare(prompt, b, formulas=llama)
    assert (found.is_different, found.n_values, found.n_equal) == (False, 2, 2)
    assert [growth.share for growth in found.growth] == [0.0]


def test_a_value_without_a_formula_is_counted(
    prompt: Trace, llama: Formulas, tmp_path: Path
) -> None:
    traces = []
    for i in range(2):
        values = {
            "inp_embd": prompt.value("inp_embd").astype(np.float64),
            "own": np.full((5, 1), i),
        }
        traces.append(
            write_trace(
                tmp_path / f"{i}",
                [values],
                architecture="llama",
                model="x",
                texts=prompt.metadata.texts,
            )
        )
    found = compare(*traces, formulas=llama)
    assert found.first is not None
    assert (found.first.name, found.first.wrong, found.n_unbounded) == ("own", "", 1)
    [line] = [
        line.text for line in lines_of(found, ("A", "B"), prompt.metadata) if "could" in line.text
    ]
    assert line.startswith("1 of them could not be computed from their inputs")
