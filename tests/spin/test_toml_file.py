"""Files in TOML: what a long, deep or broken one costs, and that ordinary ones are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from refllm.api import LlmRuntimeError
from refllm.spin.toml import MAX_BYTES, MAX_KEY_PARTS, read_toml

DOTTED = ".".join("a" * (MAX_KEY_PARTS + 1))


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "a.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        f"{DOTTED} = 1",
        f"[{DOTTED}]",
        f"[[{DOTTED}]]",
        f"x = {{ {DOTTED} = 1 }}",
        f"x = [{{ {DOTTED} = 1 }}]",
        DOTTED.replace(".", " . ") + " = 1",
        DOTTED.replace(".", "\t.\t") + " = 1",
        DOTTED.replace("a", '"a"') + " = 1",
        DOTTED.replace("a", "''") + " = 1",
        f'x = """a""""\n{DOTTED} = 1',
        f"x = {{ y = '''a'''', {DOTTED} = 1 }}",
        f'x = """\\""""\n{DOTTED} = 1',
        f"x = 'a\\'\n{DOTTED} = 1",
        f'# it\'s """\n{DOTTED} = 1',
    ],
)
def test_a_key_of_too_many_parts_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(LlmRuntimeError, match="a key has more than 16 parts"):
        read_toml(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (f'x = "{DOTTED}"', DOTTED),
        (f"x = '{DOTTED}'", DOTTED),
        (f'x = """\n{DOTTED}\n{DOTTED}"""', f"{DOTTED}\n{DOTTED}"),
        (f"x = '''\n{DOTTED}''''", f"{DOTTED}'"),
        (f'x = "\\"{DOTTED}"', f'"{DOTTED}'),
        (f"x = 1 # {DOTTED}", 1),
        (f"x = [{', '.join(['1.5'] * 100)}]", [1.5] * 100),
        ("x = [\n" + "1.5,\n" * 100 + "]", [1.5] * 100),
        ("x = 1\r\n", 1),
        (f"x{DOTTED[1 : 2 * MAX_KEY_PARTS - 1].replace('a', 'x')} = 1", None),
    ],
)
def test_dots_that_part_no_key_are_read(text: str, value: object, tmp_path: Path) -> None:
    document = read_toml(written(tmp_path, text))
    assert value is None or document == {"x": value}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = " + "[" * 600 + "]" * 600, "nested too deeply"),
        ("x = " + "{a=" * 600 + "1" + "}" * 600, "nested too deeply"),
        ("#" * (MAX_BYTES + 1), f"longer than {MAX_BYTES} bytes"),
        ("x = " + "9" * 5000, "not valid TOML"),
        ('x = "\\ud800"', "not valid TOML"),
        (b"x = '\xff'", "not valid TOML"),
        ("x = 2026-99-99", "not valid TOML"),
        ('x = """', "not valid TOML"),
        ('x = """\\', "not valid TOML"),
        ('x = "\\', "not valid TOML"),
    ],
)
def test_a_file_beyond_what_is_read_is_named(
    text: str | bytes, message: str, tmp_path: Path
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(LlmRuntimeError) as caught:
        read_toml(path)
    assert str(caught.value).startswith(f"{path}: not valid TOML: ")
    assert message in str(caught.value)


def test_the_message_of_the_parser_is_shortened(tmp_path: Path) -> None:
    name = "a" * 10_000
    with pytest.raises(LlmRuntimeError) as caught:
        read_toml(written(tmp_path, f"[{name}]\n[{name}]"))
    assert len(str(caught.value)) < 1000


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="the system has no such file")
def test_a_file_without_end_is_not_read_to_it() -> None:
    with pytest.raises(LlmRuntimeError, match="longer than"):
        read_toml(Path("/dev/zero"))
