"""What was hashed of a bundle is what runs, whatever takes the place of its files after the hash."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from export import runtime
from export.bundle.store import Bundle, read_bundle
from export.onnx.export import export_onnx
from export.precision import nodes
from export.runtime.engine import open_best
from zoo.errors import IncompatibleBundleError, TamperedFileError
from zoo.files.held import HeldFiles, sha256

CLIP = "test_safeclip.random"
FP32 = "onnx-fp32.onnx"
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)


def test_a_file_is_hashed_and_used_without_a_copy_in_memory(tmp_path: Path) -> None:
    size = 32_000_000
    with (tmp_path / "weights").open("wb") as stream:
        stream.truncate(size)
    digest = sha256(tmp_path / "weights")
    tracemalloc.start()
    try:
        held = HeldFiles(tmp_path, {"weights": digest})
        with held.content("weights") as content, held.place("weights") as place:
            assert content[size - 1] == 0
            assert Path(os.fsdecode(place)).stat().st_size == size
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.05 * size


@pytest.fixture
def bundle(bundles: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundles[CLIP], tmp_path / "bundle"))


@pytest.fixture
def external(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle whose engine keeps its weights in a second file, as those beyond 2 GB do."""
    monkeypatch.setattr(nodes, "TWO_GIGABYTES", 0)
    export_onnx(CLIP, tmp_path / "bundle")
    return tmp_path / "bundle"


def _swap_after_check(monkeypatch: pytest.MonkeyPatch, folder: Path, written_to: bool = False) -> None:
    """After the hash of a file has been compared, another one lies at its name."""
    check = HeldFiles.check

    def check_and_swap(self: HeldFiles, name: str, wanted: str) -> None:
        check(self, name, wanted)
        path, other = folder / name, folder.parent / "other"
        other.write_bytes(b"something else")
        if written_to:
            path.write_bytes(other.read_bytes())
        else:
            other.replace(path)

    monkeypatch.setattr(HeldFiles, "check", check_and_swap)


def _answers(bundle: Bundle) -> dict[str, float]:
    engine = open_best(bundle, threads=1)
    with runtime.BundleScorer(bundle, engine, bundle.policy, threads=1, batch_size=2) as scorer:
        return dict(scorer.verdicts(PIXELS)[0].scores)


def test_a_bundle_whose_files_are_replaced_after_the_hash_answers_as_before(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SAFETY_ZOO_CACHE", str(tmp_path / "cache"))
    whole = read_bundle(bundle)
    scores, bank = _answers(whole), runtime.text_bank(whole, whole.policy.single())
    shutil.rmtree(tmp_path / "cache")
    _swap_after_check(monkeypatch, bundle)
    held = read_bundle(bundle)
    assert {(bundle / name).read_bytes() for name in held.manifest.files} == {b"something else"}
    assert _answers(held) == scores
    np.testing.assert_array_equal(runtime.text_bank(held, held.policy.single()), bank)


def test_a_file_that_is_written_to_after_the_hash_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _swap_after_check(monkeypatch, bundle, written_to=True)
    with pytest.raises(TamperedFileError, match="was written to after it was checked"):
        read_bundle(bundle)


def test_a_file_that_is_written_to_and_dated_back_is_refused_and_a_new_link_is_not(bundle: Path) -> None:
    """`zoo policy use` links the files of a bundle that runs."""
    held, path = read_bundle(bundle), bundle / FP32
    before, content = path.stat(), path.read_bytes()
    os.link(path, bundle / "link")
    assert held.files.read(FP32) == content
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(TamperedFileError, match="was written to after it was checked"):
        held.files.read(FP32)


def test_weights_in_a_second_file_are_those_that_were_hashed(external: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_bundle(external)
    assert FP32 + ".data" in whole.manifest.files
    scores = _answers(whole)
    _swap_after_check(monkeypatch, external)
    assert _answers(read_bundle(external)) == scores


@pytest.mark.parametrize("by_path", [True, False], ids=["by its path", "by its bytes"])
def test_weights_that_the_manifest_does_not_list_are_not_read(
    external: Path, by_path: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = external / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["files"][FP32 + ".data"]
    manifest["engines"][0]["files"] = [FP32]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    monkeypatch.chdir(external)  # where a graph without a path would look
    if not by_path:  # as on a system without /proc
        monkeypatch.setattr("os.path.exists", lambda name: False)
    with pytest.raises(IncompatibleBundleError, match="cannot run it"):
        runtime.load(external, engine="onnx-fp32", threads=1)


def test_openvino_reads_what_was_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="extra `openvino` is not installed")
    from export.openvino import export_openvino

    export_openvino(CLIP, tmp_path / "bundle")
    whole = read_bundle(tmp_path / "bundle")
    assert open_best(whole, threads=1).spec.kind == "openvino"
    scores = _answers(whole)
    _swap_after_check(monkeypatch, tmp_path / "bundle")
    assert _answers(read_bundle(tmp_path / "bundle")) == scores


def test_openvino_does_not_answer_by_what_is_written_to_its_file_while_it_runs(tmp_path: Path) -> None:
    """As by `cp`, which writes into a file that is there; one cut short would kill the process."""
    pytest.importorskip("openvino", reason="extra `openvino` is not installed")
    from export.openvino import export_openvino

    export_openvino(CLIP, tmp_path / "bundle")
    with runtime.load(tmp_path / "bundle", engine="openvino-fp32", threads=1) as scorer:
        before = scorer.verdicts(PIXELS)
        weights = tmp_path / "bundle" / scorer.engine.spec.files[1]
        with weights.open("r+b") as stream:
            stream.write(bytes(weights.stat().st_size))
        assert scorer.verdicts(PIXELS) == before
        with weights.open("r+b") as stream:
            stream.truncate(10)
        assert scorer.verdicts(PIXELS) == before
