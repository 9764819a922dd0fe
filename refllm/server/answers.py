"""An answer for whoever still waits for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from anyio import to_thread
from fastapi import Request

__all__ = ["ClientGoneError", "aside", "merged", "unless_gone"]

T = TypeVar("T")


class ClientGoneError(Exception):
    """Whoever asked has hung up."""


async def aside(work: Callable[..., T], *arguments: object) -> T:
    """What the work comes to, which is done in another thread.

    A coroutine that is cancelled does not wait for it.
    """
    return await to_thread.run_sync(work, *arguments, abandon_on_cancel=True)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work comes to. Errors: `ClientGoneError`, the work cancelled, if nobody waits."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        for each in (task, gone):
            if not each.done():
                each.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await each


async def merged(sources: Sequence[AsyncGenerator[T]]) -> AsyncGenerator[tuple[int, T]]:
    """Yield what several sources yield, as it comes, each with its source's number.

    Raises:
        Exception: The first that a source raises; the other sources are closed then, as they are
            when the caller stops.
    """
    arrived: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue()

    async def pump(number: int, source: AsyncGenerator[T]) -> None:
        try:
            async with contextlib.aclosing(source):
                async for item in source:
                    arrived.put_nowait((number, item))
        except Exception as error:  # noqa: BLE001 - whatever it is, the other end wants to know
            arrived.put_nowait(error)
        else:
            arrived.put_nowait(None)

    tasks = [asyncio.create_task(pump(number, source)) for number, source in enumerate(sources)]
    try:
        n_left = len(tasks)
        while n_left:
            item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                n_left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _gone(request: Request) -> None:
    """Ends when the client does."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
