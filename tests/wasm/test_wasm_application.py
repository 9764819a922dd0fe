"""spin.toml as `refllm run` reads it: routes, components, variables and files."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from refllm.api import InvalidInput, LlmRuntimeError
from refllm.wasm.http.application import Application, open_application
from refllm.wasm.http.files import folder_of
from refllm.wasm.http.routes import Route, best_match

VERSION_2 = """
spin_manifest_version = 2
application = { name = "jokes" }

[variables]
tone = { default = "dry" }
key = { required = true }

[[trigger.http]]
route = "/..."
component = "teller"

[[trigger.http]]
route = "/quiet/:id"
component = { source = "quiet.wasm" }

[[trigger.http]]
route = { private = true }
component = "helper"

[[trigger.redis]]
channel = "jokes"
component = "helper"

[component.teller]
source = "build/teller.wasm"
ai_models = ["llama2-chat"]
environment = { LANG = "en" }
variables = { manner = "{{ tone }} and {{key}}" }
files = ["texts/*.txt"]

[component.helper]
source = "helper.wasm"
"""
VERSION_1 = """
spin_manifest_version = "1"
name = "jokes"
trigger = { type = "http", base = "/v1" }

[variables]
tone = { default = "dry" }

[[component]]
id = "teller"
source = "teller.wasm"
ai_models = ["llama2-chat"]
[component.trigger]
route = "/tell"
[component.config]
manner = "{{ tone }}"
"""


def opened(folder: Path, text: str, environment: Mapping[str, str] | None = None) -> Application:
    (folder / "spin.toml").write_text(text, "utf-8")
    return open_application(folder, environment or {"SPIN_VARIABLE_KEY": "short"})


def test_each_route_leads_to_its_component(tmp_path: Path) -> None:
    routes = opened(tmp_path, VERSION_2).routes
    assert routes == (Route("/...", "teller"), Route("/quiet/:id", "inline-component0"))


def test_a_component_has_what_the_manifest_gives_it(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    teller = opened(tmp_path, VERSION_2).components["teller"]
    assert teller.source == tmp_path / "build" / "teller.wasm"
    assert teller.ai_models == ("llama2-chat",)
    assert teller.environment == {"LANG": "en"}
    assert teller.variables == {"manner": "dry and short"}
    assert teller.files == {"texts": {"a.txt": tmp_path / "texts" / "a.txt"}}


def test_a_component_without_ai_models_may_use_none(tmp_path: Path) -> None:
    assert opened(tmp_path, VERSION_2).components["inline-component0"].ai_models == ()


def test_a_component_that_no_public_route_leads_to_is_left_out(tmp_path: Path) -> None:
    assert "helper" not in opened(tmp_path, VERSION_2).components


def test_the_environment_s_value_of_a_variable_wins_over_its_default(tmp_path: Path) -> None:
    environment = {"SPIN_VARIABLE_KEY": "short", "SPIN_VARIABLE_TONE": "wet"}
    teller = opened(tmp_path, VERSION_2, environment).components["teller"]
    assert teller.variables == {"manner": "wet and short"}


def test_a_variable_without_a_value_names_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(LlmRuntimeError, match="set SPIN_VARIABLE_KEY, or give it a default"):
        opened(tmp_path, VERSION_2, {"HOME": "/"})


def test_version_1_has_a_base_for_all_routes(tmp_path: Path) -> None:
    application = opened(tmp_path, VERSION_1)
    assert [route.path for route in application.routes] == ["/v1/tell"]
    assert application.components["teller"].variables == {"manner": "dry"}


def test_a_component_alone_answers_everything_and_may_use_every_model(tmp_path: Path) -> None:
    path = tmp_path / "app.wasm"
    path.touch()
    application = open_application(path, {})
    assert application.routes == (Route("/...", "app"),)
    assert application.components["app"].ai_models is None


@pytest.mark.parametrize("name", ["nowhere", "nowhere" * 100, "nowhere\0"])
def test_an_application_that_is_not_there_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"there is no application at .*nowhere"):
        open_application(tmp_path / name, {})


def test_a_variable_of_variables_does_not_grow_without_end(tmp_path: Path) -> None:
    default = "x" * 100_000
    template = "{{ tone }}" * 100
    text = (
        f"[variables]\ntone = {{ default = '{default}' }}\n[[trigger.http]]\nroute = '/'\n"
        f"component = {{ source = 'a', variables = {{ long = '{template}' }} }}"
    )
    with pytest.raises(LlmRuntimeError, match="variable long is longer than 1048576 characters"):
        opened(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spin_manifest_version = 2", "has no HTTP trigger"),
        ("[[trigger.http]]\nroute = 'x'\ncomponent = 'a'", "must begin with a slash"),
        ("[[trigger.http]]\nroute = '/'\ncomponent = 'a'", "leads to no component"),
        (
            "[[trigger.http]]\nroute = '/'\ncomponent = {}",
            "source of component 'inline-component0'",
        ),
        (
            "[[trigger.http]]\nroute = '/'\ncomponent = { source = { url = 'https://a' } }",
            "fetch one that is elsewhere first",
        ),
        (
            "[[trigger.http]]\nroute = '/'\ncomponent = { source = 'a', environment = { A = 1 } }",
            "environment.A must be text",
        ),
        (
            "[[trigger.http]]\nroute = '/'\ncomponent = { source = 'a', files = 'b' }",
            "files must be a list",
        ),
    ],
)
def test_a_manifest_that_cannot_be_run_is_named_with_what_is_wrong(
    text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(LlmRuntimeError) as caught:
        opened(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'spin.toml'}: ")
    assert message in str(caught.value)


# --- Routes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "path", "path_info"),
    [
        ("/cart", "/cart", ""),
        ("/cart", "/cart/", ""),
        ("/cart", "/cart/checkout", None),
        ("/cart", "/", None),
        ("/", "/", ""),
        ("/...", "/", "/"),
        ("/...", "/a/b", "/a/b"),
        ("/users/...", "/users", ""),
        ("/users/...", "/users/", "/"),
        ("/users/...", "/users/1/", "/1/"),
        ("/users/...", "/users/a%2Fb", "/a%2Fb"),
        ("/users/...", "/users/1/edit", "/1/edit"),
        ("/users/...", "/usersandmore", None),
        ("/users/:id/edit", "/users/1/edit", ""),
        ("/users/:id/edit", "/users/1", None),
        ("/users/:id/...", "/users/1/a/b", "/a/b"),
    ],
)
def test_a_route_matches_the_paths_that_it_matches_in_spin(
    pattern: str, path: str, path_info: str | None
) -> None:
    match = Route(pattern, "c").match(path)
    assert (None if match is None else match.path_info) == path_info


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("/users/me", "/users/me"),
        ("/users/1", "/users/:id"),
        ("/users/1/edit", "/users/..."),
        ("/elsewhere", "/..."),
    ],
)
def test_the_most_specific_route_wins(path: str, pattern: str) -> None:
    patterns = ["/...", "/users/...", "/users/:id", "/users/me"]
    match = best_match([Route(pattern, "c") for pattern in patterns], path)
    assert match is not None
    assert match.route.pattern == pattern


def test_of_two_routes_that_are_the_same_the_last_wins() -> None:
    match = best_match([Route("/a", "first"), Route("/a", "last"), Route("/...", "all")], "/a")
    assert match is not None
    assert match.route.component == "last"


def test_no_route_matches_where_none_does() -> None:
    assert best_match([Route("/a", "c")], "/b") is None


def test_a_component_gets_the_headers_that_spin_sets() -> None:
    match = Route("/users/:user_ID/...", "c", base="/shop").match("/shop/users/1/edit")
    assert match is not None
    url = "http://localhost:3000/shop/users/1/edit?theme=pink"
    assert dict(match.headers(full_url=url, client="127.0.0.1:53152")) == {
        "spin-full-url": url.encode(),
        "spin-path-info": b"/edit",
        "spin-matched-route": b"/shop/users/:user_ID/...",
        "spin-raw-component-route": b"/users/:user_ID/...",
        "spin-component-route": b"/users/:user_ID",
        "spin-base-path": b"/shop",
        "spin-client-addr": b"127.0.0.1:53152",
        "spin-path-match-user-id": b"1",
    }


# --- Files ---------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "public" / "images").mkdir(parents=True)
    for name in ("index.html", "images/a.png", "images/b.png"):
        (tmp_path / "public" / name).touch()
    return tmp_path


def paths_in(folder: object, at: str = "") -> list[str]:
    if not isinstance(folder, Mapping):
        return [at]
    return [path for name, inner in folder.items() for path in paths_in(inner, f"{at}/{name}")]


@pytest.mark.parametrize(
    ("files", "seen"),
    [
        ([], []),
        (["public/index.html"], ["/public/index.html"]),
        (["public/*.html"], ["/public/index.html"]),
        (["**/*.png"], ["/public/images/a.png", "/public/images/b.png"]),
        (["public/*"], ["/public/index.html"]),
        (["no*"], []),
        (["public/images"], ["/public/images/a.png", "/public/images/b.png"]),
        (
            [{"source": "public/images", "destination": "/"}],
            ["/a.png", "/b.png"],
        ),
        ([{"source": "public/index.html", "destination": "/x/y.html"}], ["/x/y.html"]),
    ],
)
def test_patterns_and_mounts_put_files_where_spin_does(
    files: list[object], seen: list[str], here: Path
) -> None:
    assert sorted(paths_in(folder_of(here / "spin.toml", files, []))) == seen


@pytest.mark.parametrize(
    ("excluded", "left"),
    [
        (["**/b.png"], ["/public/images/a.png", "/public/index.html"]),
        (["**/public/**/index.html"], ["/public/images/a.png", "/public/images/b.png"]),
        (["public/*.png"], ["/public/index.html"]),
        (["*.html", "**/[ab].png"], []),
    ],
)
def test_excluded_files_are_left_out(excluded: list[str], left: list[str], here: Path) -> None:
    folder = folder_of(here / "spin.toml", ["public/**/*"], excluded)
    assert sorted(paths_in(folder)) == left


def test_an_exclude_pattern_excludes_nothing_outside_its_folder(here: Path) -> None:
    (here / "app").mkdir()
    mount = {"source": str(here / "public" / "index.html"), "destination": "/index.html"}
    folder = folder_of(here / "app" / "spin.toml", [mount], ["*"])
    assert paths_in(folder) == ["/index.html"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is UTF-8")
def test_a_guest_sees_question_marks_in_a_file_name_that_is_not_utf_8(here: Path) -> None:
    (here / os.fsdecode(b"\xff.txt")).touch()
    assert paths_in(folder_of(here / "spin.toml", ["*.txt"], [])) == ["/?.txt"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([3], "must be a list of patterns"),
        ([{"source": "public"}], "need a source and a destination"),
        ([{"source": "nowhere", "destination": "/"}], "there is no nowhere"),
        ([{"source": "public", "destination": "/../x"}], "leads out of"),
        (["nowhere/a.txt"], "there is no nowhere/a.txt"),
        (["x" * 300], "name too long"),
        (["/etc/*"], "leads out of"),
        (["../*"], "leads out of"),
        (["public/../../*"], "leads out of"),
        (["/"], "leads out of"),
        (["a\0b"], "there is no a"),
        ([{"source": "a\0b", "destination": "/"}], "there is no a"),
        (["a**"], "must be a whole folder"),
        (["a"] * 1001, "of at most 1000"),
        (["/etc"], "leads out of"),
        (
            [
                "public/images/a.png",
                {"source": "public/index.html", "destination": "/public/images"},
            ],
            "images is a file and a folder",
        ),
        (
            [{"source": "public/index.html", "destination": "/public"}, "public/images/a.png"],
            "public is a file and a folder",
        ),
    ],
)
def test_files_that_cannot_be_given_are_named(
    files: list[object], message: str, here: Path
) -> None:
    with pytest.raises(LlmRuntimeError) as caught:
        folder_of(here / "spin.toml", files, [])
    assert message in str(caught.value)


@pytest.mark.parametrize("files", [["**/*"], ["public"], [{"source": ".", "destination": "/"}]])
def test_only_so_many_entries_of_folders_are_looked_at(files: list[object], here: Path) -> None:
    manifest = here / "spin.toml"
    assert folder_of(manifest, files, [], max_entries=10)
    with pytest.raises(LlmRuntimeError) as caught:
        folder_of(manifest, files, [], max_entries=3)
    assert str(caught.value).startswith(f"{manifest}: files: more than 3 entries of folders")


def test_only_the_folders_that_a_pattern_can_mean_are_looked_at(here: Path) -> None:
    for files in (["*.toml"], ["public/images/*"], ["public/*"]):
        within, all_of_it = (
            paths_in(folder_of(here / "spin.toml", files, [], max_entries=most))
            for most in (3, 100)
        )
        assert within == all_of_it


def test_folders_that_lead_in_a_circle_are_walked_once(here: Path) -> None:
    (here / "public" / "again").symlink_to(here / "public", target_is_directory=True)
    (here / "public" / "itself").symlink_to(here / "public" / "itself")
    folder = folder_of(here / "spin.toml", ["**/*.html"], [], max_entries=20)
    assert paths_in(folder) == ["/public/index.html"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with a name")
def test_a_pipe_is_no_file(here: Path) -> None:
    os.mkfifo(here / "public" / "pipe")
    assert "/public/pipe" not in paths_in(folder_of(here / "spin.toml", ["public/*"], []))
    with pytest.raises(LlmRuntimeError, match="pipe' is no file and no folder"):
        folder_of(here / "spin.toml", ["public/pipe"], [])
