"""The future that a service answers a request by."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from zoo.contract.verdict import Verdict

log = logging.getLogger("export.runtime.answer")


class Answer(Future[Verdict]):
    """A future whose callbacks run on threads of their own: one that blocks or exits costs no other caller."""

    def __init__(self, callbacks: Executor) -> None:
        super().__init__()
        self._callbacks_run_on, self.since = callbacks, time.perf_counter()

    def add_done_callback(self, fn: Callable[[Future[Verdict]], Any]) -> None:
        """As that of every future; after the service is closed `fn` runs on the thread that asks."""

        def hand_over(future: Future[Verdict]) -> None:
            try:
                self._callbacks_run_on.submit(_call, fn, future)
            except RuntimeError:  # the service is closed
                _call(fn, future)

        super().add_done_callback(hand_over)


def _call(fn: Callable[[Future[Verdict]], Any], future: Future[Verdict]) -> None:
    try:
        fn(future)
    except BaseException:
        log.exception("a callback of a verdict failed")
