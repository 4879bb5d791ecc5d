"""The matrix of models, engines and precisions: made cell by cell, kept, gone on with, and shown."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

import zoo.registry
from export.verify.inputs import image_probes, text_probes
from export.verify.report import Check
from tests.benchmarks.common import answered
from tests.benchmarks.matrix.__main__ import main
from tests.benchmarks.matrix.cell import COLUMNS, Cell, Column, Depth, Store
from tests.benchmarks.matrix.drawn import draw_inputs
from tests.benchmarks.matrix.make import Settings, _content
from tests.benchmarks.matrix.rows import Row, registered_rows, usual_depth
from tests.benchmarks.matrix.run import run_matrix
from tests.benchmarks.matrix.table import shown, table
from zoo.contract.card import ModelCard
from zoo.data.manifest import read_manifest, read_records
from zoo.inputs.image import load
from zoo.models.base import ZooModel
from zoo.registry import ModelEntry, list_models, model_card, model_entry
from zoo.release.store import load_release, write_release

LAION, BERT = "test_laion_nsfw.random", "test_prompt_bert.random"
ONNX: list[Column] = [("onnx", "fp32"), ("onnx", "int8_qdq")]
needs_tensorrt = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")


def _line(text: str, name: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| `{name}`")]
    return [cell.strip() for cell in line.strip("|").split(" | ")][1:]


def test_cells_are_verified_timed_and_kept(tmp_path: Path) -> None:
    store, rows = Store(tmp_path), registered_rows(LAION)
    made = run_matrix(rows, ONNX, store, Settings(), depth="verify")
    assert [cell.column for cell in made] == ONNX
    assert store.read() == {(LAION, cell.column): cell for cell in made}
    plain, static = made
    assert plain.outcome == "done", plain.note
    assert plain.products["fp32"] == sum(plain.products.values())
    assert plain.flips == 0
    assert plain.inputs is not None
    assert plain.inputs > 256
    assert plain.ms is not None
    assert plain.wall_ms is not None
    assert plain.ms > 0
    assert static.products["int8"] > 0
    assert static.flips is not None
    assert not list(tmp_path.rglob("*.onnx"))
    assert not list(tmp_path.rglob("*.begun"))
    cells = _line(table(store), LAION)
    assert cells[0] == shown(plain)
    assert cells[0].startswith(f"{plain.products['fp32']}/{plain.products['fp32']}, 0 of {plain.inputs} flips, ")
    assert cells[1] == "not run"


def test_a_second_run_makes_only_what_is_missing_or_of_another_making(tmp_path: Path) -> None:
    store, rows = Store(tmp_path), registered_rows(LAION)

    def made(depth: Depth, *, columns: list[Column] = ONNX[:1], again: bool = False) -> list[tuple[str, str]]:
        cells = run_matrix(rows, columns, store, Settings(), depth=depth, again=again)
        return [(cell.precision, cell.depth) for cell in cells]

    assert made("parse") == [("fp32", "parse")]
    assert made("parse") == []
    assert made("build") == [("fp32", "build")]
    assert made("parse") == []  # it came farther than that before
    assert made("parse", columns=[*ONNX[:1], ("onnx", "int8")]) == [("int8", "parse")]
    assert made("parse", again=True) == [("fp32", "parse")]
    (cell,) = [cell for cell in store.read().values() if cell.precision == "fp32"]
    changes = (
        {"versions": cell.versions | {"torch": "1.0"}},
        {"graph": "of another architecture"},
        {"setting": "opset 11"},
        {"outcome": "failed"},
    )
    for change in changes:
        store.write(dataclasses.replace(cell, **change))
        assert made("parse") == [("fp32", "parse")], change
    store.write(dataclasses.replace(cell, graph="of another architecture"))
    fp32, _, _, dynamic, *_ = _line(table(store), LAION)
    assert fp32 == "not run"
    assert dynamic.startswith("exported ")


@pytest.mark.slow
def test_a_cell_that_fails_is_kept_with_its_error_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(card: ModelCard) -> ZooModel:
        raise RuntimeError("this builder | builds nothing")

    card = model_card(BERT).replace(name="test_a_broken.random")
    monkeypatch.setitem(zoo.registry._entries, card.name, ModelEntry(card, broken, model_entry(BERT).policy, "random"))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- export-matrix -->\nold\n<!-- /export-matrix -->\nafter\n", encoding="utf-8")
    arguments = ["test_[ap]*", "--engine", "onnx", "--precision", "fp32", "--depth", "parse"]
    arguments += ["--out", str(tmp_path / "cells")]
    assert answered(main, [*arguments, "--into", str(page)]) == 1
    said = capsys.readouterr()
    assert "1 cells failed" in said.err
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- export-matrix -->\n| model |")
    assert text.endswith("\n<!-- /export-matrix -->\nafter\n")
    assert "old" not in text.splitlines()
    assert _line(text, card.name)[0] == "FAILED: RuntimeError: this builder \\| builds nothing"
    assert _line(text, BERT)[0].startswith("exported ")
    assert said.out.index(f"{card.name} onnx-fp32") < said.out.index(f"{BERT} onnx-fp32")
    assert answered(main, [*arguments, "--again"]) == 1
    said = capsys.readouterr()
    assert said.out.index(f"{BERT} onnx-fp32") < said.out.index(f"{card.name} onnx-fp32")  # it has its turn last now
    assert answered(main, [*arguments, "--render"]) == 0


def test_what_was_cut_off_is_shown_and_made_last(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rows = [*registered_rows(BERT), *registered_rows(LAION)]
    store.begin(BERT, ("onnx", "fp32"))
    store.write(_cell(LAION, outcome="refused", note="a; b"))
    assert _line(table(store), LAION)[0] == "not run"  # of another graph
    made = run_matrix(rows, ONNX[:1], store, Settings(), depth="parse")
    assert [cell.model for cell in made] == [LAION, BERT]
    assert not store.was_cut(BERT, ("onnx", "fp32"))


def _cell(model: str, **changes: object) -> Cell:
    cell = Cell(model, "onnx", "fp32", "parse", "another", "", {"torch": "2"}, "done", products={"fp32": 3, "int8": 1})
    return dataclasses.replace(cell, **changes)  # type: ignore[arg-type]  # any field


def test_what_a_cell_shows() -> None:
    assert shown(_cell(LAION)) == "exported 3/4"
    assert shown(_cell(LAION, kind="tensorrt", depth="build")) == "built 3/4"
    assert shown(_cell(LAION, depth="build", ms=12.34)) == "starts 3/4, 12.3 ms"
    verified = _cell(LAION, depth="verify", flips=2, inputs=268, ms=123.4, outcome="missed", note="2 flip; and more")
    assert shown(verified) == "3/4, 2 of 268 flips, 123 ms; MISSED: 2 flip"
    assert shown(dataclasses.replace(verified, outcome="done", alike=True, difference=0.0123)) == (
        "3/4, 2 of 268 flips (±0.01), 123 ms"
    )
    assert len(shown(_cell(LAION, outcome="refused", note="x" * 1000))) < 100


@pytest.mark.parametrize(
    ("name", "columns"),
    [(LAION, ["image"]), (BERT, ["text"]), ("test_multimodal_nsfw.fusion", ["image", "text"])],
)
def test_scales_are_found_on_other_inputs_than_those_that_are_verified(
    tmp_path: Path, name: str, columns: list[str]
) -> None:
    card = model_card(name)
    folder = draw_inputs(card, tmp_path / "drawn", 3, unseen=True)
    records = read_records(folder / "manifest.csv")
    assert [list(record) for record in records] == [columns] * 3
    rows = read_manifest(folder / "manifest.csv")
    if card.image is not None:
        verified = {pixels.tobytes() for pixels in image_probes(Check().count, card.image)[0]}
        drawn = [load(row.image, card.image) for row in rows if row.image is not None]
        assert len(drawn) == 3
        assert not {pixels.tobytes() for pixels in drawn} & verified
    if card.reads_text:
        assert not {row.text for row in rows} & set(text_probes(Check().count))


@pytest.mark.slow
def test_a_run_that_is_terminated_leaves_a_mark_and_no_graph(tmp_path: Path) -> None:
    scratch, store = tmp_path / "scratch", Store(tmp_path / "cells")
    scratch.mkdir()
    arguments = [BERT, "--engine", "onnx", "--depth", "verify", "--out", str(store.folder)]
    code = "import runpy, tests.tiny_models; runpy.run_module('tests.benchmarks.matrix', run_name='__main__')"
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], env={**os.environ, "TMPDIR": str(scratch)})
    try:
        while process.poll() is None and not store.was_cut(BERT, ("onnx", "fp32")):
            time.sleep(0.05)
        process.terminate()
        assert process.wait() == 128 + signal.SIGTERM
    finally:
        process.kill()
    assert store.was_cut(BERT, ("onnx", "fp32"))
    assert not list(scratch.glob("safety-zoo-*"))


def test_graphs_of_8_bits_are_those_that_are_made_without_the_fp32_graph(tmp_path: Path) -> None:
    columns: list[Column] = [("onnx", "fp32"), ("onnx", "int8"), ("onnx", "int8_qdq")]
    rows = registered_rows(BERT)
    together = run_matrix(rows, columns, Store(tmp_path / "together"), Settings(), depth="build")
    alone = run_matrix(rows, columns[1:], Store(tmp_path / "alone"), Settings(), depth="build")
    assert [cell.outcome for cell in together] == ["done"] * 3
    assert [cell.products for cell in together[1:]] == [cell.products for cell in alone]
    assert alone[0].products["int8"] > 0
    assert alone[1].products["int8"] > 0  # of a model that reads texts alone


@needs_tensorrt
@pytest.mark.tensorrt
def test_tensorrt_builds_what_it_reads_and_names_the_node_that_it_does_not(tmp_path: Path) -> None:
    columns: list[Column] = [("tensorrt", "fp32"), ("tensorrt", "int8")]
    settings = Settings(package="tensorrt_rtx")
    built, refused = run_matrix(registered_rows(LAION), columns, Store(tmp_path), settings, depth="verify")
    assert (built.outcome, built.depth) == ("done", "build")  # nobody verifies it without a GPU
    assert built.products["fp32"] == sum(built.products.values())
    assert "tensorrt_rtx" in built.versions
    assert refused.outcome == "refused"
    assert shown(refused).startswith("no: node")
    assert "(QuantizeLinear)" in shown(refused)


@pytest.mark.slow
def test_the_trained_weights_of_a_release_have_a_row_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = load_release(LAION)
    write_release(found.model, found.policy, tmp_path / "release")
    arguments = ["--model", str(tmp_path / "release"), "--engine", "onnx", "--precision", "fp32"]
    assert answered(main, [*arguments, "--out", str(tmp_path / "cells"), "--depth", "parse"]) == 0
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith(f"| `{LAION}`")]
    assert f"`{LAION}`, trained (" in line
    assert "exported" in line


def test_a_cell_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    settings = Settings(calibrate=empty)
    (cell,) = run_matrix(registered_rows(LAION), ONNX[1:], Store(tmp_path / "cells"), settings, depth="parse")
    assert cell.outcome == "refused"
    assert "holds no images" in cell.note
    assert shown(cell).startswith("no: ")


def test_models_that_differ_in_weights_alone_share_a_row() -> None:
    rows = registered_rows()
    assert sorted(name for row in rows for name in row.names) == list_models()
    (row,) = registered_rows("safeclip_tiny.zero*")
    assert row.names == tuple(list_models("safeclip_tiny.*"))
    assert row.label == "`safeclip_tiny.fare_linf4`, `.tecoa_linf4`, `.zeroshot`"


def test_every_shipped_model_is_in_the_table_before_anything_was_run(tmp_path: Path) -> None:
    text = table(Store(tmp_path))
    for name in list_models("[!t]*"):
        architecture, _, tag = name.partition(".")
        assert f"`{name}`" in text or (f"| `{architecture}." in text and f"`.{tag}`" in text)
    assert "test_" not in text
    assert _line(text, "safeclip_vit_l14_336.zeroshot") == ["not run"] * len(COLUMNS)


@pytest.mark.parametrize(
    ("name", "depth"),
    [("safeclip_tiny.zeroshot", "verify"), ("safeclip_vit_b32.zeroshot", "parse"), ("q16_vit_l14.prompts", None)],
)
def test_how_far_a_model_is_taken_goes_by_its_size(name: str, depth: Depth | None) -> None:
    (row,) = registered_rows(name)
    assert usual_depth(row) == depth
    assert usual_depth(Row("x", ("x",), "x", "", None)) == "verify"  # a release


def test_bad_arguments_are_refused_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "cells")]
    assert answered(main, [LAION, *out, "--into", str(tmp_path / "page.md")]) == 1
    assert "has no lines <!-- export-matrix -->" in capsys.readouterr().err
    assert answered(main, ["nothing*", *out]) == 1
    assert 'no registered model matches "nothing*"' in capsys.readouterr().err
    assert answered(main, [LAION, *out, "--images", str(tmp_path / "photos")]) == 1
    assert "no such folder of images" in capsys.readouterr().err
    assert answered(main, [LAION, *out, "--engine", "tensorrt", "--precision", "int8"]) == 1
    assert "no such cells" in capsys.readouterr().err
    broken = tmp_path / "cells" / LAION / "onnx-fp32.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{}", encoding="utf-8")
    assert answered(main, [*out, "--render"]) == 1
    assert "remove it" in capsys.readouterr().err


def test_a_cell_is_made_again_when_what_it_was_judged_on_changes(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    said = []
    for content in ("a dog", "a cat"):
        texts.write_text(content, encoding="utf-8")
        _content.cache_clear()  # as in the next run
        said.append([Settings(Check(texts=texts)).text("fp32"), Settings(calibrate=tmp_path).text("int8_qdq")])
    assert all(one != other for one, other in zip(*said, strict=True))
    assert Settings(calibrate=tmp_path).text("fp32") == Settings().text("fp32")
