"""Functions of one line: what each does, and how it is written in Python and in Rust."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FUNCTIONS", "Function"]


@dataclass(frozen=True, slots=True)
class Function:
    """What it does ("adds two numbers"), and the function in both languages."""

    what: str
    python: str
    rust: str

    @property
    def do(self) -> str:
        """What it is asked to do: "add two numbers"."""
        verb, _, rest = self.what.partition(" ")
        return f"{verb.removesuffix('s')} {rest}"


FUNCTIONS = (
    Function(
        "adds two numbers",
        "def add(a, b): return a + b",
        "fn add(a: i32, b: i32) -> i32 { a + b }",
    ),
    Function(
        "subtracts two numbers",
        "def subtract(a, b): return a - b",
        "fn subtract(a: i32, b: i32) -> i32 { a - b }",
    ),
    Function(
        "multiplies two numbers",
        "def multiply(a, b): return a * b",
        "fn multiply(a: i32, b: i32) -> i32 { a * b }",
    ),
    Function(
        "doubles a number",
        "def double(x): return 2 * x",
        "fn double(x: i32) -> i32 { 2 * x }",
    ),
    Function(
        "squares a number",
        "def square(x): return x * x",
        "fn square(x: i32) -> i32 { x * x }",
    ),
    Function(
        "negates a number",
        "def negate(x): return -x",
        "fn negate(x: i32) -> i32 { -x }",
    ),
    Function(
        "returns the larger of two numbers",
        "def larger(a, b): return max(a, b)",
        "fn larger(a: i32, b: i32) -> i32 { a.max(b) }",
    ),
    Function(
        "returns the smaller of two numbers",
        "def smaller(a, b): return min(a, b)",
        "fn smaller(a: i32, b: i32) -> i32 { a.min(b) }",
    ),
    Function(
        "tells whether a number is even",
        "def is_even(x): return x % 2 == 0",
        "fn is_even(x: i32) -> bool { x % 2 == 0 }",
    ),
    Function(
        "returns the length of a text",
        "def length(text): return len(text)",
        "fn length(text: &str) -> usize { text.len() }",
    ),
    Function(
        "turns a text into upper case",
        "def upper(text): return text.upper()",
        "fn upper(text: &str) -> String { text.to_uppercase() }",
    ),
    Function(
        "says hello",
        'def hello(): return "Hello!"',
        'fn hello() -> &\'static str { "Hello!" }',
    ),
    Function(
        "divides two numbers",
        "def divide(a, b): return a / b",
        "fn divide(a: f64, b: f64) -> f64 { a / b }",
    ),
    Function(
        "sorts a list of numbers",
        "def sort(values): return sorted(values)",
        "fn sort(mut values: Vec<i32>) -> Vec<i32> { values.sort(); values }",
    ),
    Function(
        "sums a list of numbers",
        "def total(values): return sum(values)",
        "fn total(values: &[i32]) -> i32 { values.iter().sum() }",
    ),
    Function(
        "reverses a text",
        "def reverse(text): return text[::-1]",
        "fn reverse(text: &str) -> String { text.chars().rev().collect() }",
    ),
)
