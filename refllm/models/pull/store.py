"""What every source of models shares: one pull at a time, and errors of the hub in one sentence."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from refllm.errors import LlmRuntimeError
from refllm.models.pull.wheel import is_of_the_disk, reason

__all__ = ["hub_problem", "only_pull"]


@contextmanager
def only_pull(lock: Path, name: str) -> Iterator[None]:
    """Hold the lock meanwhile, and remove it after a pull that succeeds.

    Errors: `LlmRuntimeError` where another pull of `name` holds it.
    """
    try:
        with FileLock(lock, timeout=0):
            yield
            # A process that opened the lock before this finds the model there. Windows removes no
            # open file; there the lock does it itself.
            with contextlib.suppress(OSError):
                lock.unlink()
    except Timeout as error:
        raise LlmRuntimeError(
            f"{name}: another pull of it is under way (it holds {lock}); wait until it is done"
        ) from error


def hub_problem(what: str, revision: str, error: Exception, *, instead: str = "") -> str:
    """What went wrong when `what` was asked for, and what to do, or to do `instead`."""
    # By name, because where the library keeps these classes depends on its version.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if is_of_the_disk(error):
        return f"{what}: cannot be stored: {reason(error)}"
    if "GatedRepoError" in kinds:
        return f"{what}: the hub wants to know who asks; log in with huggingface_hub's command"
    # LocalEntryNotFoundError, although an EntryNotFoundError, says that nobody answered.
    absent = {"EntryNotFoundError", "RepositoryNotFoundError", "RevisionNotFoundError"}
    if kinds & absent and "LocalEntryNotFoundError" not in kinds:
        return (
            f"{what} is not on the hub that was asked (revision {revision}); check "
            f"HF_ENDPOINT{instead}"
        )
    first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return (
        f"{what} cannot be fetched from the hub ({first_line:.200}); check the network, "
        f"HF_ENDPOINT and HF_HUB_OFFLINE and pull again{instead}"
    )
