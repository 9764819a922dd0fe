"""Every target by its name."""

from __future__ import annotations

from collections.abc import Mapping

from tools.attack.target import Target

__all__ = ["TARGETS"]

TARGETS: Mapping[str, Target] = {target.name: target for target in ()}
