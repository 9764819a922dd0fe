"""Profiles of known deviations: their files, and that they know what they claim to know."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from refllm.api import InferencingParams, InvalidInput, LlmError
from refllm.conform.case import Case
from refllm.conform.compare.api import compare_api
from refllm.conform.profiles import (
    Profile,
    load_profile,
    profile_names,
    require_known_cases,
)
from refllm.conform.reply import Answer
from refllm.conform.suite import load_suite
from refllm.conform.targets.http import HttpTarget, Protocol
from refllm.conform.wire import decoded
from refllm.sampling import sample
from tests.support.golden_api import CASES, TOKEN, answer, name, serving

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
FOLDER = GOLDEN / "profiles"
NAMES = profile_names(GOLDEN)
OPERATIONS = [case for case in CASES if case.input["operation"] != "http"]
HTTP_CASES = [case for case in CASES if any(case.input["spellings"].values())]


def case_ids() -> set[str]:
    """The ids of every case that there is, with those of the older sampling format."""
    ids = set()
    for path in GOLDEN.glob("*/cases.json"):
        for case in json.loads(path.read_text(encoding="utf-8"))["cases"]:
            ids.add(f"{path.parent.name}/{case['id'].rpartition('/')[2]}")
    return ids


IDS = case_ids()
GROUPS = {case_id.partition("/")[0] for case_id in IDS}


# --- The files -----------------------------------------------------------------------------------


def test_spin_s_engine_and_llama_cpp_have_one() -> None:
    assert NAMES == ["llama.cpp", "spin-local"]


@pytest.mark.parametrize("profile", NAMES)
def test_a_profile_follows_the_schema_and_has_its_file_s_name(profile: str) -> None:
    schema = json.loads((FOLDER / "schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    document = tomllib.loads((FOLDER / f"{profile}.toml").read_text(encoding="utf-8"))
    jsonschema.validate(document, schema, cls=jsonschema.Draft202012Validator)
    assert load_profile(profile).name == profile


@pytest.mark.parametrize("profile", NAMES)
def test_every_pattern_names_a_case(profile: str) -> None:
    ids = [case.id for case in load_suite().cases]
    assert load_profile(profile).unmatched(ids) == ()
    require_known_cases(load_profile(profile), ids)


@pytest.mark.parametrize("profile", NAMES)
def test_every_deviation_is_the_first_that_names_some_case(profile: str) -> None:
    known = load_profile(profile)
    first = {known.deviation_of(case_id) for case_id in IDS}
    for deviation in known.deviations:
        groups = {pattern.partition("/")[0] for pattern in deviation.cases}
        assert deviation in first or not groups <= GROUPS, deviation.cases


# --- What they know ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spin_local() -> Profile:
    return load_profile("spin-local")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(profile="spin-local") as url:
        yield url


def agrees(profile: Profile, case: Case, *, has_passed: bool) -> bool:
    """Whether the case came out as the profile says."""
    deviation = profile.deviation_of(case.id)
    if deviation is None:
        return has_passed
    return deviation.may_pass or not has_passed


@pytest.mark.parametrize("case", OPERATIONS, ids=name)
def test_spin_s_engine_fails_what_its_profile_lists(case: Case, spin_local: Profile) -> None:
    has_passed = compare_api(case, answer(case, profile="spin-local")) is None
    assert agrees(spin_local, case, has_passed=has_passed)


PROTOCOLS: tuple[Protocol, ...] = ("spin", "openai")
SAID = [
    pytest.param(protocol, case, id=f"{protocol}-{name(case)}")
    for protocol in PROTOCOLS
    for case in HTTP_CASES
    if protocol not in case.input.get("not_in", {})
]


@pytest.mark.parametrize(("protocol", "case"), SAID)
def test_a_server_of_spin_s_engine_fails_the_same(
    protocol: Protocol, case: Case, url: str, spin_local: Profile
) -> None:
    target = HttpTarget(url, protocol=protocol, token=TOKEN)
    target.start()
    reply = target.run(case)
    assert isinstance(reply, Answer), reply
    has_passed = compare_api(case, reply.result) is None
    assert agrees(spin_local, case, has_passed=has_passed)


@pytest.mark.parametrize("profile", NAMES)
def test_the_order_of_the_samplers_changes_the_token_of_every_case_that_is_listed(
    profile: str,
) -> None:
    known = load_profile(profile)
    document = json.loads((GOLDEN / "sampling" / "cases.json").read_text(encoding="utf-8"))
    listed = [
        case
        for case in document["cases"]
        if known.deviation_of(f"sampling/{case['id']}") is not None
    ]
    assert len(listed) > 5
    for case in map(decoded, listed):
        logits = np.array(case["logits"], np.float32)
        params = InferencingParams(**case["params"])
        try:
            step = sample(logits, params, case["previous_tokens"], case["u"], profile=profile)
        except LlmError:
            continue
        assert step.token != case["token"], case["id"]


# --- Reading them --------------------------------------------------------------------------------

WHOLE = """
name = "mine"
about = "My backend."

[[deviation]]
cases = ["text/*", "api/a"]
except = ["text/b*"]
because = "It is so."
link = "https://example.com/why"

[[deviation]]
cases = ["text/b1", "api/a"]
because = "It may be so."
link = "https://example.com/perhaps"
may_pass = true
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(WHOLE, encoding="utf-8")
    return path


def test_the_first_deviation_that_names_a_case_counts(mine: Path) -> None:
    profile = load_profile(str(mine))
    because = {
        case_id: deviation.because
        for case_id in ("text/a", "text/b1", "text/b2", "api/a", "api/b")
        if (deviation := profile.deviation_of(case_id)) is not None
    }
    assert because == {"text/a": "It is so.", "text/b1": "It may be so.", "api/a": "It is so."}


def test_a_deviation_has_whether_the_case_may_pass(mine: Path) -> None:
    profile = load_profile(str(mine))
    assert [deviation.may_pass for deviation in profile.deviations] == [False, True]


def test_a_pattern_that_matches_nothing_is_found_whether_cases_or_except_has_it(
    mine: Path,
) -> None:
    profile = load_profile(str(mine))
    assert profile.unmatched(["text/b1", "text/a", "api/a"]) == ()
    assert profile.unmatched(["text/a", "api/b"]) == ("api/a", "text/b*", "text/b1")


def test_a_pattern_that_matches_nothing_is_named_with_the_nearest_ids(mine: Path) -> None:
    ids = ["text/b1", "text/a", "api/b", "api/ab"]
    with pytest.raises(InvalidInput, match="the profile mine names cases that the suite") as caught:
        require_known_cases(load_profile(str(mine)), ids)
    assert caught.value.args[1:] == ("'api/a': the nearest ids are api/ab, api/b, text/a",)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('name = "mine"', "", "name must be text, got None"),
        ('"My backend."', "3", "about must be text, got 3"),
        ('because = "It is so."', "", "because must be text"),
        ('"https://example.com/why"', '"http://example.com"', "link must begin with https://"),
        ('["text/*", "api/a"]', "[]", r"cases must be a list of cases' ids, got \[\]"),
        ('["text/*", "api/a"]', '"text/*"', "cases must be a list of cases' ids, got 'text"),
        ('["text/b*"]', "[1]", r"except must be a list of cases' ids, got \[1\]"),
        ("may_pass = true", "may_pass = 1", "may_pass must be true or false, got 1"),
        ("may_pass", "maypass", "a deviation has no maypass; it has cases, except, because"),
        ("about", "abuot", "a profile has no abuot; it has name, about, deviation"),
        ('name = "mine"', "name = ", "mine.toml is not TOML: Invalid value"),
    ],
)
def test_a_malformed_profile_is_refused_with_the_reason(
    old: str, new: str, problem: str, mine: Path
) -> None:
    mine.write_text(WHOLE.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(InvalidInput, match=problem):
        load_profile(str(mine))


def test_a_profile_without_deviations_is_refused(mine: Path) -> None:
    mine.write_text('name = "mine"\nabout = "Mine."\n', encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"it must have \[\[deviation\]\] tables"):
        load_profile(str(mine))


def test_an_unknown_profile_is_refused_with_the_known_names() -> None:
    with pytest.raises(InvalidInput, match=r"Those of the suite are: llama\.cpp, spin-local"):
        load_profile("spin")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"absent\.toml: No such file"):
        load_profile(str(tmp_path / "absent.toml"))
