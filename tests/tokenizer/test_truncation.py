"""Where texts are cut: a GGUF file's keys, exports of them, tiny-embed as all-MiniLM-L6-v2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from refllm.api import InvalidInput, LlmRuntimeError
from refllm.engine import LocalEngine
from refllm.export import export
from refllm.files.accounting.ledger import Ledger
from refllm.models.bundled import ROOT
from refllm.models.load import BertModel, load_path
from refllm.tokenizer import tokenizer_from_gguf
from refllm.tokenizer.base import NO_LIMIT
from refllm.tokenizer.gguf_keys import DIRECTION, MAX_LENGTH
from tests.conftest import PROJECT
from tests.export.test_export_tokenizer import both, folder_words
from tests.export.test_export_vocab import in_a_gguf
from tests.support.token_cases import unigram_metadata
from tests.support.vocabularies import bert_like_json, bert_toy, bpe_metadata, spm_toy

PATH = Path("vocabulary.gguf")
TEXT = "the play the playing the."
KINDS = [spm_toy, bpe_metadata, bert_toy, unigram_metadata]
EVERY_KIND = pytest.mark.parametrize("make", KINDS)
Metadata = dict[str, object]


@EVERY_KIND
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_gguf_vocabulary_truncates_at_the_limit_of_its_keys(
    make: Callable[[], Metadata], side: str
) -> None:
    whole = tokenizer_from_gguf(make(), path=PATH).encode(TEXT)
    added = tokenizer_from_gguf(make(), path=PATH).encode("")
    plain = whole[1 : len(whole) - (len(added) - 1)] if added else whole
    ledger = Ledger()
    keys = {MAX_LENGTH: len(added) + 2, DIRECTION: side}
    cut = tokenizer_from_gguf({**make(), **keys}, path=PATH, ledger=ledger)
    rest = plain[:2] if side == "right" else plain[-2:]
    assert cut.encode(TEXT) == [*added[:1], *rest, *added[1:]]
    assert cut.encode(TEXT, max_tokens=NO_LIMIT) == whole
    assert cut.text_limit == len(added) + 2
    assert {e.verdict for e in ledger.entries if e.name in keys} == {"used"}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("limit", [2, 3, 5, 100])
def test_a_gguf_vocabulary_cuts_as_the_tokenizers_library_does(limit: int, side: str) -> None:
    library = bert_like_json()
    library.enable_truncation(max_length=limit, direction=side)
    keys = {MAX_LENGTH: limit, DIRECTION: side}
    ours = tokenizer_from_gguf({**bert_toy(), **keys}, path=PATH)
    theirs = library.encode(TEXT)
    assert [ours.piece(token_id) for token_id in ours.encode(TEXT)] == theirs.tokens


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        (MAX_LENGTH, "128", f"{MAX_LENGTH} must be a number, is '128'"),
        (MAX_LENGTH, True, f"{MAX_LENGTH} must be a number, is True"),
        (MAX_LENGTH, 1, f"{MAX_LENGTH} is 1, the special tokens alone are 2"),
        (MAX_LENGTH, -1, f"{MAX_LENGTH} is -1, the special tokens alone are 2"),
        (DIRECTION, "Right", f"{DIRECTION} must be left or right, is 'Right'"),
    ],
)
def test_a_bad_limit_is_refused_by_name(key: str, value: object, problem: str) -> None:
    with pytest.raises(LlmRuntimeError, match=f"^vocabulary.gguf: {problem}$"):
        tokenizer_from_gguf({**bert_toy(), key: value}, path=PATH)


@EVERY_KIND
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_limit_outlives_the_export_to_a_folder(make: Callable[[], Metadata], side: str) -> None:
    own, exported = both({**make(), MAX_LENGTH: 4, DIRECTION: side})
    assert (exported.text_limit, exported.cut_side) == (4, side)
    assert exported.encode(TEXT) == own.encode(TEXT)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_limit_outlives_the_export_to_a_gguf_file(side: str, tmp_path: Path) -> None:
    library = bert_like_json()
    library.enable_truncation(max_length=4, direction=side)
    library.save(str(tmp_path / "tokenizer.json"))
    words = folder_words(tmp_path, "bert")
    made = in_a_gguf(words, tmp_path / "made.gguf")
    assert (made.text_limit, made.cut_side) == (4, side)
    assert made.encode(TEXT) == words.tokenizer.encode(TEXT)
    assert len(made.encode(TEXT)) == 4


class TestTinyEmbed:
    """It takes the texts that all-MiniLM-L6-v2 takes, and cuts them at the same length."""

    @pytest.fixture
    def bert(self) -> BertModel:
        model = load_path(ROOT / "bert" / "tiny-embed.gguf")
        assert isinstance(model, BertModel)
        return model

    def test_tiny_embed_has_the_limit_of_the_real_model_s_tokenizer(self, bert: BertModel) -> None:
        golden = PROJECT / "golden" / "embeddings" / "all-minilm-l6-v2.json"
        limits = json.loads(golden.read_text("utf-8"))["limits"]
        assert bert.tokenizer.text_limit == limits["tokenizer_json"]
        assert bert.config.n_ctx >= limits["sentence_transformers"]

    @pytest.mark.parametrize(
        ("n_words", "max_tokens", "n_tokens", "is_cut"),
        [
            (0, None, 2, False),
            (126, None, 128, False),
            (127, None, 128, True),
            (10_000, None, 128, True),
            (300, 256, 256, True),
            (510, 512, 512, False),
            (10_000, 512, 512, True),
            (510, NO_LIMIT, 512, False),
        ],
    )
    def test_a_text_of_any_length_has_a_vector(
        self, bert: BertModel, n_words: int, max_tokens: int | None, n_tokens: int, *, is_cut: bool
    ) -> None:
        text = "cat " * n_words
        tokenized = bert.tokenize([text], max_tokens=max_tokens)
        assert ([*map(len, tokenized.token_ids)], tokenized.is_cut) == ([n_tokens], (is_cut,))
        assert bert.embed([text], max_tokens=max_tokens).shape == (1, 384)

    def test_more_than_its_context_is_refused_where_a_caller_asks_for_it(
        self, bert: BertModel
    ) -> None:
        with pytest.raises(InvalidInput, match=r"513 tokens does not fit .* context of 512"):
            bert.embed(["cat " * 511], max_tokens=NO_LIMIT)

    def test_the_stand_in_cuts_as_it_does_under_its_own_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REFLLM_HOME", str(tmp_path))
        engine = LocalEngine(stand_ins=True)
        own, standing_in = (
            engine.generate_embeddings(name, ["cat " * 10_000])
            for name in ("tiny-embed", "all-minilm-l6-v2")
        )
        assert own == standing_in
        assert own.usage.prompt_token_count == 128

    def test_an_export_of_it_cuts_at_the_same_length(self, bert: BertModel, tmp_path: Path) -> None:
        made = load_path(export(bert.path, to=tmp_path / "made", name="model", layout="hf"))
        assert isinstance(made, BertModel)
        assert made.tokenizer.text_limit == bert.tokenizer.text_limit
        assert (made.embed(["cat " * 300]) == bert.embed(["cat " * 300])).all()
