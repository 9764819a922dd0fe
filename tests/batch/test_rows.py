from __future__ import annotations

import datetime
import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from refllm import InferencingParams, InvalidInput, LocalEngine, generate_embeddings
from refllm.batch import Embedder, Generator
from refllm.batch.columns import NotText, values_of
from refllm.batch.rows import OnLong
from refllm.models.bundled import ROOT
from refllm.models.load import BertModel, load

TEXTS = ["A cat sat on the mat.", "", "The dog barks. " * 20, "word " * 126, "¡Olé!", "x"]
LONG = "One two three. " * 100  # 402 tokens, or four pieces of at most 126 and 2


def bits(vectors: object) -> NDArray[np.uint32]:
    return np.asarray(vectors, np.float32).view(np.uint32)


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder("tiny-embed")


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator("tiny-chat", params=InferencingParams(max_tokens=6), at_once=3)


# --- Vectors -------------------------------------------------------------------------------------


def test_vectors_are_those_of_the_interface_whatever_is_beside_them(embedder: Embedder) -> None:
    alone = [generate_embeddings("tiny-embed", [text]) for text in TEXTS]
    expected = [result.embeddings[0] for result in alone]
    together = embedder({"text": TEXTS})
    others = embedder({"text": TEXTS[::-1] * 3})
    assert (bits(together["embedding"]) == bits(expected)).all()
    assert (bits(others["embedding"]) == bits(expected[::-1] * 3)).all()
    assert together["token_count"] == [result.usage.prompt_token_count for result in alone]
    assert together["error"] == [None] * len(TEXTS)


def test_windows_of_any_size_come_back_in_order(embedder: Embedder) -> None:
    windows = [{"text": [text] * n} for n, text in enumerate(TEXTS)]
    results = list(embedder.run(windows))
    assert [len(result) for result in results] == [0, 1, 2, 3, 4, 5]
    last = generate_embeddings("tiny-embed", [TEXTS[-1]]).embeddings[0]
    assert (bits(results[-1]["embedding"].to_pylist()) == bits([last] * 5)).all()


def test_a_row_that_cannot_be_computed_costs_that_row_alone(embedder: Embedder) -> None:
    texts = ["x", None, 3, "\ud800", LONG, b"bytes", "x"]
    batch = embedder({"text": texts})
    expected = bits(generate_embeddings("tiny-embed", ["x"]).embeddings[0])
    assert [vector is not None for vector in batch["embedding"]] == [True, *[False] * 5, True]
    assert (bits(batch["embedding"][0]) == expected).all()
    assert (bits(batch["embedding"][6]) == expected).all()
    assert batch["token_count"] == [3, *[None] * 5, 3]
    reasons = ["null", "not a text but int: 3", "U+D800", "more than 128 tokens", "but bytes"]
    for error, reason in zip(batch["error"][1:6], reasons, strict=True):
        assert reason in error


def test_a_column_of_arrow_may_have_bytes_that_are_not_utf8(embedder: Embedder) -> None:
    offsets = pa.py_buffer(np.array([0, 1, 3, 4], np.int32))
    column = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"xa\xffx"))
    batch = embedder(pa.table({"text": column}))
    assert batch["error"].to_pylist() == [None, "the text is not UTF-8: byte 0xFF at index 1", None]


def test_long_texts_are_cut_as_the_interface_cuts_them() -> None:
    truncating = Embedder("tiny-embed", on_long="truncate")
    expected = generate_embeddings("tiny-embed", [LONG])
    batch = truncating({"text": ["x", LONG]})
    assert (bits(batch["embedding"][1]) == bits(expected.embeddings[0])).all()
    assert batch["token_count"][1] == expected.usage.prompt_token_count == 128


@pytest.mark.parametrize("limit", [16, 128])
def test_chunk_mean_is_the_weighted_mean_of_consecutive_pieces(limit: int) -> None:
    model = load(ROOT / "bert" / "tiny-embed.gguf")
    assert isinstance(model, BertModel)
    cls, *content, sep = model.tokenizer.encode(LONG, max_tokens=10_000)
    size = limit - 2
    pieces = [content[i : i + size] for i in range(0, len(content), size)]
    vectors = model.embed_tokens([[cls, *piece, sep] for piece in pieces])
    mean = np.average(vectors.astype(np.float64), axis=0, weights=[len(p) for p in pieces])
    expected = mean / np.linalg.norm(mean)
    chunked = Embedder("tiny-embed", on_long="chunk-mean", max_tokens=limit)
    batch = chunked({"text": ["x", LONG, "x", LONG]})
    assert np.abs(np.array(batch["embedding"][1]) - expected).max() < 1e-6
    assert (bits(batch["embedding"][1]) == bits(batch["embedding"][3])).all()
    assert batch["token_count"][1] == len(content) + 2 * len(pieces)
    short = generate_embeddings("tiny-embed", ["x"]).embeddings[0]
    assert (bits(batch["embedding"][0]) == bits(short)).all()


def test_chunk_mean_without_room_for_a_token_is_an_error_of_the_row() -> None:
    batch = Embedder("tiny-embed", on_long="chunk-mean", max_tokens=2)({"text": ["x", ""]})
    assert "max_tokens is 2" in batch["error"][0]
    assert batch["error"][1] is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"on_long": "cut"}, "on_long must be one of error, truncate, chunk-mean; got 'cut'"),
        ({"numerics": "int4"}, "numerics must be one of exact, int8; got 'int4'"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
    ],
)
def test_an_unusable_option_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        Embedder("tiny-embed", **options)


# --- Batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pa.table, pa.RecordBatch.from_pydict])
def test_a_batch_of_arrow_gets_columns_of_arrow(embedder: Embedder, kind: Any) -> None:
    batch = kind({"n": [1, 2], "text": ["x", None]})
    added = embedder(batch)
    assert type(added) is type(batch)
    assert added.schema.names == ["n", "text", "embedding", "token_count", "error"]
    assert added.schema.field("embedding").type == pa.list_(pa.float32(), 384)
    assert added["n"].to_pylist() == [1, 2]
    assert added["token_count"].to_pylist() == [3, None]


def test_a_batch_of_numpy_gets_arrays(embedder: Embedder) -> None:
    added = embedder({"n": np.array([1, 2]), "text": np.array(["x", None], object)})
    assert added["embedding"].dtype == np.float32
    assert added["embedding"].shape == (2, 384)
    assert np.isnan(added["embedding"]).all(axis=1).tolist() == [False, True]
    assert added["error"].tolist() == [None, "the text is null"]


def test_a_data_frame_gets_columns(embedder: Embedder) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"n": [1, 2], "text": ["x", None]}, index=[7, 9])
    added = embedder(frame)
    assert list(added.columns) == ["n", "text", "embedding", "token_count", "error"]
    assert list(added.index) == [7, 9]
    assert added["embedding"][7].shape == (384,)
    assert added["error"][9] == "the text is null"


def test_an_empty_batch_has_the_columns_too(embedder: Embedder) -> None:
    added = embedder(pa.table({"text": pa.array([], pa.string())}))
    assert added.schema.names == ["text", "embedding", "token_count", "error"]
    assert len(added) == 0


@pytest.mark.parametrize(
    ("batch", "named"),
    [
        ({"body": ["x"]}, r"has no column 'text'; its columns are 'body'"),
        (pa.table({"text": [1]}), r"'text' has the type int64, and must have texts"),
        ({"text": np.array([1.0])}, r"'text' has the type float64"),
        ({"text": ["x"], "error": ["y"]}, r"has a column 'error' already"),
        (["x"], r"a batch must be .* got builtins\.list"),
    ],
)
def test_a_batch_that_cannot_be_used_is_refused(
    embedder: Embedder, batch: object, named: str
) -> None:
    with pytest.raises(InvalidInput, match=named):
        embedder(batch)


def test_the_columns_of_a_data_frame_may_be_numbered() -> None:
    pandas = pytest.importorskip("pandas")
    added = Embedder("tiny-embed", column="0")(pandas.DataFrame({0: ["x"], 1: [2.0]}))
    assert list(added.columns) == [0, 1, "embedding", "token_count", "error"]
    assert added["token_count"][0] == 3


def test_columns_of_different_lengths_are_refused() -> None:
    generator = Generator("tiny-chat", template="{{ a }}", row_parameters={"seed": "s"})
    with pytest.raises(InvalidInput, match=r"columns of different lengths: {'a': 2, 's': 1}"):
        generator({"a": ["x", "y"], "s": [1]})


def test_functions_are_pickled_without_their_model(embedder: Embedder) -> None:
    embedder({"text": ["x"]})
    data = pickle.dumps(embedder)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert again == embedder
    assert bits(again({"text": ["x"]})["embedding"]).shape == (1, 384)


# --- Texts ---------------------------------------------------------------------------------------


def test_texts_are_those_of_the_interface_whatever_is_beside_them(generator: Generator) -> None:
    prompts = ["Once upon a", "The cat", "x" * 300, "Lily and Tom", "Once upon a", "She", "It was"]
    settings: list[dict[str, Any]] = [
        {},
        {"max_tokens": 1},
        {"temperature": 0.0},
        {"max_tokens": 60, "top_k": 0, "top_p": 1.0},
        {"max_tokens": 0},
        {"repeat_penalty": 1.5, "repeat_penalty_last_n_token_count": 3},
        {"max_tokens": 12, "seed": 2**64 - 1},
    ]
    names = sorted({name for each in settings for name in each})
    rows = {name: [each.get(name) for each in settings] for name in names}
    own = Generator(
        "tiny-chat",
        params=InferencingParams(max_tokens=6),
        at_once=3,
        row_parameters={name: f"the {name}" for name in names},
    )
    batch = own({"text": prompts, **{f"the {name}": column for name, column in rows.items()}})
    assert batch["error"] == [None] * len(prompts)
    for i, (prompt, setting) in enumerate(zip(prompts, settings, strict=True)):
        given = {"max_tokens": 6, **setting}
        engine = LocalEngine(seed=given.pop("seed", 0))
        result = engine.infer("tiny-chat", prompt, InferencingParams(**given))
        assert batch["generated_text"][i] == result.text
        assert batch["prompt_token_count"][i] == result.usage.prompt_token_count
        assert batch["generated_token_count"][i] == result.usage.generated_token_count
        assert len(batch["generated_token_ids"][i]) == result.usage.generated_token_count
    plain = generator({"text": prompts[:1]})
    assert plain["generated_token_ids"][0] == batch["generated_token_ids"][0]


def test_the_reason_of_the_end_is_the_token_or_the_limit() -> None:
    generator = Generator("tiny-chat", params=InferencingParams(max_tokens=400), at_once=8)
    batch = generator({"text": ["Once upon a time", "The cat"]})
    eos = generator.engine.inferencing_model("tiny-chat").tokenizer.eos_ids
    for ids, reason in zip(batch["generated_token_ids"], batch["finish_reason"], strict=True):
        assert reason == ("stop" if ids[-1] in eos else "length")
    assert "stop" in batch["finish_reason"]


def test_a_wrong_prompt_or_parameter_costs_that_row_alone() -> None:
    generator = Generator(
        "tiny-chat",
        params=InferencingParams(max_tokens=2),
        row_parameters={"temperature": "t", "max_tokens": "n"},
    )
    batch = generator(
        {
            "text": ["The cat", None, "The cat", "The cat", "The cat", "word " * 5000, "The cat"],
            "t": [0.0, 0.0, "warm", "0.0", 0.0, 0.0, float("inf")],
            "n": [2, 2, 2, "2", 1.5, 2, 2],
        }
    )
    reasons = [
        None,
        "the prompt is null",
        "temperature must be a number, got 'warm'",
        None,
        "max_tokens must be a whole number, got 1.5",
        "the model's context holds",
        "temperature must be a finite float32",
    ]
    for error, reason in zip(batch["error"], reasons, strict=True):
        assert error is None if reason is None else reason in error
    assert batch["generated_text"][0] == batch["generated_text"][3] is not None
    assert [text is None for text in batch["generated_text"]] == [
        reason is not None for reason in reasons
    ]


def test_a_template_makes_prompts_of_columns() -> None:
    generator = Generator(
        "tiny-chat",
        template="{{ name | title }} said{% if row['a b'] %} {{ row['a b'] }}{% endif %}",
        params=InferencingParams(max_tokens=3),
    )
    batch = generator(
        pa.table({"name": ["lily", "tom", None], "a b": ["hello", None, None], "other": [1, 2, 3]})
    )
    prompts = ["Lily said hello", "Tom said"]
    expected = [generator.engine.infer("tiny-chat", p, generator.params).text for p in prompts]
    assert batch["generated_text"].to_pylist() == [*expected, None]
    assert batch["error"].to_pylist()[2] == "the column 'name' is null"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ row.nmae }} said", "'dict object' has no attribute 'nmae' (line 1)"),
        ("{{ row['a b'] | upper }} said", "'dict object' has no attribute 'a b' (line 1)"),
        ("{{ row.name }}\nsaid {{ row.word }}", "what it writes is null (line 2)"),
    ],
)
def test_a_column_of_row_that_is_missing_or_null_costs_its_row(template: str, reason: str) -> None:
    generator = Generator("tiny-chat", template=template, params=InferencingParams(max_tokens=1))
    batch = generator({"name": ["Lily"], "word": [None]})
    assert batch["error"] == [f"the template makes nothing of the row: {reason}"]


def test_row_has_the_columns_of_parameters_too() -> None:
    template = "{{ row.name }} saw {{ row.n }}"
    generator = Generator("tiny-chat", template=template, row_parameters={"max_tokens": "n"})
    prompted = Generator("tiny-chat", row_parameters={"max_tokens": "n"})
    expected = prompted({"text": ["Lily saw 3"], "n": [3]})
    assert generator({"name": ["Lily"], "n": [3]})["generated_text"] == expected["generated_text"]


def test_a_time_that_python_cannot_hold_costs_its_row() -> None:
    generator = Generator(
        "tiny-chat", template="In {{ at.split()[0] }}", params=InferencingParams(max_tokens=1)
    )
    batch = generator(pa.table({"at": pa.array([0, 400_000_000_000], pa.timestamp("s"))}))
    assert batch["generated_token_count"].to_pylist() == [1, None]
    assert batch["error"][1].as_py().startswith("the column 'at' is no value that Python can hold")


def test_the_text_of_a_time_in_ns_does_not_depend_on_pandas() -> None:
    second = 1_000_000_000
    for kind, first in [
        (pa.duration("ns"), datetime.timedelta(seconds=1)),
        (pa.timestamp("ns", "UTC"), datetime.datetime(1970, 1, 1, 0, 0, 1, tzinfo=datetime.UTC)),
    ]:
        values = values_of(pa.array([second, second + 1, None], kind))
        assert (type(values[0]), values[0]) == (type(first), first)
        assert isinstance(values[1], NotText)
        assert "would lose data" in values[1].reason
        assert values[2] is None


def test_a_template_of_a_column_that_is_missing_is_refused() -> None:
    generator = Generator("tiny-chat", template="{{ nmae }}")
    with pytest.raises(InvalidInput, match=r"has no column 'nmae'; its columns are 'name'"):
        generator({"name": ["x"]})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"column": "a", "template": "b"}, "either column or template"),
        ({"template": "Once"}, "the template names no column"),
        ({"template": f"{{{{ {'(' * 3000}a{')' * 3000} }}}}"}, "it is nested too deep"),
        ({"template": "{{ a"}, "the template cannot be parsed: .* [(]line 1[)]"),
        ({"row_parameters": {"heat": "t"}}, "'heat' is no parameter of a row; they are max_tokens"),
        ({"seed": -1}, "seed"),
        ({"at_once": 0}, "at_once must be at least 1"),
        ({"params": InferencingParams(top_k=-1)}, "top_k must be a whole number"),
    ],
)
def test_an_unusable_option_of_a_generator_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        Generator("tiny-chat", **options)


def test_on_long_has_a_value_for_each_way() -> None:
    ways: list[OnLong] = ["error", "truncate", "chunk-mean"]
    embedders = [Embedder("tiny-embed", on_long=way) for way in ways]
    counts = [each({"text": [LONG]})["token_count"][0] for each in embedders]
    assert counts == [None, 128, 408]
