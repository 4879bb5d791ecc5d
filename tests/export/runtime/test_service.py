"""The service answers many threads as a scorer answers one, stays in its bounds, and survives what goes wrong."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import gc
import io
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from export import runtime
from export.runtime.service import FAILING_AFTER, Service
from zoo.assets import find_asset
from zoo.contract.policy import Policy
from zoo.contract.verdict import Verdict
from zoo.errors import BadInputError, ClosedError, EngineError, OverloadError, ServiceError
from zoo.inputs.image import ImageSource
from zoo.judging.judge import bind
from zoo.judging.scorer import Engine, Feeds, Scorer
from zoo.release.store import load_release, load_scorer, model_scorer

CLIP, FUSION = "test_safeclip.random", "test_multimodal_nsfw.fusion"
PATIENCE = 60.0  # seconds until a test gives up on an answer that should come at once


class Gate:
    """An engine that can be held or broken, and remembers the size of each batch."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.batches = engine, list[int]()
        self.open, self.entered = threading.Event(), threading.Semaphore(0)
        self.open.set()
        self.broken: BaseException | None = None

    def __call__(self, feeds: Feeds) -> NDArray[np.floating]:
        self.batches.append(len(next(iter(feeds.values()))))
        self.entered.release()
        assert self.open.wait(PATIENCE)
        if self.broken:
            raise self.broken
        return self.engine(feeds)

    def hold(self, service: Service, image: ImageSource) -> Any:
        """Keep the engine busy with one request, whose future is returned."""
        while self.entered.acquire(blocking=False):  # by calls before this one
            pass
        self.open.clear()
        future = service.submit(image)
        assert self.entered.acquire(timeout=PATIENCE)
        return future


@pytest.fixture
def gated(bundles: dict[str, Path]) -> Iterator[tuple[Scorer, Gate]]:
    scorer: Scorer = runtime.load(bundles[CLIP], threads=1)
    gate = Gate(scorer.engine)
    scorer.engine = gate
    yield scorer, gate
    gate.open.set()
    scorer.close()


def _pictures(count: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (20 + number, 20 + number, 3), dtype=np.uint8) for number in range(count)]


PICTURE = _pictures(1)[0]


def _requests() -> list[tuple[ImageSource | None, str | None]]:
    """Forty distinct requests of a model that reads image, text or both; a tenth cannot be read."""
    jpegs = []
    for picture in _pictures(14):
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "JPEG", quality=90)
        jpegs.append(stream.getvalue())
    good: list[tuple[ImageSource | None, str | None]] = [(jpeg, None) for jpeg in jpegs[:8]]
    good += [(jpeg, f"a picture, number {number}") for number, jpeg in enumerate(jpegs)]
    good += [(None, f"two words {number}") for number in range(6)]
    good += [(picture, "an array") for picture in _pictures(6)]
    good += [(jpegs[0], "far too long to be read whole " * 40), (jpegs[1], "")]
    truncated, garbage = (jpegs[0][: len(jpegs[0]) // 2], None), (bytes(range(256)), "with a text")
    return [*good, truncated, garbage, (None, None), (None, "x" * 200_000)]


def _alike(found: Verdict, wanted: Verdict) -> bool:
    """The same verdict; scores may differ by float32's rounding, which depends on the batch."""
    plain = [(v.status, v.decision, v.category, v.policy, v.model, v.detail, v.unseen) for v in (found, wanted)]
    keys = found.scores.keys() == wanted.scores.keys()
    return plain[0] == plain[1] and keys and all(abs(found.scores[k] - wanted.scores[k]) < 1e-6 for k in found.scores)


def _resident_mb() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _ask(service: Service, requests: list[Any], wanted: list[Verdict], count: int, threads: int) -> int:
    """How many of `count` requests from `threads` threads were answered rightly."""
    rng = np.random.default_rng(count)
    order = np.resize(np.arange(len(requests)), count)  # every tenth is broken, as in the list
    rng.shuffle(order)

    def caller(number: int) -> int:
        mine = order[number::threads]
        return sum(_alike(service.verdict(*requests[i], timeout=PATIENCE), wanted[i]) for i in mine)

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(caller, range(threads)))


def test_thousands_of_mixed_requests_from_sixteen_threads(
    bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    requests = _requests()
    with runtime.load(bundles[FUSION], threads=1) as scorer:
        wanted = [scorer.verdict(*request) for request in requests]
    broken = [verdict for verdict in wanted if verdict.status != "ok"]
    assert len(requests) == 40
    assert sorted(verdict.status for verdict in broken) == ["missing_input", *["unreadable"] * 3]
    assert sum("tokens" in (verdict.unseen or {}) for verdict in wanted) == 1
    assert len({tuple(verdict.scores.values()) for verdict in wanted}) > 30
    with runtime.serve(bundles[FUSION], threads=1, max_batch=16, queue=64) as service:
        assert _ask(service, requests, wanted, 2_000, 16) == 2_000
        linux = sys.platform == "linux"
        before = _resident_mb() if linux else 0.0
        assert _ask(service, requests, wanted, 3_000, 16) == 3_000
        after = _resident_mb() if linux else 0.0
        health = service.health()
    with capsys.disabled():
        print(f"\n5,000 requests, 16 threads: {before:.0f} MB after 2,000, {after:.0f} MB after all; {health}")
    assert after - before < 5
    assert (health.state, health.served, health.unjudged, health.waiting) == ("ready", 5_000, 500, 0)
    assert (health.overloads, health.engine_errors) == (0, 0)
    assert health.mean_batch > 1.5
    assert 0 < health.latency_ms["p50"] <= health.latency_ms["p90"] <= health.latency_ms["p99"]


def test_a_lone_caller_is_not_kept_waiting(gated: tuple[Scorer, Gate]) -> None:
    scorer, gate = gated
    with Service(scorer, max_batch=8, max_wait_ms=59_000) as service:
        for _ in range(3):
            assert service.verdict(PICTURE, timeout=PATIENCE / 2).status == "ok"
    assert gate.batches == [1, 1, 1]


def test_a_batch_gathers_who_asks_while_the_engine_runs_and_within_the_window(gated: tuple[Scorer, Gate]) -> None:
    scorer, gate = gated
    with Service(scorer, max_batch=3, max_wait_ms=59_000, decoders=1) as service:  # one: ready in the order of asking
        futures = [gate.hold(service, PICTURE)]
        futures += [service.submit(picture) for picture in _pictures(7)]
        gate.open.set()
        assert [future.result(PATIENCE).status for future in futures[:7]] == ["ok"] * 7
        # One is left over. Others were about a moment ago, so it waits for two more, and no longer than for them.
        assert not futures[7].done()
        futures += [service.submit(picture) for picture in _pictures(2)]
        assert {future.result(PATIENCE / 2).status for future in futures} == {"ok"}
    assert gate.batches == [1, 3, 3, 3]


def test_the_window_ends(gated: tuple[Scorer, Gate]) -> None:
    scorer, gate = gated
    with Service(scorer, max_batch=4, max_wait_ms=20) as service:
        futures = [gate.hold(service, PICTURE), service.submit(PICTURE), service.submit(PICTURE)]
        gate.open.set()
        assert {future.result(PATIENCE).status for future in futures} == {"ok"}
        assert service.verdict(PICTURE, timeout=PATIENCE).status == "ok"
    assert gate.batches == [1, 2, 1]


def test_one_request_too_many_is_refused_at_once(gated: tuple[Scorer, Gate]) -> None:
    scorer, gate = gated
    with Service(scorer, queue=4, max_wait_ms=0) as service:
        futures = [gate.hold(service, PICTURE), *(service.submit(PICTURE) for _ in range(3))]
        for _ in range(2):
            with pytest.raises(OverloadError, match="4 requests are waiting and the limit is 4"):
                service.verdict(PICTURE)
        health = service.health()
        assert (health.waiting, health.limit, health.overloads) == (4, 4, 2)
        assert health.batch_age_s > 0
        gate.open.set()
        assert {future.result(PATIENCE).status for future in futures} == {"ok"}
        assert service.verdict(PICTURE, timeout=PATIENCE).status == "ok"
        assert service.health().waiting == 0


def test_an_engine_that_fails_costs_its_batch_and_no_more(gated: tuple[Scorer, Gate]) -> None:
    scorer, gate = gated
    with Service(scorer, max_wait_ms=0) as service:
        assert service.health().state == "starting"
        first = gate.hold(service, PICTURE)
        futures = [service.submit(picture) for picture in _pictures(3)]
        gate.broken = RuntimeError("out of memory")
        gate.open.set()
        for future in [first, *futures]:
            with pytest.raises(EngineError, match=r"failed on a batch of .*out of memory") as raised:
                future.result(PATIENCE)
            assert raised.value.__cause__ is gate.broken
        assert len({id(future.exception()) for future in futures}) == 3
        gate.broken = None
        assert service.verdict(PICTURE, timeout=PATIENCE).status == "ok"
        health = service.health()
        assert (health.state, health.engine_errors, health.served) == ("ready", len(gate.batches) - 1, 1)
        assert health.last_error == "RuntimeError('out of memory')"


def test_a_service_that_keeps_failing_says_so_and_recovers(gated: tuple[Scorer, Gate]) -> None:
    scorer, gate = gated
    with Service(scorer) as service:
        service.warm_up()
        gate.broken = KeyboardInterrupt()  # not even this may end the engine's thread
        for count in range(1, FAILING_AFTER + 1):
            assert service.health().ready
            with pytest.raises(EngineError):
                service.verdict(PICTURE, timeout=PATIENCE)
            assert service.health().engine_errors == count
        assert service.health().state == "failing"
        assert service.verdict(b"garbage", timeout=PATIENCE).status == "unreadable"  # needs no engine
        gate.broken = None
        assert service.verdict(PICTURE, timeout=PATIENCE).status == "ok"
        assert service.health().ready


def test_warm_up_runs_the_smallest_and_the_largest_batch(gated: tuple[Scorer, Gate]) -> None:
    scorer, gate = gated
    with Service(scorer, max_batch=7) as service:
        service.warm_up()
        assert gate.batches == [1, 7]
        assert (service.health().ready, service.health().served) == (True, 0)


def test_a_bundle_whose_engine_cannot_run_is_not_served(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Feeds) -> NDArray[np.floating]:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(runtime.OnnxEngine, "__call__", lambda self, feeds: broken(feeds))
    threads = threading.active_count()
    with pytest.raises(EngineError, match="no such kernel"):
        runtime.serve(bundles[CLIP], threads=1)
    assert threading.active_count() == threads


def test_a_fault_while_reading_costs_only_its_caller(
    gated: tuple[Scorer, Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Panic(BaseException):
        """As Rust's tokenizers raise it."""

    scorer, _ = gated
    prepare = scorer.prepare

    def panicking(image: Any = None, text: str | None = None) -> Any:
        if image is None:
            raise Panic("index out of bounds")
        return prepare(image, text)

    monkeypatch.setattr(scorer, "prepare", panicking)
    with Service(scorer) as service:
        futures = [service.submit(PICTURE), service.submit(None), service.submit(PICTURE)]
        with pytest.raises(ServiceError, match="reading the request failed: Panic"):
            futures[1].result(PATIENCE)
        assert [futures[index].result(PATIENCE).status for index in (0, 2)] == ["ok", "ok"]


def test_an_input_that_the_model_never_reads_is_a_mistake_of_the_caller(gated: tuple[Scorer, Gate]) -> None:
    with Service(gated[0]) as service:
        with pytest.raises(BadInputError, match="judges images only"):
            service.verdict(PICTURE, "and a text", timeout=PATIENCE)
        assert service.verdict(PICTURE, timeout=PATIENCE).status == "ok"


def test_another_policy_takes_over_between_two_batches(bundles: dict[str, Path]) -> None:
    policy = Policy.read(find_asset("configs/policy/quickstart.yaml"))
    with runtime.serve(bundles[CLIP], threads=1, max_batch=4) as service:
        before = service.scorer
        assert isinstance(before, runtime.BundleScorer)
        after = before.with_policy(policy)
        wanted = {scorer.judge.policy_id: scorer.verdict(PICTURE) for scorer in (before, after)}
        assert len(wanted) == 2
        futures = [service.submit(PICTURE) for _ in range(40)]
        service.use(after)
        futures += [service.submit(PICTURE) for _ in range(40)]
        found = [future.result(PATIENCE) for future in futures]
    assert all(_alike(verdict, wanted[verdict.policy]) for verdict in found)
    assert {verdict.policy for verdict in found[40:]} == {policy.id}


@pytest.mark.parametrize("change", [{"views": "tiles"}, {"unseen": "allow"}, {"version": "2"}])
def test_what_waits_is_judged_by_the_views_of_the_policy_that_its_verdict_names(
    gated: tuple[Scorer, Gate], change: dict[str, Any]
) -> None:
    before, gate = gated
    after = copy.copy(before)
    after.judge = bind(before.card, dataclasses.replace(before.judge.policy, **change))
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, :20] = 255  # the left third is in one view alone
    alone = {scorer.judge.policy_id: scorer.verdict(wide) for scorer in (before, after)}
    assert len(alone) == 2
    with Service(before) as service:
        held = gate.hold(service, PICTURE)
        early = service.submit(wide)
        while not service._ready:  # until it is read
            time.sleep(0.001)
        service.use(after)
        late = service.submit(wide)
        gate.open.set()
        assert held.result(PATIENCE).policy == before.judge.policy_id
        found = [future.result(PATIENCE) for future in (early, late)]
    assert all(
        _alike(verdict, alone[verdict.policy]) and verdict.place == alone[verdict.policy].place for verdict in found
    )
    assert found[1].policy == after.judge.policy_id
    assert found[0].policy == (after if "version" in change else before).judge.policy_id


def test_close_answers_what_waits_and_takes_no_more(gated: tuple[Scorer, Gate]) -> None:
    scorer, gate = gated
    service = Service(scorer, max_batch=2)
    futures = [gate.hold(service, PICTURE), *(service.submit(picture) for picture in _pictures(4))]
    closing = threading.Thread(target=service.close)
    closing.start()
    while service.health().state != "closed":
        pass
    with pytest.raises(ClosedError, match="the service is closed"):
        service.submit(PICTURE)
    gate.open.set()
    closing.join(PATIENCE)
    assert [future.result(0).status for future in futures] == ["ok"] * 5
    service.close()  # a second time does nothing


def test_close_without_draining_refuses_what_waits(gated: tuple[Scorer, Gate]) -> None:
    scorer, gate = gated
    service = Service(scorer, max_batch=2)
    running = gate.hold(service, PICTURE)
    waiting = [service.submit(picture) for picture in _pictures(5)]
    closing = threading.Thread(target=service.close, kwargs={"drain": False})
    closing.start()
    while service.health().state != "closed":
        pass
    gate.open.set()
    closing.join(PATIENCE)
    assert running.result(0).status == "ok"
    for future in waiting:
        with pytest.raises(ClosedError, match="closed before it judged"):
            future.result(0)
    assert gate.batches == [1]


def test_what_was_cancelled_or_came_too_late_is_not_judged(gated: tuple[Scorer, Gate]) -> None:
    scorer, gate = gated
    with Service(scorer, queue=3) as service:
        running = gate.hold(service, PICTURE)
        waiting = service.submit(PICTURE)
        assert waiting.cancel()
        with pytest.raises(TimeoutError):
            service.verdict(PICTURE, timeout=0.01)
        gate.open.set()
        assert running.result(PATIENCE).status == "ok"
        assert service.verdict(PICTURE, timeout=PATIENCE).status == "ok"
        with pytest.raises(CancelledError):
            waiting.result(0)
        assert service.health().waiting == 0
    assert gate.batches == [1, 1]
    assert service.health().served == 2


@pytest.mark.parametrize(
    "options", [{"max_batch": 0}, {"queue": 0}, {"decoders": 0}, {"max_wait_ms": -1}, {"max_wait_ms": float("nan")}]
)
def test_sizes_that_make_no_sense_are_refused(gated: tuple[Scorer, Gate], options: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match="must be at least 1"):
        Service(gated[0], **options)


def test_a_frame_buffer_can_be_reused_as_soon_as_it_is_submitted(gated: tuple[Scorer, Gate]) -> None:
    scorer, gate = gated
    pictures = _pictures(12)
    wanted = [scorer.verdict(picture) for picture in pictures]
    with Service(scorer, decoders=1) as service:
        busy = gate.hold(service, PICTURE)
        futures = []
        for picture in pictures:
            frame = picture.copy()
            futures.append(service.submit(frame))
            frame[:] = 0
        gate.open.set()
        busy.result(PATIENCE)
        assert all(_alike(future.result(PATIENCE), one) for future, one in zip(futures, wanted, strict=True))


def test_streams_tensors_and_pillow_images_are_free_as_soon_as_they_are_submitted(gated: tuple[Scorer, Gate]) -> None:
    scorer, gate = gated
    picture = _pictures(1)[0]
    wanted = scorer.verdict(picture)
    with Service(scorer, decoders=1) as service:
        busy = gate.hold(service, PICTURE)
        image, stream = Image.fromarray(picture), io.BytesIO()
        tensor = torch.from_numpy(picture.transpose(2, 0, 1).copy())
        image.save(stream, "PNG")
        stream.seek(0)
        futures = [service.submit(image), service.submit(stream), service.submit(tensor)]
        image.paste((0, 0, 0), (0, 0, *image.size))
        stream.close()
        tensor[:] = 0
        gate.open.set()
        busy.result(PATIENCE)
        assert all(_alike(future.result(PATIENCE), wanted) for future in futures)


def test_what_is_no_image_is_an_error_of_the_caller(gated: tuple[Scorer, Gate]) -> None:
    nothing: list[Any] = [5, [PICTURE], io.StringIO("text"), PICTURE.astype(np.int64), torch.zeros(3, 9, 9) > 0]
    with Service(gated[0]) as service:
        for no_image in nothing:
            for ask in (service.submit, service.verdict):
                with pytest.raises(TypeError, match="an image is a path"):
                    ask(no_image)
        assert service.health().waiting == service.health().unjudged == 0


@pytest.mark.parametrize("fault", [ValueError("mine"), SystemExit(3), KeyboardInterrupt()])
def test_a_callback_that_fails_or_exits_costs_nobody_else(gated: tuple[Scorer, Gate], fault: BaseException) -> None:
    scorer, gate = gated
    called = threading.Event()

    def callback(_: Any) -> None:
        called.set()
        raise fault

    with Service(scorer) as service:
        future = gate.hold(service, PICTURE)
        future.add_done_callback(callback)
        gate.open.set()
        assert called.wait(PATIENCE)
        assert service.verdict(PICTURE, timeout=PATIENCE).status == "ok"
        assert service.health().state == "ready"


def test_a_callback_that_blocks_costs_nobody_else_and_may_close_the_service(gated: tuple[Scorer, Gate]) -> None:
    scorer, gate = gated
    released, closed = threading.Event(), threading.Event()
    service = Service(scorer)
    first, second = gate.hold(service, PICTURE), service.submit(PICTURE)
    first.add_done_callback(lambda _: released.wait(PATIENCE))
    gate.open.set()
    assert service.verdict(PICTURE, timeout=PATIENCE).status == "ok"

    def close(_: Any) -> None:
        service.close()
        closed.set()

    second.add_done_callback(close)
    assert closed.wait(PATIENCE)
    released.set()
    late = threading.Event()
    first.add_done_callback(lambda _: late.set())  # after the end, too, a callback is called
    assert late.wait(PATIENCE)


def _end_thread(service: Service, gate: Gate, busy: Future[Verdict], monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that waits at the gate ends after the batch that it holds, which is still answered."""

    def die() -> list[Any]:
        raise MemoryError

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(service, "_next_batch", die)
    gate.open.set()
    assert busy.result(PATIENCE).status == "ok"
    service._thread.join(PATIENCE)


def test_a_dead_engine_thread_is_seen_and_nobody_waits_for_it(
    gated: tuple[Scorer, Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, gate = gated
    service = Service(scorer)
    busy = gate.hold(service, PICTURE)
    waiting = service.submit(PICTURE)
    _end_thread(service, gate, busy, monkeypatch)
    with pytest.raises(ServiceError, match="has ended"):
        waiting.result(PATIENCE)
    health = service.health()
    assert (health.state, health.ready) == ("dead", False)
    assert "has ended" in health.last_error
    with pytest.raises(ServiceError, match="has ended"):
        service.verdict(PICTURE, timeout=PATIENCE)
    service.close()


def test_a_request_that_is_being_read_when_the_engine_thread_ends_is_refused(
    gated: tuple[Scorer, Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, gate = gated
    service = Service(scorer)
    busy = gate.hold(service, PICTURE)
    reading, go_on, prepare = threading.Event(), threading.Event(), scorer.prepare

    def slow(*given: Any) -> Any:
        reading.set()
        assert go_on.wait(PATIENCE)
        return prepare(*given)

    monkeypatch.setattr(scorer, "prepare", slow)
    late = service.submit(PICTURE)
    assert reading.wait(PATIENCE)
    _end_thread(service, gate, busy, monkeypatch)
    go_on.set()
    with pytest.raises(ServiceError, match="has ended"):
        late.result(PATIENCE)
    service.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_is_seen_and_refuses_instead_of_waiting_for_threads_it_has_not(gated: tuple[Scorer, Gate]) -> None:
    with Service(gated[0]) as service:
        assert service.verdict(PICTURE, timeout=PATIENCE).status == "ok"
        with service._lock:  # as another thread may hold it at the moment of the fork
            child = os.fork()
            if not child:
                answer = 1
                try:
                    health = service.health()
                    service.submit(PICTURE)
                except ServiceError as problem:
                    answer = 0 if health.state == "dead" and "forked" in f"{problem} {health.last_error}" else 2
                finally:
                    service.close()
                    os._exit(answer)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert service.verdict(PICTURE, timeout=PATIENCE).status == "ok"


def test_another_model_is_not_used(bundles: dict[str, Path]) -> None:
    with (
        runtime.serve(bundles[CLIP], threads=1) as service,
        runtime.load(bundles[FUSION], threads=1) as other,
        pytest.raises(BadInputError, match="only the policy can change"),
    ):
        service.use(other)


def test_asyncio_awaits_many_and_cancels_one(gated: tuple[Scorer, Gate]) -> None:
    scorer, gate = gated
    pictures = _pictures(6)
    wanted = [scorer.verdict(picture) for picture in pictures]

    async def main(service: Service) -> list[Verdict]:
        gate.hold(service, PICTURE)
        late = service.submit(PICTURE)
        waiting = asyncio.wrap_future(late)
        many = asyncio.gather(*(asyncio.wrap_future(service.submit(picture)) for picture in pictures))
        waiting.cancel()
        while not late.cancelled():  # the loop hands the cancelling on
            await asyncio.sleep(0)
        gate.open.set()
        return await asyncio.wait_for(many, PATIENCE)

    with Service(scorer) as service:
        found = asyncio.run(main(service))
        assert all(_alike(*pair) for pair in zip(found, wanted, strict=True))
        assert service.health().served == 7


def test_callbacks_that_block_delay_no_other_however_many(gated: tuple[Scorer, Gate]) -> None:
    scorer, gate = gated
    released = threading.Event()
    with Service(scorer, decoders=1) as service:
        futures = [gate.hold(service, PICTURE), *(service.submit(PICTURE) for _ in range(5))]
        for future in futures:
            future.add_done_callback(lambda _: released.wait(PATIENCE))
        gate.open.set()
        try:
            assert asyncio.run(_awaited(service)).status == "ok"
        finally:
            released.set()


async def _awaited(service: Service) -> Verdict:
    return await asyncio.wait_for(asyncio.wrap_future(service.submit(PICTURE)), PATIENCE)


def test_what_a_callback_raises_is_logged(gated: tuple[Scorer, Gate], caplog: pytest.LogCaptureFixture) -> None:
    scorer, gate = gated

    def fail(_: Any) -> None:
        raise KeyError("no such caller")

    with Service(scorer) as service:
        gate.hold(service, PICTURE).add_done_callback(fail)
        gate.open.set()
        service.verdict(PICTURE, timeout=PATIENCE)
        service._callbacks.shutdown()
    assert "a callback of a verdict failed" in caplog.text
    assert "no such caller" in caplog.text


def test_another_model_in_memory_is_not_used_though_its_card_is_the_same() -> None:
    """Nothing in the card of a model that was never released tells its weights."""
    release = load_release(CLIP)
    other = copy.deepcopy(release.model)
    with torch.no_grad():
        next(other.parameters()).add_(0.5)
    with (
        Service(load_scorer(release)) as service,
        model_scorer(copy.deepcopy(release.model), release.policy) as same,
        model_scorer(other, release.policy) as changed,
    ):
        service.use(same)
        with pytest.raises(BadInputError, match="only the policy can change"):
            service.use(changed)
