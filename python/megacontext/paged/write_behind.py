"""Writes done by one thread behind the caller's back, in order, with a bound on what waits."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from megacontext_ext.errors import MegaContextError


class WriteBehind:
    """A queue of writes and the thread that does them.

    A write that fails stops the queue: nothing after it is tried, and `failure` says why. The
    caller decides what that means.
    """

    def __init__(self, bytes_max: int) -> None:
        """An idle queue; `submit` waits while more than `bytes_max` are pending."""
        self.failure: MegaContextError | None = None
        self._bytes_max = bytes_max
        self._queue: deque[tuple[Callable[[], None], int]] = deque()
        self._pending_bytes = 0
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def submit(self, write: Callable[[], None], byte_count: int) -> None:
        """Queues a write of `byte_count` bytes. Waits while the queue is over its bound."""
        byte_count = max(1, byte_count)  # what is pending must count
        with self._changed:
            self._changed.wait_for(lambda: self._has_room() or self.failure is not None)
            if self.failure is not None:
                return
            self._queue.append((write, byte_count))
            self._pending_bytes += byte_count
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="page-writer", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def drain(self) -> None:
        """Returns when everything queued was written, or a write failed."""
        with self._changed:
            self._changed.wait_for(lambda: not self._pending_bytes or self.failure is not None)

    def close(self) -> None:
        """Drains and ends the thread."""
        self.drain()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _has_room(self) -> bool:
        return self._pending_bytes <= self._bytes_max

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._queue) or self._closing)
                if not self._queue:
                    return
                write, byte_count = self._queue.popleft()
            try:
                write()
            except MegaContextError as error:
                with self._changed:
                    self.failure = error
                    self._queue.clear()
                    self._pending_bytes = 0
                    self._changed.notify_all()
                return
            with self._changed:
                self._pending_bytes -= byte_count
                self._changed.notify_all()
