"""Components that Spin's SDKs made, as they are, answer what the Python API answers.

A guest's GET is the example for its SDK in Spin's documentation of Serverless AI; its POST makes
one call of the interface.
"""

from __future__ import annotations

import json
import re
import struct
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refllm.api import InferencingParams, LlmError
from refllm.engine import LocalEngine
from refllm.interface import Engine, as_f32
from refllm.models import bundled
from refllm.spin.runtime_config import engine_from_runtime_config
from refllm.testing.server_process import running_server
from refllm.wasm.compiled import compiled, engine_with_limits
from refllm.wasm.guest import Limits
from refllm.wasm.host import Host, Program, Services, Wasi3Error
from refllm.wasm.wasi.http import Request
from refllm.wasm.workers import host_for
from tests.conftest import HUNG_SECONDS, PROJECT
from tests.guests.build import GUESTS, Python, component
from tests.guests.calls import (
    PROMPT,
    TEXTS,
    UNUSABLE,
    USABLE,
    ZEROS,
    Options,
    Recorder,
    called,
)
from tests.guests.jco import add_jco
from tests.guests.models import model_roots
from tests.wasm.test_wasm_run import running

pytestmark = pytest.mark.network  # the SDKs that guests are built with

JOKE = "You are a stand up comedy writer. Tell me a joke."
CODE = "Write a function that adds two numbers."
CODE_OPTIONS = InferencingParams(
    max_tokens=400,
    repeat_penalty=1.1,
    repeat_penalty_last_n_token_count=64,
    temperature=0.8,
    top_k=40,
    top_p=0.9,
)
CODE_EXAMPLE = ("codellama-instruct", CODE, CODE_OPTIONS)
JOKE_EXAMPLE = ("llama2-chat", JOKE, None)
TOKEN = "guests"
DOCUMENTS = [PROJECT / "SPEC.md", PROJECT / "docs" / "run.md"]


@dataclass(frozen=True, slots=True)
class Sdk:
    """A guest, and what the documentation's example in its language asks for.

    `example_has_type`: the example's response has a content-type.
    `falsy_are_defaults`: the SDK sends the default of an option for 0 and NaN.
    """

    guest: str
    name: str
    version: str
    example: tuple[str, str, InferencingParams | None]
    example_has_type: bool = True
    falsy_are_defaults: bool = False

    @property
    def route(self) -> str:
        """The path of its requests; the example for spin-llm has a router of its own, for /."""
        return "/" if self.guest == "javascript" else f"/{self.guest}"

    def params(self, options: Options) -> InferencingParams:
        """The parameters that the SDK sends for these options."""
        if self.falsy_are_defaults:
            options = {key: value for key, value in options.items() if value and not isnan(value)}
        return InferencingParams(**options)  # type: ignore[arg-type]

    def arriving(self, options: Options) -> InferencingParams:
        """The parameters that arrive: floats as float32, and JavaScript's whole numbers."""
        params = asdict(self.params(options))
        values = {
            key: as_f32(value) if isinstance(value, float) else self._whole(value)
            for key, value in params.items()
        }
        return InferencingParams(**values)  # type: ignore[arg-type]

    def _whole(self, number: int) -> int:
        if self.name.startswith("TypeScript") and number >= 2**31:
            low: int
            low, _ = struct.unpack("<II", struct.pack("<d", number))
            return low  # of the float64: see findings/componentize-js-u32-low-bits.sh
        return number


SDKS = (
    Sdk("rust_5", "Rust `spin-sdk`", "5.2.0", CODE_EXAMPLE),
    Sdk("rust_6", "Rust `spin-sdk`", "6.0.0", CODE_EXAMPLE, example_has_type=False),
    Sdk("rust_7", "Rust `spin-sdk`", "7.0.0", CODE_EXAMPLE, example_has_type=False),
    Sdk("javascript", "TypeScript `@spinframework/spin-llm`", "1.0.1", JOKE_EXAMPLE),
    Sdk(
        *("fermyon_2", "TypeScript `@fermyon/spin-sdk`", "2.0.0", JOKE_EXAMPLE),
        falsy_are_defaults=True,
    ),
    Sdk("python_3", "Python `spin-sdk`", "3.4.1", JOKE_EXAMPLE),
    Sdk("python_5_async", "Python `spin-sdk`", "5.0.0", JOKE_EXAMPLE),
)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    return model_roots(tmp_path_factory.mktemp("ai-models"))


@pytest.fixture(scope="module")
def engine(roots: tuple[Path, ...]) -> LocalEngine:
    return LocalEngine(roots=roots, stand_ins=True)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """The host that `refllm run` has."""
    with host_for(Limits()) as host:
        yield host


@pytest.fixture(scope="module", params=SDKS, ids=lambda sdk: sdk.guest)
def sdk(request: pytest.FixtureRequest) -> Sdk:
    sdk: Sdk = request.param
    return sdk


def source(guest: str, folder: Path) -> Path:
    """The guest's component in a folder; for one of WASI 0.3, the folder has jco."""
    path = folder / f"{guest}.wasm"
    path.symlink_to(component(guest))
    if host_of(guest) == "jco" and not (folder / "node_modules").exists():
        add_jco(folder)
    return path


@cache
def host_of(guest: str) -> str:
    """What can run the guest: wasmtime, or else jco."""
    try:
        Host().load_handler(component(guest))
    except Wasi3Error:
        return "jco"
    return "wasmtime"


@pytest.fixture(scope="module")
def program(host: Host, sdk: Sdk, tmp_path_factory: pytest.TempPathFactory) -> Program:
    return host.load_handler(source(sdk.guest, tmp_path_factory.mktemp("application")))


def body(host: Host, program: Program, engine: LocalEngine, *, has_type: bool = True) -> str:
    """The body of the answer to GET."""
    response = host.respond(program, Request("GET", "/"), Services(engine))
    assert response.status == 200
    assert (("content-type", b"text/plain") in response.headers) == has_type
    return response.body.decode()


def test_the_documentation_s_example_has_the_text_of_the_python_api(
    sdk: Sdk, program: Program, host: Host, engine: LocalEngine
) -> None:
    got = body(host, program, engine, has_type=sdk.example_has_type)
    assert got == engine.infer(*sdk.example).text


def test_the_example_for_spin_sdk_5_has_the_text_of_the_python_api(
    host: Host, engine: LocalEngine
) -> None:
    program = host.load_handler(component("python_5"))
    assert body(host, program, engine) == engine.infer("llama2-chat", JOKE).text


def test_the_documentation_s_example_is_answered_by_a_stand_in(
    sdk: Sdk, program: Program, host: Host
) -> None:
    engine = LocalEngine(roots=[], stand_ins=True, allowed_models=[*bundled.STAND_INS])
    _, prompt, params = sdk.example
    expected = LocalEngine(roots=[bundled.ROOT]).infer("tiny-chat", prompt, params)
    assert body(host, program, engine, has_type=sdk.example_has_type) == expected.text


def test_infer_returns_the_text_and_usage_of_the_python_api(
    program: Program, host: Host, engine: LocalEngine
) -> None:
    expected = asdict(engine.infer("tiny-chat", PROMPT))
    assert called(host, program, engine, "infer", "tiny-chat", PROMPT) == expected
    assert expected["usage"]["generated_token_count"] > 0


@pytest.mark.parametrize("options", USABLE, ids=str)
def test_every_usable_option_has_the_effect_that_it_has_in_python(
    options: Options, sdk: Sdk, program: Program, host: Host, engine: LocalEngine
) -> None:
    expected = asdict(engine.infer("tiny-chat", PROMPT, sdk.params(options)))
    got = called(host, program, engine, "infer_with_options", "tiny-chat", PROMPT, options)
    assert got == expected


@pytest.mark.parametrize("options", [*USABLE, *UNUSABLE, ZEROS], ids=str)
def test_the_options_arrive_with_the_float32_that_python_makes_of_them(
    options: Options, sdk: Sdk, program: Program, host: Host
) -> None:
    recorder = Recorder()
    called(host, program, recorder, "infer_with_options", "tiny-chat", PROMPT, options)
    [params] = recorder.params
    assert params is not None
    # NaN is not equal to itself, and its representation is.
    assert repr(params) == repr(sdk.arriving(options))


@pytest.mark.parametrize("options", UNUSABLE, ids=str)
def test_an_option_that_cannot_be_used_is_the_invalid_input_of_the_python_api(
    options: Options, sdk: Sdk, program: Program, host: Host, engine: LocalEngine
) -> None:
    arguments = ("tiny-chat", PROMPT)
    got = called(host, program, engine, "infer_with_options", *arguments, options)
    assert got == result_or_error(engine, "infer", *arguments, sdk.params(options))
    assert got.get("error") == "invalid-input" or sdk.falsy_are_defaults


def result_or_error(engine: Engine, function: str, *arguments: Any) -> Mapping[str, Any]:
    """What a guest must get for what the Python API returns or raises."""
    try:
        return asdict(getattr(engine, function)(*arguments))
    except LlmError as error:
        # The one error that has no text in the interface.
        message = None if error.kind == "model-not-supported" else str(error)
        return {"error": error.kind, "message": message}


def test_embeddings_are_the_same_float32_bits(
    program: Program, host: Host, engine: LocalEngine
) -> None:
    expected = engine.generate_embeddings("tiny-embed", TEXTS)
    got = called(host, program, engine, "generate_embeddings", "tiny-embed", TEXTS)
    bits = np.asarray(expected.embeddings, np.float32).view(np.uint32)
    assert (np.asarray(got["embeddings"], np.float32).view(np.uint32) == bits).all()
    assert got["usage"] == {"prompt_token_count": expected.usage.prompt_token_count}


def test_no_texts_have_no_embeddings(program: Program, host: Host, engine: LocalEngine) -> None:
    got = called(host, program, engine, "generate_embeddings", "tiny-embed", [])
    assert got == {"embeddings": [], "usage": {"prompt_token_count": 0}}


@pytest.mark.parametrize(
    ("kind", "function", "arguments"),
    [
        ("model-not-supported", "infer", ["tiny-embed", PROMPT]),
        ("model-not-supported", "generate_embeddings", ["no-such-model", TEXTS]),
        ("invalid-input", "infer", ["no-such-model", PROMPT]),
        ("invalid-input", "infer", ["tiny-chat", "the " * 5000]),
        ("runtime-error", "infer", ["broken-chat", PROMPT]),
    ],
    ids=["other kind", "unknown embedding model", "unknown model", "long prompt", "damaged"],
)
def test_each_error_arrives_by_its_name_with_the_text_of_the_python_api(
    kind: str,
    function: str,
    arguments: list[Any],
    program: Program,
    host: Host,
    engine: LocalEngine,
) -> None:
    got = called(host, program, engine, function, *arguments)
    assert got == result_or_error(engine, function, *arguments)
    assert got["error"] == kind


def test_a_model_that_spin_toml_does_not_give_is_the_access_error(
    program: Program, host: Host, roots: tuple[Path, ...]
) -> None:
    engine = LocalEngine(roots=roots, allowed_models=["tiny-embed"])
    got = called(host, program, engine, "infer", "llama2-chat", PROMPT)
    assert got == result_or_error(engine, "infer", "llama2-chat", PROMPT)
    assert "'ai_models' key" in got["message"]


# As an application on a port


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `refllm run` with an application that has each guest at a route of its own."""
    folder = tmp_path_factory.mktemp("application")
    model_roots(folder / ".spin" / "ai-models")
    manifest = ["spin_manifest_version = 2"]
    for sdk in SDKS:
        manifest += ["[[trigger.http]]", f'route = "{sdk.route}"', f'component = "{sdk.guest}"']
        manifest += [f"[component.{sdk.guest}]", f"source = '{source(sdk.guest, folder).name}'"]
        manifest += [f"ai_models = {[*bundled.STAND_INS, 'tiny-chat']}"]
    (folder / "spin.toml").write_text("\n".join(manifest))
    with running(folder, "--stand-ins") as (_, announced):
        yield announced[0].removeprefix("Serving ")


def test_refllm_run_serves_the_example_and_a_call_on_a_port(
    url: str, sdk: Sdk, engine: LocalEngine
) -> None:
    with urllib.request.urlopen(f"{url}{sdk.route}", timeout=HUNG_SECONDS) as response:
        assert response.read().decode() == engine.infer(*sdk.example).text
    call = json.dumps({"function": "infer", "arguments": ["tiny-chat", PROMPT]}).encode()
    with urllib.request.urlopen(f"{url}{sdk.route}", call, timeout=HUNG_SECONDS) as response:
        assert json.load(response) == asdict(engine.infer("tiny-chat", PROMPT))


# What the SDKs send, and the tables of it


def sent(params: InferencingParams | None) -> str:
    """Parameters as the tables have them."""
    if params is None:
        return "none"
    return ", ".join(f"{np.float32(value):g}" for value in asdict(params).values())


def row(name: str, version: str, recorder: Recorder) -> str:
    """A row, from calls without options and with zeros."""
    without_options, zeros = recorder.params
    return f"| {name} | {version} | {sent(without_options)} | {sent(zeros)} |"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_table_of_what_an_sdk_sends_is_what_arrives(
    document: Path, sdk: Sdk, program: Program, host: Host
) -> None:
    recorder = Recorder()
    called(host, program, recorder, "infer", "tiny-chat", PROMPT)
    called(host, program, recorder, "infer_with_options", "tiny-chat", PROMPT, ZEROS)
    assert row(sdk.name, sdk.version, recorder) in document.read_text("utf-8").splitlines()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_both_documents_have_the_same_table(document: Path) -> None:
    table = re.findall(r"^\| [RTP]\w+ `.*$", document.read_text("utf-8"), re.MULTILINE)
    assert [line for line in table if "wasi:http" not in line] == [
        line
        for line in DOCUMENTS[0].read_text("utf-8").splitlines()
        if re.match(r"\| (Rust|TypeScript|Python) `", line)
    ]


def test_a_temperature_that_is_nearly_zero_takes_the_likeliest_token(engine: LocalEngine) -> None:
    """What the page names instead of the zero that an SDK replaces."""
    nearly, zero = (InferencingParams(temperature=value) for value in (1e-30, 0.0))
    assert engine.infer("tiny-chat", PROMPT, nearly) == engine.infer("tiny-chat", PROMPT, zero)


@pytest.mark.parametrize(
    ("guest", "name", "version"),
    [
        *((sdk.guest, sdk.name, sdk.version) for sdk in SDKS),
        ("python_5", "Python `spin-sdk`", "5.0.0"),
    ],
    ids=lambda value: value if "`" not in value else "",
)
def test_the_table_of_the_sdks_has_the_handler_and_what_hosts_it(
    guest: str, name: str, version: str
) -> None:
    engine = engine_with_limits()
    exports = compiled(engine, component(guest)).type.exports(engine)
    [handler] = [export for export in exports if export.startswith("wasi:http/")]
    shown = f"| {name} | {version} | `{handler}` | {host_of(guest)} |"
    assert shown in DOCUMENTS[1].read_text("utf-8").splitlines()


def test_the_version_in_the_tables_is_the_one_that_the_guest_has(sdk: Sdk) -> None:
    recipe = GUESTS[sdk.guest]
    manifests = [*(PROJECT / "tests" / "guests" / sdk.guest).glob("package.json")]
    manifests += (PROJECT / "tests" / "guests" / sdk.guest).glob("Cargo.toml")
    pinned = " ".join(recipe.packages) if isinstance(recipe, Python) else manifests[0].read_text()
    package = sdk.name.split("`")[1]
    line = next(line for line in pinned.splitlines() if package in line)
    assert sdk.version in line


# Through Spin's remote protocol


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The engine of a runtime configuration that names a `refllm serve` with the same models."""
    folder = tmp_path_factory.mktemp("remote")
    model_roots(folder / ".spin" / "ai-models")
    with running_server(["--token", TOKEN], folder=folder) as server:
        path = folder / "runtime-config.toml"
        path.write_text(
            f'[llm_compute]\ntype = "remote_http"\nurl = "{server.url}"\nauth_token = "{TOKEN}"\n'
        )
        yield engine_from_runtime_config(path)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("infer", ["llama2-chat", PROMPT]),
        ("infer_with_options", ["tiny-chat", PROMPT, USABLE[-1]]),
        ("infer_with_options", ["tiny-chat", PROMPT, {"temperature": 0.0, "max_tokens": 9}]),
        ("generate_embeddings", ["tiny-embed", TEXTS]),
    ],
    ids=["no options", "all options", "a zero", "embeddings"],
)
def test_a_server_that_spin_s_remote_protocol_asks_gives_a_guest_the_same(
    function: str,
    arguments: list[Any],
    program: Program,
    host: Host,
    engine: LocalEngine,
    remote: Engine,
) -> None:
    got = called(host, program, remote, function, *arguments)
    assert got == called(host, program, engine, function, *arguments)
    assert "error" not in got


@pytest.mark.parametrize(
    ("kind", "function", "arguments"),
    [
        ("model-not-supported", "generate_embeddings", ["no-such-model", TEXTS]),
        ("invalid-input", "infer", ["no-such-model", PROMPT]),
        ("runtime-error", "infer", ["broken-chat", PROMPT]),
    ],
)
def test_each_error_of_a_server_arrives_by_its_name(
    kind: str,
    function: str,
    arguments: list[Any],
    program: Program,
    host: Host,
    remote: Engine,
) -> None:
    got = called(host, program, remote, function, *arguments)
    assert got == result_or_error(remote, function, *arguments)
    assert got["error"] == kind
