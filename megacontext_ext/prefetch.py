"""A prefetch under way: wait for it, await it, or cancel it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator
from typing import Any

__all__ = ["Prefetch"]


class Prefetch:
    """What `prefetch()` of a store or snapshot returns. Closing the store cancels it."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @property
    def page_count(self) -> int:
        """Pages that were not in memory when it was asked for."""
        return self._handle.page_count

    @property
    def done(self) -> bool:
        """Whether `wait()` would return at once."""
        return self._handle.done

    def cancel(self) -> None:
        """Pages that are under way still arrive; the rest is left out."""
        self._handle.cancel()

    def wait(self) -> bool:
        """Blocks until it is over. True: all pages are there; False: it was cancelled.

        Raises: IoError or Corruption when a page could not be read.
        """
        return self._handle.wait()

    def __await__(self) -> Generator[Any, None, bool]:
        """As `wait()`, without blocking the event loop. Cancelling the task cancels this too."""
        return self._arrival().__await__()

    async def _arrival(self) -> bool:
        loop = asyncio.get_running_loop()
        descriptor = self._handle.descriptor()
        if descriptor < 0:  # no descriptor is left in this process
            return await loop.run_in_executor(None, self.wait)
        # Its own copy: an event loop watches a descriptor for one caller only.
        own = os.dup(descriptor)
        arrived = asyncio.Event()
        loop.add_reader(own, arrived.set)
        try:
            await arrived.wait()
        except asyncio.CancelledError:
            self.cancel()
            raise
        finally:
            loop.remove_reader(own)
            os.close(own)
        return self.wait()
