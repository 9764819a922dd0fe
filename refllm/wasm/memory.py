"""One limit on a guest's memory, shared out among its memories and tables.

wasmtime limits how many memories and tables a store may have, and how large each may be, but not
their sum. So a guest may have as many as its component instantiates, which is found by trial, and
each gets an equal share of the limit. Nearly every component has one memory, which gets all but the
part of the tables; a component composed of several has several.

Other memory of wasmtime for a guest (its code, its stack, the objects behind its handles) is not in
the sum.
"""

from __future__ import annotations

import re

from wasmtime import Store

__all__ = ["Shares"]

TABLE_ELEMENT_BYTES = 8
PART_OF_TABLES = 64  # 1/64 of the limit: of 512 MiB a million functions; CPython has 1% of them

# What the SDKs of Python and JavaScript build has 1 memory, 2 tables and below 100 instances, once
# for each component of a composition.
MAX_INSTANCES = 1000
MAX_OF_EACH = 1000

TOO_FEW = re.compile(r"resource limit exceeded: (memory|table) count too high at (\d+)")


class Shares:
    """How many memories and tables the instances of a component have, as far as is known."""

    def __init__(self) -> None:
        self._memories = 0
        self._tables = 0

    def limit(self, store: Store, n_bytes: int) -> None:
        """Let the memories and tables of the store take `n_bytes` together."""
        of_tables = n_bytes // PART_OF_TABLES if self._tables else 0
        store.set_limits(
            memory_size=(n_bytes - of_tables) // max(1, self._memories),
            table_elements=of_tables // TABLE_ELEMENT_BYTES // max(1, self._tables),
            memories=self._memories,
            tables=self._tables,
            instances=MAX_INSTANCES,
        )

    def learn(self, error: str) -> bool:
        """Return whether an instance failed for having more than known; keep the new number."""
        found = TOO_FEW.search(error)
        if found is None:
            return False
        count = int(found[2])
        if count > MAX_OF_EACH:
            return False
        if found[1] == "memory":
            self._memories = max(self._memories, count)
        else:
            self._tables = max(self._tables, count)
        return True
