"""One limit on a guest's memory, shared out among its memories and tables.

wasmtime limits how many memories and tables a store may have, and how large each may be, but not
their sum. So a guest may have as many as its component instantiates, which is found out by trying,
and each may have an equal share of the limit. Nearly every component has one memory, whose share is
then the whole but for what the tables get; components composed of several have several.

Other memory of wasmtime for a guest (its code, its stack, what is behind its handles) is not in the
sum.
"""

from __future__ import annotations

import re

from wasmtime import Store

__all__ = ["Shares"]

TABLE_ELEMENT_BYTES = 8
PART_OF_TABLES = 64  # one part in so many: of 512 MiB a million functions, of which CPython has 1%

# What the SDKs of Python and JavaScript build has 1 memory, 2 tables and below 100 instances, once
# for each component of a composition.
MOST_INSTANCES = 1000
MOST_OF_EACH = 1000

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
            instances=MOST_INSTANCES,
        )

    def learn(self, error: str) -> bool:
        """Whether an instance failed because it has more than was known; now more is known."""
        found = TOO_FEW.search(error)
        if found is None:
            return False
        count = int(found[2])
        if count > MOST_OF_EACH:
            return False
        if found[1] == "memory":
            self._memories = max(self._memories, count)
        else:
            self._tables = max(self._tables, count)
        return True
