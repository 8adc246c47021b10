"""Requests that come at the same time share a pass through the model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class MicroBatcher(Generic[Item, Result]):
    """Runs a function on batches in a thread of its own, one batch at a time.

    Nothing waits for a batch to fill: whatever has come while the last batch was computed makes the next one. So a lone
    request loses no time, and under load batches grow by themselves.

    Args:
        run: From the items of a batch to as many results; called in one thread only.
        batch_size: Items in a batch at most.
    """

    def __init__(self, run: Callable[[Sequence[Item]], Sequence[Result]], batch_size: int) -> None:
        self.run, self.batch_size = run, batch_size
        self.batches = 0
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._running: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """Wait for the item's result; whoever is cancelled meanwhile gives up its place.

        Raises:
            Exception: What `run` raised for the item's batch.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._running is None:
            self._running = asyncio.create_task(self._work())
        return await future

    def close(self) -> None:
        """End the thread; a batch in progress is finished."""
        self._thread.shutdown()

    async def _work(self) -> None:
        try:
            while batch := self._next_batch():
                self.batches += 1
                try:
                    results = await asyncio.get_running_loop().run_in_executor(
                        self._thread, self.run, [item for item, _ in batch]
                    )
                except Exception as error:  # of whatever kind: it belongs to those who wait for the batch
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                else:
                    for (_, future), result in zip(batch, results, strict=True):
                        if not future.done():
                            future.set_result(result)
        finally:
            self._running = None

    def _next_batch(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._waiting and len(batch) < self.batch_size:
            item, future = self._waiting.popleft()
            if not future.done():
                batch.append((item, future))
        return batch
