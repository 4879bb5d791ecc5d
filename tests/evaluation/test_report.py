"""The report: complete in itself, escaped, blurred, and never broken by what it has to show."""

from __future__ import annotations

import base64
import html
import io
import os
import re
import shlex
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic.dataclasses import dataclass

from zoo.cli import run
from zoo.contract import schema
from zoo.contract.card import Measurement, ModelCard
from zoo.contract.verdict import Verdict, unjudged
from zoo.data.manifest import read_manifest
from zoo.errors import BadCardError, BadInputError
from zoo.evaluation.labelling import Labelling
from zoo.evaluation.report import EvaluationReport, versions
from zoo.evaluation.run import SHOWN, Evaluation, evaluate
from zoo.files.held import sha256
from zoo.release.store import load_release, write_release

UNREADABLE = unjudged(
    "unreadable", "broken.jpg: broken or truncated image", policy="p@1", model="m.t", source="broken.jpg"
)


class _Page(HTMLParser):
    """The tags of a page with their attributes, its visible text, and whether every tag was closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def thumbnails(self) -> list[dict[str, str | None]]:
        return [a for tag, a in self.tags if tag == "img" and a.get("class") != "plot"]


def _verdict(score: float, source: str = "") -> Verdict:
    decision = "unsafe" if score > 0.6 else "safe"
    scores = {"forbidden": score, "neutral": 1 - score}
    return Verdict("ok", decision, "forbidden" if score > 0.5 else "neutral", scores, "p@1", "m.t", source)  # type: ignore[arg-type]


def _write(out: Path, scores: list[float | None], labels: list[int | None], **other: Any) -> tuple[_Page, str]:
    given: dict[str, Any] = {
        "model": "m.t",
        "policy": "p@1",
        "data": "a test",
        "figures": {},
        "verdicts": [UNREADABLE if score is None or np.isnan(score) else _verdict(score) for score in scores],
        "images": [None] * len(scores),
        "texts": [None] * len(scores),
        "threshold": 0.6,
    }
    path = Evaluation(scores=scores, labels=labels, **(given | other)).write_page(out)
    assert path == out / "report.html"
    source = path.read_text(encoding="utf-8")
    page = _Page(source)
    assert page.open == []
    return page, source


def _picture(path: Path, size: tuple[int, int] = (640, 400)) -> Path:
    Image.new("RGB", size, (200, 40, 40)).save(path)
    return path


def test_everything_is_inside_the_file(tmp_path: Path) -> None:
    picture = _picture(tmp_path / "sign.jpg")
    page, source = _write(tmp_path / "out", [0.9, 0.1], [1, 0], images=[picture, picture])
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object")]
    assert not re.search(r"https?://|url\((?!#)|@import", source)
    for _, attributes in [entry for entry in page.tags if entry[0] == "img"]:
        assert (attributes["src"] or "").startswith("data:image/")
        assert attributes["alt"]
    thumbnail = page.thumbnails()[0]["src"] or ""
    decoded = Image.open(io.BytesIO(base64.b64decode(thumbnail.removeprefix("data:image/jpeg;base64,"))))
    assert decoded.size == (192, 120)
    assert str(tmp_path) not in source  # a report is passed on: it names files, not whose folders they lie in


def test_key_figures(tmp_path: Path) -> None:
    page, _ = _write(tmp_path, [0.9, 0.8, 0.3, 0.7, 0.1, 0.2, None], [1, 1, 1, 0, 0, 0, 1])
    assert "items 7 judged: 3 unsafe, 3 safe" in page.text
    assert "unreadable 1" in page.text
    assert "AUROC 0.8889 3 positives (unsafe), 3 negatives (safe)" in page.text
    assert "TPR 0.667 2 of 3 unsafe flagged" in page.text
    assert "FPR 0.333 1 of 3 safe flagged" in page.text


def test_the_gallery_shows_the_mistakes_in_order(tmp_path: Path) -> None:
    names = ["hit.jpg", "alarm.jpg", "worse_alarm.jpg", "missed.jpg", "quiet.jpg"]
    scores = [0.95, 0.7, 0.9, 0.2, 0.1]
    page, _ = _write(
        tmp_path, list(scores), [1, 0, 0, 1, 0], verdicts=[_verdict(s, n) for s, n in zip(scores, names, strict=True)]
    )
    parts = re.split(r"(?=Most confident unsafe|False positives|False negatives|Not judged)", page.text)[1:]
    shown = [re.findall(r"\w+\.jpg", part) for part in parts]
    assert shown == [["hit.jpg", "worse_alarm.jpg", "alarm.jpg"], ["worse_alarm.jpg", "alarm.jpg"], ["missed.jpg"], []]
    assert "None." in parts[3]


def test_long_galleries_say_how_many_there_are(tmp_path: Path) -> None:
    page, _ = _write(tmp_path, [0.9] * 40, [None] * 40)
    assert f"Most confident unsafe ({SHOWN} of 40)" in page.text
    assert len([tag for tag, _ in page.tags if tag == "figure"]) == SHOWN


def test_user_text_is_escaped_everywhere(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)> & \u202e'
    name = "<b onmouseover=alert(3)>.jpg"
    picture = _picture(tmp_path / name)
    verdicts = [_verdict(0.9, str(picture)), unjudged("unreadable", evil, policy=evil, model=evil, source=evil)]
    page, source = _write(
        tmp_path / "out",
        [0.9, None],
        [0, None],
        model=evil,
        policy=evil,
        data=evil,
        command=evil,
        verdicts=verdicts,
        images=[picture, None],
        texts=[evil, evil],
    )
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "b onmouseover"})
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    assert "<script" not in source
    assert name in page.text
    assert page.text.count("<script>alert(1)</script>") >= 5
    assert any(name in (a["alt"] or "") for a in page.thumbnails())


def test_images_that_may_be_unsafe_are_blurred_until_pointed_at(tmp_path: Path) -> None:
    picture = _picture(tmp_path / "a.jpg")
    broken_scores = unjudged("invalid_scores", "NaN", policy="p", model="m")
    verdicts = [_verdict(0.9), _verdict(0.2), broken_scores]  # an alarm, a miss, an unjudged
    page, source = _write(tmp_path, [0.9, 0.2, None], [0, 1, 0], verdicts=verdicts, images=[picture] * 3)
    assert [a.get("class") for a in page.thumbnails()] == ["hidden"] * 4  # the alarm stands in two parts
    assert re.search(r"img\.hidden \{ filter: blur", source)
    assert re.search(r"figure:hover img\.hidden, figure:focus img\.hidden.*\{ filter: none", source)
    assert all(a.get("tabindex") == "0" for tag, a in page.tags if tag == "figure")


def test_without_labels_there_is_a_histogram_only(tmp_path: Path) -> None:
    page, _ = _write(tmp_path / "plain", [0.9, 0.1], [None, None], threshold=None)
    assert "False positives" not in page.text
    assert "AUROC – no item has both a label and a score" in page.text
    _write(tmp_path / "labelled", [0.9, 0.1], [1, 0])
    plain, labelled = (Image.open(tmp_path / name / "report.png") for name in ("plain", "labelled"))
    assert plain.format == labelled.format == "PNG"
    assert plain.width < labelled.width  # one panel, two panels


@pytest.mark.parametrize(("label", "classes"), [(1, "2 positives (unsafe), 0"), (0, "0 positives (unsafe), 2")])
def test_with_one_class_the_auroc_is_undefined(tmp_path: Path, label: int, classes: str) -> None:
    page, _ = _write(tmp_path, [0.9, 0.1], [label, label])
    assert f"AUROC undefined needs both classes, but there are {classes} negatives" in page.text


@pytest.mark.parametrize("count", [0, 3])
def test_with_nothing_judged_it_says_so(tmp_path: Path, count: int) -> None:
    page, _ = _write(tmp_path, [None] * count, [1] * count)
    assert f"items {count} no item was judged" in page.text
    assert f"Not judged ({count})" in page.text
    assert "TPR" not in page.text


def test_what_else_was_not_judged_is_counted_by_its_reason(tmp_path: Path) -> None:
    broken = unjudged("invalid_scores", "NaN", policy="p", model="m")
    page, _ = _write(tmp_path, [0.9, None, None, None], [1] * 4, verdicts=[_verdict(0.9), broken, broken, UNREADABLE])
    assert "unreadable 1 also not judged: 2 invalid_scores" in page.text


def test_unreadable_and_missing_images_get_a_placeholder(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    images = [tmp_path / "broken.jpg", tmp_path / "absent.jpg", None]
    page, _ = _write(tmp_path / "out", [None, 0.9, 0.8], [None] * 3, images=images, texts=[None, None, "only words"])
    assert page.text.count("the image cannot be shown") == 2
    assert page.text.count("no image") == 1
    assert "only words" in page.text
    assert page.thumbnails() == []
    assert "broken or truncated image" in page.text


def test_odd_titles_and_file_names_do_not_break_it(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")  # Latin-1 on disk: no valid UTF-8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page, _ = _write(tmp_path, [0.9], [1], data="$x_{ costs $5 \\frac", verdicts=[_verdict(0.9, name)])
    assert "caf?.jpg" in page.text
    assert "$x_{ costs $5" in page.text


def test_the_operating_point_is_the_policys_not_the_thresholds(tmp_path: Path) -> None:
    """Under `argmax` a score above the threshold need not be flagged; the report counts decisions."""
    verdicts = [Verdict("ok", "safe", "neutral", {"forbidden": 0.9}, "p", "m.t"), _verdict(0.1)]
    page, _ = _write(tmp_path, [0.9, 0.1], [1, 0], verdicts=verdicts)
    assert "TPR 0.000 0 of 1 unsafe flagged" in page.text


def test_the_figure_marks_the_operating_point_and_the_threshold(tmp_path: Path) -> None:
    scores, labels = [0.9, 0.8, 0.3, 0.7, 0.1, 0.2], [1, 1, 1, 0, 0, 0]
    _write(tmp_path / "with", list(scores), list(labels))
    _write(tmp_path / "without", list(scores), list(labels), threshold=None)
    pictures = [np.asarray(Image.open(tmp_path / name / "report.png").convert("RGB")) for name in ("with", "without")]
    diamond = (pictures[0] == (0xD5, 0x5E, 0x00)).all(axis=2)
    assert diamond[:, : diamond.shape[1] // 2].sum() > 50
    assert not np.array_equal(pictures[0], pictures[1])


@pytest.mark.parametrize(
    ("change", "named"),
    [({"texts": []}, r"one length, got \[0, 2\]"), ({"labels": [1, 3]}, "got 3"), ({"scores": [0.1, np.nan]}, "nan")],
)
def test_refused_before_anything_is_written(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    given: dict[str, Any] = {"scores": [0.9, 0.1], "labels": [1, 0]} | change
    with pytest.raises(BadInputError, match=named):
        _write(tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_charts_are_vectors_in_the_colours_of_the_page(tmp_path: Path) -> None:
    page, source = _write(tmp_path, [0.9, 0.8, 0.3, 0.7], [1, 1, 0, 0])
    charts = re.findall(r"<svg.*?</svg>", source, re.DOTALL)
    assert len(charts) == 2
    for chart in charts:
        assert not re.search("#[0-9a-f]{6}", chart)  # a fixed colour would not follow light and dark
        assert {"var(--paper)", "currentColor", "var(--safe)"} <= set(re.findall(r"var\(--\w+\)|currentColor", chart))
        names = set(re.findall(r'id="(\w+)"', chart))
        assert set(re.findall(r'(?:href="|url\()#(\w+)', chart)) <= names
        assert "<text" in chart
        width = float(re.search(r'viewBox="0 0 ([\d.]+)', chart)[1])  # type: ignore[index]
        smallest = min(float(size) for size in re.findall(r"font-size: ([\d.]+)px", chart))
        assert smallest * (400 - 34) / width >= 8  # pixels of a letter on a screen of 400
    assert "policy's decision: TPR 1.000, FPR 0.500" in page.text  # letters, not outlines
    assert re.search(r"\.charts text \{ fill: currentColor", source)  # else they are black on black
    styles = source.partition("prefers-color-scheme: dark")
    for name in set(re.findall(r"var\((--\w+)\)", source)):
        assert f"{name}: #" in styles[0]
        assert f"{name}: #" in styles[2]


# The base of all reports


@dataclass(frozen=True, config=schema.STRICT)
class _Counted(EvaluationReport):
    hits: int

    def measurements(self) -> list[Measurement]:
        return [Measurement("hits", self.hits, "a.csv", 3, self.command)]


def test_a_report_reads_itself_back(tmp_path: Path) -> None:
    report = _Counted(model="a/b", command="zoo count", versions=versions(), hits=2)
    path = report.write(tmp_path / "new")
    assert path == tmp_path / "new" / "a_b.json"
    assert _Counted.from_dict(schema.read_json(path)) == report
    assert set(report.versions) == {"safety_zoo", "torch", "transformers", "resizer", "python", "machine"}


def test_measurements_reach_the_card_of_the_same_weights_alone(tmp_path: Path) -> None:
    release = load_release("test_nsfwjs.random")
    write_release(release.model, release.policy, tmp_path)
    weights = sha256(tmp_path / "model.safetensors")
    card = _Counted(model="m", command="zoo count", weights_sha256=weights, hits=2).update_card(tmp_path)
    (line,) = [line for line in card.measurements if line.metric == "hits"]
    assert (line.value, line.command) == (2, "zoo count")
    assert ModelCard.read(tmp_path / "card.json") == card
    with pytest.raises(BadCardError, match="other weights than those that were measured"):
        _Counted(model="m", weights_sha256="0" * 64, hits=3).update_card(tmp_path)


def test_the_command_is_the_one_that_was_run_and_empty_from_python(tmp_path: Path) -> None:
    _picture(tmp_path / "a b.jpg")
    data = tmp_path / "manifest.csv"
    data.write_text("image,labels\na b.jpg,1\n", encoding="utf-8")
    command = ["evaluate", "--model", "test_nsfwjs.random", "--data", str(data), "--report", str(tmp_path / "a report")]
    assert run(command) == 0
    page = (tmp_path / "a report" / "report.html").read_text(encoding="utf-8")
    assert shlex.join(["zoo", *command]) in html.unescape(page)
    from_python = evaluate("test_nsfwjs.random", read_manifest(data), Labelling())
    assert (from_python.command, from_python.labels) == ("", [1])
    assert from_python.versions["torch"]
