"""The table of docs/security.md, from the recorded counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.attack.judge import OUTCOMES
from tools.attack.targets import TARGETS

__all__ = ["PAGE", "RESULTS", "page_with_table", "write_page"]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "attacks" / "results.json"
PAGE = ROOT / "docs" / "security.md"
BEGIN = "<!-- attacks: begin -->\n"
END = "<!-- attacks: end -->\n"
HEADS = ("input", "tried", "a result", *OUTCOMES[1:], "faults", "longest, s", "largest, MB")


def write_page() -> None:
    """Write the table of the recorded counts into the page."""
    PAGE.write_text(page_with_table(PAGE.read_text()))


def page_with_table(page: str) -> str:
    """The page, with the table that the recorded counts make between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{_table(json.loads(RESULTS.read_text()))}{END}{after}"


def _table(recorded: Mapping[str, Any]) -> str:
    rows = [HEADS, ("---", *["---:"] * (len(HEADS) - 1))]
    rows += [
        _row(target.what, recorded[name]) for name, target in TARGETS.items() if name in recorded
    ]
    total = sum(sum(row["outcomes"].values()) for row in recorded.values())
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return f"{table}\n{total:,} inputs in all.\n"


def _row(what: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    outcomes = row["outcomes"]
    n_tried = sum(outcomes.values())
    n_faults = n_tried - sum(outcomes.get(outcome, 0) for outcome in OUTCOMES)
    counts = (n_tried, *(outcomes.get(outcome, 0) for outcome in OUTCOMES), n_faults)
    return (what, *(f"{n:,}" for n in counts), f"{row['longest_s']}", f"{row['largest_mb']}")
