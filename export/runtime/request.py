"""A request of a service once it was read, and the future that it is answered by."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple

from zoo.contract.verdict import Verdict
from zoo.judging.scorer import Ready, Scorer

log = logging.getLogger("export.runtime.request")


class FutureVerdict(Future[Verdict]):
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


class Request(NamedTuple):
    """A request that was read: what is to be judged, by which scorer it was prepared, and when."""

    answer: FutureVerdict
    item: Ready
    scorer: Scorer
    since: float


def _call(fn: Callable[[Future[Verdict]], Any], future: Future[Verdict]) -> None:
    try:
        fn(future)
    except BaseException:
        log.exception("a callback of a verdict failed")
