"""Hostile inputs by the thousand: what refllm reads from outside, damaged in every way.

    python -m tools.attack                         every target, 1000 inputs each
    python -m tools.attack gguf http --inputs 50000 --jobs 2
    python -m tools.attack gguf --only 1234        one input again, by its number
    python -m tools.attack --page                  the table of docs/security.md

Each input is built from the target's name, a seed and its number, so that these three bring it
back. A child process gives it to refllm twice, watched by this one: it must end in a result, finite
and equal both times, or in one of the interface's three errors, within the time and the memory that
`judge.py` states. Anything else is a fault, and is reported with the command that repeats it.
"""
