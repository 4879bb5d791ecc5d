"""A thread-safe service around a scorer: many callers, one engine, batches of simultaneous requests.

Requests are decoded and tokenised by a pool of threads while the engine runs; one thread gathers what is ready into a
batch, waits a moment for more, and runs the engine. No torch.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from export.runtime.request import FutureVerdict, Request
from export.runtime.scorer import load
from zoo.contract.policy import AnyPolicy
from zoo.contract.verdict import Verdict
from zoo.errors import BadArgumentError, ClosedError, EngineError, OverloadError, ServiceError, ZooError
from zoo.inputs.image import DEFAULT_LIMITS, ImageLimits, ImageSource, check_source, owned
from zoo.judging.scorer import Ready, Scorer

#: After this number of failed batches in a row the service reports itself as failing.
FAILING_AFTER = 3
#: Latency quantiles are those of this number of latest answers.
LATENCIES = 1024

_CLOSED = "the service was closed before it judged this request"
_DEAD = "the thread of the engine has ended, so nothing is judged any more: serve the bundle again"


def serve(
    bundle: str | Path,
    policy: AnyPolicy | None = None,
    *,
    device: str = "auto",
    engine: str | None = None,
    threads: int | None = None,
    max_batch: int | None = None,
    max_wait_ms: float = 2.0,
    queue: int = 1024,
    decoders: int = 2,
    limits: ImageLimits = DEFAULT_LIMITS,
    public_key: str | Path | None = None,
) -> Service:
    """Load a bundle and serve many threads with it, in batches, warmed up; see `Service`.

    `max_batch` is the engine's usual batch when None. Raises what `load` raises, BadInputError for sizes below 1, and
    EngineError when the engine cannot run.

    >>> with runtime.serve("my_bundle", device="cpu", max_batch=4) as service:
    ...     service.submit("photo.jpg").result().status
    'ok'
    """
    scorer = load(
        bundle, policy, device=device, engine=engine, threads=threads, batch_size=max_batch, limits=limits,
        public_key=public_key,
    )  # fmt: skip
    service = Service(scorer, max_batch=scorer.batch_size, max_wait_ms=max_wait_ms, queue=queue, decoders=decoders)
    with ExitStack() as undo:
        undo.enter_context(service).warm_up()
        undo.pop_all()
    return service


@dataclass(frozen=True)
class Health:
    """The state of a service.

    `state` is `starting` until a batch has succeeded, `failing` after three failed batches in a row (each new batch is
    still tried, and the first that succeeds makes it `ready` again), `dead` when the engine's thread has ended or the
    process was forked since (`last_error` says which; requests are refused), and `closed` from the call of `close`.
    `waiting` counts accepted requests without an answer, `limit` is their bound. `served` counts verdicts, `unjudged`
    those among them whose status is not `ok`; `overloads` refused requests; `engine_errors` failed batches.
    `latency_ms` are quantiles of the latest answers, from `submit` to the verdict. `batch_age_s` is how long the engine
    has been at its present batch, 0 when it is idle: a number that only grows is an engine that hangs.

    >>> with runtime.serve("my_bundle") as service:
    ...     service.health().ready
    True
    """

    state: Literal["starting", "ready", "failing", "dead", "closed"]
    waiting: int
    limit: int
    served: int
    unjudged: int
    overloads: int
    engine_errors: int
    batches: int
    mean_batch: float
    latency_ms: dict[str, float]
    batch_age_s: float
    last_error: str

    @property
    def ready(self) -> bool:
        """Whether to send requests here."""
        return self.state == "ready"


class Service(AbstractContextManager["Service"]):
    """Judges the requests of many threads with one scorer, which it owns and closes.

    At most `max_batch` items make a batch. With callers about, a batch that is not full waits for more until its first
    item has been ready for `max_wait_ms`; a lone caller is not kept waiting. At most `queue` requests may be without an
    answer: one more raises OverloadError, so that memory stays bounded and callers learn early. `decoders` threads read
    images and texts while the engine runs.

    A broken input gets the verdict that says so, and costs the others nothing. When the engine fails, every request of
    that batch raises EngineError; the service goes on (see `Health.state`). Raises BadInputError for sizes below 1.

    >>> with runtime.Service(runtime.load("my_bundle")) as service:
    ...     service.verdict("photo.jpg").status
    'ok'
    """

    def __init__(
        self, scorer: Scorer, *, max_batch: int = 32, max_wait_ms: float = 2.0, queue: int = 1024, decoders: int = 2
    ) -> None:
        if min(max_batch, queue, decoders) < 1 or not 0 <= max_wait_ms < 60_000:
            raise BadArgumentError(
                "max_batch, queue and decoders must be at least 1 and max_wait_ms in [0, 60000), "
                f"got {max_batch}, {queue}, {decoders} and {max_wait_ms}"
            )
        self.scorer, self.max_batch, self.queue = scorer, max_batch, queue
        self._max_wait = max_wait_ms / 1000
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)  # the engine's thread: something is ready, or the end
        self._idle = threading.Condition(self._lock)  # close(): nothing is waiting any more
        self._engine = threading.Lock()  # an engine need not be thread-safe
        self._ready: deque[Request] = deque()
        self._waiting = self._last_batch = self._judged = self._failed_in_a_row = 0
        self._closed = self._dropping = False
        self._ended = False  # the engine's thread: nothing that is read from now on is judged
        self._batch_since: float | None = None
        self._counts = dict.fromkeys(("served", "unjudged", "overloads", "engine_errors", "batches"), 0)
        self._latencies: deque[float] = deque(maxlen=LATENCIES)
        self._last_error = ""
        self._process = os.getpid()
        self._decoders = ThreadPoolExecutor(decoders, thread_name_prefix="decode")
        # A thread is started only when all others are in a callback, so that those which block delay no other.
        self._callbacks = ThreadPoolExecutor(max(queue, 64), thread_name_prefix="callback")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def verdict(
        self, image: ImageSource | None = None, text: str | None = None, *, timeout: float | None = None
    ) -> Verdict:
        """Judge one item, as `Scorer.verdict`, in a batch with those of other callers; wait `timeout` seconds at most.

        Raises what `submit` raises; EngineError when the engine failed, ClosedError when the service was closed first,
        TimeoutError when the answer came too late (the request is then cancelled), BadInputError for an input that this
        model never reads.
        """
        future = self._submit(image, text)
        try:
            return future.result(timeout)
        except TimeoutError:
            future.cancel()
            raise

    def submit(self, image: ImageSource | None = None, text: str | None = None) -> Future[Verdict]:
        """As `verdict`, without waiting: the verdict, or the error, of a future that can be cancelled until then.

        Arrays, tensors and Pillow images are copied and streams are read, so the caller may reuse or close them at
        once. A file that is named by its path is read later, by a decoding thread, so that no event loop waits for a
        disk: leave it in place until the future is done, or give its bytes. Callbacks of the future run on threads of
        their own.

        In asyncio: `await asyncio.wrap_future(service.submit(image))`. Raises OverloadError when the queue is full,
        ClosedError after `close`, ServiceError when the engine's thread has ended or the process was forked, and
        BadTypeError for an image of a type that is not taken.
        """
        return self._submit(None if image is None else owned(image, self.scorer.limits), text)

    def _submit(self, image: ImageSource | None, text: str | None) -> Future[Verdict]:
        if image is not None:
            check_source(image)
        answer = FutureVerdict(self._callbacks)
        if dead := self._dead():
            raise ServiceError(dead)
        with self._lock:
            if self._closed:
                raise ClosedError("the service is closed")
            if self._waiting >= self.queue:
                self._counts["overloads"] += 1
                raise OverloadError(
                    f"{self._waiting} requests are waiting and the limit is {self.queue}: ask again later, "
                    "or serve with a larger queue or on more machines"
                )
            self._waiting += 1
        self._decoders.submit(self._decode, answer, image, text)
        return answer

    def use(self, scorer: Scorer) -> None:
        """From the next batch on, judge by this scorer, such as one with another policy (`BundleScorer.with_policy`).

        No waiting request is lost, and every verdict names the policy that it was judged by. A request that was read
        already is judged by the old scorer if the new policy shows a model other parts of an input (`views`,
        `max_views`, `frames` and which of a video, `windows`, or the border that may go unseen). The old scorer is not
        closed, because the two may share their engine. Raises BadArgumentError for a scorer of another model, because
        waiting requests were prepared for this one.
        """
        if not scorer.same_model(self.scorer):
            raise BadArgumentError(
                f"the service judges by {self.scorer.card.name}, and the new scorer has other weights or inputs "
                f"({scorer.card.name}); only the policy can change: serve the other model by a service of its own"
            )
        self.scorer = scorer

    def warm_up(self) -> None:
        """Run the engine on blank batches of 1 and of `max_batch`, so that no caller pays for its first allocations.

        Raises EngineError when that fails: such a service could not answer.
        """
        card = self.scorer.card
        blank = np.zeros((card.image.size, card.image.size, 3), dtype=np.uint8) if card.image else None
        item = self.scorer.prepare(blank, "warm up" if card.reads_text else None)
        for count in sorted({1, self.max_batch}):
            self._judge([item] * count, self.scorer)

    def health(self) -> Health:
        """The present state of the service."""
        dead = self._dead()
        if self._process != os.getpid():
            self._lock = threading.Lock()  # another thread may have held it when the process was forked
        with self._lock:
            since, batches = self._batch_since, self._counts["batches"]
            state: Literal["starting", "ready", "failing", "dead", "closed"] = "ready" if batches else "starting"
            if self._closed:
                state = "closed"
            elif dead:
                state = "dead"
            elif self._failed_in_a_row >= FAILING_AFTER:
                state = "failing"
            quantiles = np.percentile(self._latencies or [0.0], [50, 90, 99])
            return Health(
                state=state,
                waiting=self._waiting,
                limit=self.queue,
                mean_batch=self._judged / max(batches, 1),
                latency_ms=dict(zip(("p50", "p90", "p99"), (1000 * quantiles).tolist(), strict=True)),
                batch_age_s=0.0 if since is None else time.perf_counter() - since,
                last_error=dead or self._last_error,
                **self._counts,
            )

    def close(self, *, drain: bool = True) -> None:
        """Take no more requests, answer those that wait, end the threads and close the scorer.

        With `drain=False` the waiting requests raise ClosedError instead; a batch that is running is still answered.
        In a forked child, which has none of the threads, there is nothing to end.
        """
        if self._process != os.getpid():
            self._closed = True
            return
        with self._lock:
            self._closed = True
            self._dropping = self._dropping or not drain
            self._wake.notify_all()
            while self._waiting:
                self._idle.wait()
            self._wake.notify_all()
        self._decoders.shutdown()
        self._thread.join()
        self._callbacks.shutdown(wait=False)  # this may be one of them
        self.scorer.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decode(self, answer: FutureVerdict, image: ImageSource | None, text: str | None) -> None:
        try:
            if self._ended:
                raise ServiceError(_DEAD)
            if self._dropping or answer.cancelled():  # a cancelled future shows no error
                raise ClosedError(_CLOSED)
            scorer = self.scorer
            item = scorer.prepare(image, text)
        except ZooError as problem:
            self._settle([answer], [problem])
        except BaseException as problem:  # a panic in Rust is not an Exception, and callers would wait forever
            # Its type alone: what an unexpected error says may quote the text.
            failed = ServiceError(f"reading the request failed: {type(problem).__name__}")
            self._settle([answer], [_caused(failed, problem)])
        else:
            if item.refusal is not None:
                self._settle([answer], [item.refusal])
                return
            with self._lock:
                if not self._ended:
                    self._ready.append(Request(answer, item, scorer, time.perf_counter()))
                    self._wake.notify()
                    return
            self._settle([answer], [ServiceError(_DEAD)])  # the thread ended while this was read

    def _dead(self) -> str:
        """Why nothing can be judged any more, though the service was not closed; "" when it can."""
        if self._process != os.getpid():
            return (
                f"the service was started in process {self._process} and does not live on in a forked one: "
                "serve the bundle again in each process"
            )
        return _DEAD if self._ended and not self._closed else ""

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                gone = [read.answer for read in batch if self._dropping or read.answer.cancelled()]
                self._settle(gone, [ClosedError(_CLOSED) for _ in gone])
                present, parts = self.scorer, dict[Scorer, dict[FutureVerdict, Ready]]()
                for answer, item, scorer, _ in batch:
                    if answer not in gone:
                        alike = scorer.judge.policy.looks == present.judge.policy.looks
                        parts.setdefault(present if alike else scorer, {})[answer] = item
                for scorer, live in parts.items():
                    try:
                        self._settle(list(live), self._judge(list(live.values()), scorer))
                    except EngineError as problem:
                        # One error for each: threads that raise the same one would write into each other's traceback.
                        self._settle(list(live), [_caused(EngineError(str(problem)), problem.__cause__) for _ in live])
        finally:  # after a fault of this very loop, what waits is refused, and health() says `dead`
            with self._lock:
                self._ended = True
                left = [self._ready.popleft().answer for _ in range(len(self._ready))]
            self._settle(left, [ServiceError(_DEAD) for _ in left])

    def _next_batch(self) -> list[Request]:
        """Wait for something ready, then within the window for more. Empty at the end."""
        with self._lock:
            while not self._ready and (self._waiting or not self._closed):
                self._wake.wait()
            while self._ready and len(self._ready) < self.max_batch:
                # Others are being read, or were in the last batch and may ask again. A lone caller is neither.
                others = self._waiting > len(self._ready) or (self._last_batch > 1 and not self._closed)
                left = self._ready[0].since + self._max_wait - time.perf_counter()
                if left <= 0 or not others:
                    break
                self._wake.wait(left)
            batch = [self._ready.popleft() for _ in range(min(self.max_batch, len(self._ready)))]
            self._last_batch = len(batch)
            return batch

    def _judge(self, items: list[Ready], scorer: Scorer) -> list[Verdict]:
        """One call of the engine. Raises EngineError for any failure in it."""
        with self._engine:
            self._batch_since = time.perf_counter()
            try:
                verdicts = scorer.judge_ready(items)
            except BaseException as problem:  # else this thread would end, and every caller would wait forever
                with self._lock:
                    self._counts["engine_errors"] += 1
                    self._failed_in_a_row += 1
                    self._last_error = repr(problem)
                raise EngineError(f"the engine failed on a batch of {len(items)}: {problem!r}") from problem
            finally:
                self._batch_since = None
        with self._lock:
            self._counts["batches"] += 1
            self._failed_in_a_row = 0
            self._judged += len(items)
        return verdicts

    def _settle(self, answers: Sequence[FutureVerdict], outcomes: Sequence[Verdict | ZooError]) -> None:
        """Give each answer unless it was cancelled. Its place is free before its caller wakes and asks again."""
        now = time.perf_counter()
        verdicts = [outcome for outcome in outcomes if isinstance(outcome, Verdict)]
        with self._lock:
            self._waiting -= len(answers)
            self._counts["served"] += len(verdicts)
            self._counts["unjudged"] += sum(verdict.status != "ok" for verdict in verdicts)
            if verdicts:
                self._latencies.extend(now - answer.since for answer in answers)
            if not self._waiting:
                self._idle.notify_all()
        for answer, outcome in zip(answers, outcomes, strict=True):
            if not answer.set_running_or_notify_cancel():
                continue
            if isinstance(outcome, Verdict):
                answer.set_result(outcome)
            else:
                answer.set_exception(outcome)


def _caused(error: ServiceError, cause: BaseException | None) -> ServiceError:
    error.__cause__ = cause
    return error
