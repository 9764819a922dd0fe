"""Files that seem to belong to another user."""

from __future__ import annotations

import os
from collections.abc import Callable

__all__ = ["ANOTHER_USER", "owned_by_another"]

ANOTHER_USER = 4242
UID = 4  # the place of the owner in a stat_result


def owned_by_another(
    function: Callable[..., os.stat_result], owned: Callable[[object], bool] = lambda _: True
) -> Callable[..., os.stat_result]:
    """Return `os.lstat` or `os.fstat` with another owner for the files that `owned` selects."""

    def stat_result(file: object) -> os.stat_result:
        fields = list(function(file))
        if owned(file):
            fields[UID] = ANOTHER_USER
        return os.stat_result(fields)

    return stat_result
