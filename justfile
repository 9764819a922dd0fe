# Tasks for people who work on refllm; `just --list` shows them.

# Everything that a change must pass.
check: lint types test

# Style, and formatting as the formatter has it.
lint:
    ruff check .
    ruff format --check .

# Types, tests and tools included.
types:
    mypy
    lint-imports

# The whole default suite.
test:
    pytest

# The tests of one minute, once kernels are compiled.
quick:
    pytest -m quick

# The documentation as a site, in docs/_build/html; notebooks that did not change are not run again.
docs:
    python -m sphinx -W --keep-going docs docs/_build/html

# Every link of the documentation, those to other sites included.
links:
    python -m sphinx -b linkcheck docs docs/_build/links

# What CHANGELOG.md would get from changelog.d/ for a version: `just changes 0.2.0`.
changes version:
    towncrier build --draft --version {{version}}

# Format every file.
format:
    ruff format .
    ruff check --fix .

# Worst errors of the elementary functions over every float32 (about ten minutes).
measure-math:
    python tools/measure_math.py

# Every golden file, and the manifest (two minutes).
goldens:
    python -m tools.goldens

# How well the models that ship with refllm do, on prompts and sentences that they have not seen.
score-tiny:
    python -m tools.score_tiny_chat refllm/models/bundled/llama/tiny-chat.gguf
    python -m tools.score_tiny_embed refllm/models/bundled/bert/tiny-embed.gguf

# Speed beside other engines: `just bench decode`, with options before the command.
bench *arguments:
    python -m benchmarks {{arguments}}
