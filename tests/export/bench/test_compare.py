"""The benchmark times each engine and peer, its figures agree, and it refuses what it cannot compare."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export.bench.compare import bench, in_turns, order
from export.bench.peers import PEERS, clip_model, open_clip_model
from export.bundle.manifest import Verification
from export.bundle.store import read_bundle
from export.onnx.export import export_onnx
from zoo.cli import run
from zoo.errors import BadInputError, IncompatibleBundleError, MissingDependencyError
from zoo.models.clip import ClipImageTower, DualEncoder
from zoo.registry import create_model, model_card

CLIP = "test_safeclip.random"
SMALL = ["--batch-sizes", "1,3", "--threads", "1", "--rounds", "5", "--jpeg-size", "80x60"]


def _change(folder: Path, name: str, **changes: object) -> None:
    """Write other fields of an engine into the manifest of a bundle."""
    manifest = read_bundle(folder).manifest
    changed = [dataclasses.replace(e, **changes) if e.name == name else e for e in manifest.engines]  # type: ignore[arg-type]
    dataclasses.replace(manifest, engines=tuple(changed)).write(folder)


@pytest.fixture(scope="module")
def two(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an fp32 engine that was not verified, and an int8 engine whose manifest says that it was."""
    folder = Path(shutil.copytree(bundles[CLIP], tmp_path_factory.mktemp("bench") / "bundle"))
    export_onnx(CLIP, folder, precision="int8")
    _change(folder, "onnx-int8", verification=Verification(True, 256, 1, 12, 0, {}, "cpu", "drawn"))
    return folder


@pytest.mark.parametrize("road", ["jpeg", "pixels"])
def test_a_run_gives_rows_and_ratios_and_writes_them(
    two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], road: str
) -> None:
    against = ["--against", "transformers,transformers-bf16"]
    assert run(["bench", str(two), *SMALL, *against, "--input", road, "--out", str(tmp_path / "out")]) == 0
    written = json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8"))
    sides = ["onnx-fp32", "onnx-int8", "transformers", "transformers-bf16"]
    rows = {(row["name"], row["batch"]): row for row in written["rows"]}
    assert list(rows) == [(side, batch) for batch in (1, 3) for side in sides]
    for (_, batch), row in rows.items():
        assert 0 < row["fastest"] <= row["p50"] <= row["p90"] <= row["p99"]
        assert row["images_per_second"] == pytest.approx(1000 * batch / row["p50"])
    ratios = {(ratio["name"], ratio["batch"]): ratio for ratio in written["ratios"]}
    assert list(ratios) == [pair for pair in rows if pair[0] != "transformers"]
    for (side, batch), ratio in ratios.items():
        assert ratio["median"] == pytest.approx(rows["transformers", batch]["p50"] / rows[side, batch]["p50"])
        assert 0 < ratio["low"] <= ratio["high"]
    assert [(side["name"], side["precision"], side["verified"], side["peer"]) for side in written["sides"]] == [
        ("onnx-fp32", "fp32", None, False),
        ("onnx-int8", "int8", True, False),
        ("transformers", "fp32", None, True),
        ("transformers-bf16", "bf16", None, True),
    ]
    size = model_card(CLIP).image
    assert size is not None
    task = {"jpeg": "JPEG bytes of 80x60 to verdict", "pixels": f"preprocessed pixels of {size.size}x{size.size}"}
    assert task[road] in written["setting"]["task"]
    shown = capsys.readouterr().out
    assert shown == (tmp_path / "out" / "bench.md").read_text(encoding="utf-8")
    assert re.search(r"\| onnx-int8 \| int8 \| yes \| 1 of 256 \|", shown)
    assert "| onnx-fp32 | fp32 | not yet | - |" in shown
    assert "times as fast as transformers |" in shown
    with Image.open(tmp_path / "out" / "bench.png") as plot:
        assert min(plot.size) > 300
        assert len(set(plot.convert("L").tobytes())) > 10


def test_the_first_peer_is_the_reference_and_engines_can_be_chosen(two: Path) -> None:
    found = bench(two, against=["transformers-bf16", "transformers"], engines=["onnx-int8"], batches=[2], rounds=5,
                  threads=1, size=(80, 60), input="pixels")  # fmt: skip
    assert [side.name for side in found.sides] == ["onnx-int8", "transformers-bf16", "transformers"]
    assert [ratio.name for ratio in found.ratios] == ["onnx-int8", "transformers"]
    assert found.reference == "transformers-bf16"
    assert "times as fast as transformers-bf16 |" in found.text()


def test_an_engine_that_does_not_run_here_is_listed_with_the_reason(two: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(two, tmp_path / "bundle"))
    _change(folder, "onnx-int8", runs_on=("cuda",))
    found = bench(folder, batches=[1], rounds=5, threads=1, size=(80, 60))
    assert [side.name for side in found.sides] == ["onnx-fp32", "transformers"]
    assert found.left_out == {"onnx-int8": "made for cuda"}
    assert "left out: onnx-int8, made for cuda" in found.text()
    with pytest.raises(IncompatibleBundleError, match="onnx-int8 on cpu: made for cuda"):
        bench(folder, engines=["onnx-int8"], batches=[1], rounds=5, threads=1, size=(80, 60))


def test_every_round_has_every_side_and_each_comes_first() -> None:
    names = ["a", "b", "c"]
    rounds = [order(names, number) for number in range(6)]
    assert all(sorted(one) == names for one in rounds)
    assert {one[0] for one in rounds} == {one[-1] for one in rounds} == set(names)
    called: list[str] = []
    runs = {name: (lambda name=name: called.append(name)) for name in names}
    times = in_turns(runs, 6)
    assert called[6:] == [name for one in rounds for name in one]  # after two rounds to warm up
    assert {name: found.shape for name, found in times.items()} == dict.fromkeys(names, (6,))


def test_the_transformers_peer_does_the_same_work() -> None:
    model = create_model(CLIP)
    assert isinstance(model, DualEncoder)
    peer, tower = clip_model(model.card), model.image_tower
    assert isinstance(tower, ClipImageTower)
    state = {key: value for key, value in tower.state_dict().items() if not key.startswith("normalise")}
    missing, unexpected = peer.load_state_dict(state, strict=False)
    assert not unexpected
    assert not [key for key in missing if key.startswith(("vision_model", "visual_projection"))]
    size = model.card.image.size if model.card.image else 0
    pixels = torch.rand(2, 3, size, size)
    with torch.inference_mode():
        ours = tower(pixels).sequence
        theirs = peer.vision_model(pixel_values=tower.normalise(pixels)).last_hidden_state
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_open_clip_has_as_many_weights() -> None:
    try:
        import open_clip  # type: ignore[import-not-found, unused-ignore]
    except (ImportError, RuntimeError) as problem:
        pytest.skip(f"open_clip: {problem}")
    card = model_card(CLIP)
    theirs = sum(weight.numel() for weight in open_clip_model(open_clip, card).visual.parameters())
    peer = clip_model(card)
    ours = sum(weight.numel() for weight in [*peer.vision_model.parameters(), *peer.visual_projection.parameters()])
    assert theirs == ours


def test_a_peer_that_is_not_there_is_refused(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for against, error in {
        "transfomers": 'no peer is called "transfomers"; did you mean "transformers"',
        "transformers,optimum": "optimum cannot be a peer: optimum-onnx",
        "": "name at least one peer: transformers, ",
    }.items():
        assert run(["bench", str(two), "--against", against, *SMALL]) == 1
        assert error in capsys.readouterr().err


def test_a_package_that_is_not_installed_is_named_with_its_command(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)  # how Python itself marks what cannot be imported
    with pytest.raises(MissingDependencyError, match="pip install --no-deps --target DIR open_clip_torch"):
        bench(two, against=["open_clip"], batches=[1], rounds=5, threads=1, size=(80, 60))


def test_a_compiler_that_is_not_there_is_named(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingDependencyError, match="no-such-compiler is not installed"):
        bench(two, against=["transformers-compile"], batches=[1], rounds=5, threads=1, size=(80, 60))


@pytest.mark.parametrize("name", ["test_nsfwjs.random", "test_multimodal_nsfw.fusion"])
def test_a_bundle_of_another_kind_is_refused(bundles: dict[str, Path], name: str) -> None:
    with pytest.raises(BadInputError, match=f"is a {name}: every peer is a CLIP"):
        bench(bundles[name], batches=[1], rounds=5, size=(80, 60))


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"batches": [0]}, "need at least 5 rounds, 1 thread and batches of 1"),
        ({"batches": []}, "need at least 5 rounds, 1 thread and batches of 1"),
        ({"threads": 0}, "need at least 5 rounds, 1 thread and batches of 1"),
        ({"rounds": 4}, "need at least 5 rounds, 1 thread and batches of 1"),
        ({"size": (0, 60)}, "a width and a height of at least 1 pixel, got 0x60"),
        ({"batches": [65]}, "batch_size is 65"),
        ({"engines": ["onnx-fp23"]}, 'no engine "onnx-fp23"; did you mean "onnx-fp32"'),
    ],
)
def test_figures_that_mean_nothing_are_refused(
    bundles: dict[str, Path], changed: dict[str, object], error: str
) -> None:
    settings = {"batches": [1], "threads": 1, "rounds": 5, "size": (80, 60), **changed}
    with pytest.raises(BadInputError, match=error):
        bench(bundles[CLIP], **settings)  # type: ignore[arg-type]


def test_options_that_are_no_numbers_and_a_file_for_a_folder_are_refused(
    two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("kept", encoding="utf-8")
    for options, error in {
        ("--batch-sizes", "1,eight"): '--batch-sizes takes whole numbers such as 1,8,32, got "eight"',
        ("--jpeg-size", "1024"): '--jpeg-size takes whole numbers such as 1024x768, got ""',
    }.items():
        assert run(["bench", str(two), *options]) == 1
        assert error in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        run(["bench", str(two), "--out", str(tmp_path / "file")])
    assert end.value.code == 2
    assert "is a file, and several files are written: name a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text(encoding="utf-8") == "kept"


def test_help_names_every_peer(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["bench", "--help"])
    shown = capsys.readouterr().out
    assert all(re.search(rf"^  {name} ", shown, re.MULTILINE) for name in PEERS)
