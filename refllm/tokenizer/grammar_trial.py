"""The process that tries a grammar: `python -m refllm.tokenizer.grammar_trial`.

A schema comes from a client. Most compile in a millisecond, but a short one may be the product of
many choices. A thread that compiles cannot be ended, nor can a library's lack of memory be caught,
so `refllm.tokenizer.grammar.try_grammar` starts this process. It reads a grammar from standard
input and writes the reason of a refusal, or nothing; at a limit its exit code is not 0.

This module imports llguidance and the standard library, so that the process starts in a tenth of a
second.
"""

from __future__ import annotations

import contextlib
import sys

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

__all__ = ["compiled", "limit_resources", "main"]

CPU_SECONDS = 2  # the interpreter's start included
MEMORY_BYTES = 2**30

# Fuel is llguidance's measure of work. By its documentation its lexer uses about 14,000 of it in a
# millisecond, and 50,000 when it begins.
LIMITS = LLParserLimits(
    max_items_in_row=2_000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    precompute_large_lexemes=False,  # else the time would depend on the vocabulary
    verbose_errors=False,
)


def compiled(grammar: str, tokens: LLTokenizer) -> LLMatcher:
    """Return a matcher at the beginning of a text, or in its error state."""
    return LLMatcher(tokens, grammar, log_level=0, limits=LIMITS)


def limit_resources(cpu_seconds: int = CPU_SECONDS) -> None:
    """Bound CPU time and address space, and write no core dump, as far as the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for limit, most in limits.items():
        with contextlib.suppress(OSError, ValueError):  # macOS has no RLIMIT_AS that can be set
            resource.setrlimit(limit, (most, most))


def main() -> None:
    """Compile the grammar of standard input for a vocabulary of single bytes."""
    grammar = sys.stdin.buffer.read().decode()
    limit_resources()
    sys.stdout.write(compiled(grammar, LLTokenizer("byte")).get_error())


if __name__ == "__main__":
    main()
