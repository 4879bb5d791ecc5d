"""Robustness figures against ones worked out by hand, on models whose weakness is known exactly."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from zoo.adversary.threat import ImagePart, TextPart, Threat
from zoo.commands.robustness import read_eps
from zoo.contract.card import ImageInput
from zoo.contract.policy import Category, Policy, Threshold
from zoo.errors import BadCardError, BadInputError
from zoo.evaluation.labelling import Labelling
from zoo.evaluation.robustness.campaign import RobustnessOptions, towards_clean
from zoo.evaluation.robustness.report import RobustnessReport, describe
from zoo.evaluation.robustness.run import Outcome, evaluate_robustness
from zoo.evaluation.robustness.victim import Selection, Victim, threshold_height
from zoo.metrics import auroc, average_precision
from zoo.models.base import ZooModel
from zoo.registry import create_model, default_policy, model_card, model_entry
from zoo.release.store import Release, model_scorer

EPS = 8 / 255
POLICY = Policy("bright", "1", "", (Category("unsafe", "block", Threshold(0.5)), Category("safe", "allow")))
FGSM = Threat(ImagePart("Linf", EPS, attacks=("fgsm",)))
COUNT, SIZE = 60, 4


class Bright(ZooModel):
    """Unsafe by how bright the image is in the mean: a perturbation by eps moves the mean by eps, and no further."""

    def __init__(self, slope: float = 20.0) -> None:
        image = ImageInput(SIZE, "shortest_edge_crop", "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        card = model_card("test_nsfwjs.random").replace(
            name="mine.bright", labels=("unsafe", "safe"), score="sigmoid", image=image, hparams={}
        )
        super().__init__(card)
        self.slope = torch.nn.Parameter(torch.tensor(slope))

    def forward(self, pixels: Tensor) -> Tensor:
        unsafe = self.slope * (pixels.mean(dim=(1, 2, 3)) - 0.5)
        return torch.stack([unsafe, -unsafe], dim=1)


class Constant(Bright):
    """Flags everything, whatever it sees: nothing can turn it, and it has no gradient."""

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.tensor([[2.0, -2.0]]).repeat(len(pixels), 1)


def _victim(model: ZooModel | None = None) -> Victim:
    chosen = model or Bright()
    return Victim(Release(chosen.eval(), chosen.card, POLICY))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey fields, test and val: brighter ones are unsafe, but for some; of two kinds; one image is broken."""
    folder = tmp_path_factory.mktemp("fields")
    rng = np.random.default_rng(1)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "label", "split", "kind", "place"])
        for number in range(2 * COUNT):
            level = rng.uniform(90, 170)
            pixels = (level + rng.normal(0, 4, (SIZE, SIZE, 3))).clip(30, 220).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            label = int(level > 128) if rng.random() < 0.85 else int(level <= 128)
            writer.writerow(
                [f"{number}.png", label, "val" if number % 2 else "test", ("soft", "loud")[number % 3 == 0], "here"]
            )
        (folder / "broken.png").write_bytes(b"no image")
        writer.writerow(["broken.png", 1, "test", "soft", "here"])
        writer.writerow(["0.png", "", "train", "soft", "here"])
    return folder / "manifest.csv"


def _means(data: Path, split: str) -> tuple[NDArray[np.float64], NDArray[np.int64], list[str]]:
    """Mean pixel in [0, 1], label and kind of each readable item of a split."""
    means, labels, kinds = [], [], []
    with data.open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if row["split"] == split and row["image"] != "broken.png":
                means.append(np.asarray(Image.open(data.parent / row["image"]), dtype=np.float64).mean() / 255)
                labels.append(int(row["label"]))
                kinds.append(row["kind"])
    return np.array(means), np.array(labels), kinds


def _run(data: Path, threat: Threat = FGSM, model: ZooModel | None = None, **options: object) -> Outcome:
    how = dataclasses.replace(RobustnessOptions(fpr=0.1, say=lambda text: None), **options)  # type: ignore[arg-type]
    return evaluate_robustness(_victim(model), "here", Selection(data), threat, "fgsm8", how)


def test_every_figure_is_what_the_means_say(data: Path) -> None:
    means, labels, kinds = _means(data, "test")
    assert np.abs(means - 0.5).min() > 1e-5
    report = _run(data).report
    point = report.points[0]
    unsafe, flagged, left = labels == 1, means > 0.5, means - EPS > 0.5
    clean = point.clean
    assert clean.recall is not None
    assert clean.fpr is not None
    assert clean.auroc is not None
    assert clean.auprc is not None
    assert clean.accuracy.value == pytest.approx((flagged == unsafe).mean())
    assert clean.recall.value == pytest.approx(flagged[unsafe].mean())
    assert clean.fpr.value == pytest.approx(flagged[~unsafe].mean())
    assert clean.auroc.value == pytest.approx(auroc(means.tolist(), labels.tolist()))
    assert clean.auprc.value == pytest.approx(average_precision(means.tolist(), labels.tolist()))
    (attack,) = point.attacks
    assert attack.robust_recall is not None
    broken = unsafe & flagged & ~left
    assert 0 < broken.sum() < (unsafe & flagged).sum()
    assert (attack.attacked, attack.broken) == ((unsafe & flagged).sum(), broken.sum())
    assert attack.success_rate.value == pytest.approx(broken.sum() / (unsafe & flagged).sum())
    assert attack.robust_recall.value == pytest.approx((flagged & left)[unsafe].mean())
    assert attack.robust_accuracy.value == pytest.approx(np.where(unsafe, left, ~flagged).mean())
    assert attack.auroc is not None
    moved = np.where(broken, means - EPS, means)
    assert attack.auroc.value == pytest.approx(auroc(moved.tolist(), labels.tolist()), abs=1e-6)
    for figure in (clean.accuracy, clean.recall, clean.auroc, attack.success_rate, attack.robust_accuracy):
        assert figure.low is not None
        assert figure.high is not None
        assert figure.value is not None
        assert figure.low <= figure.value <= figure.high
    loud = next(group for group in point.groups if group.value == "loud")
    own = np.array([kind == "loud" for kind in kinds])
    assert loud.items == own.sum()
    assert loud.success_rate.value == pytest.approx(broken[own].sum() / (unsafe & flagged & own).sum())
    assert (attack.blind, attack.refuted, attack.randomised) == (0, 0, False)
    counts = {"items": COUNT, "unsafe": int(unsafe.sum()), "unreadable": 1, "unlabelled": 0, "not_attackable": 0}
    assert counts.items() <= report.counts.items()
    assert "broken.png" in report.lost["unreadable"]


def test_the_threshold_at_a_fixed_rate_is_found_on_the_clean_negatives_of_another_split(data: Path) -> None:
    point = _run(data).report.points[1]
    means, labels, _ = _means(data, "val")
    scores = 1 / (1 + np.exp(-20.0 * (means - 0.5)))
    assert point.threshold is not None
    negatives = scores[labels == 0]
    assert (negatives > point.threshold + 1e-7).mean() <= 0.1
    assert (negatives > point.threshold - 1e-5).mean() > 0.1  # a lower one would flag more
    assert point.fpr_measured == pytest.approx(np.floor(0.1 * len(negatives)) / len(negatives))
    assert (point.calibrated_on, point.negatives) == ("split val", len(negatives))
    test, truth, _ = _means(data, "test")
    limit = 0.5 + np.log(point.threshold / (1 - point.threshold)) / 20.0
    assert np.abs(test - limit).min() > 1e-5
    unsafe = truth == 1
    assert point.clean.recall is not None
    assert point.clean.recall.value == pytest.approx((test > limit)[unsafe].mean())
    hit = unsafe & (test > limit) & (test - EPS <= limit)
    assert point.worst.success_rate.value == pytest.approx(hit.sum() / (unsafe & (test > limit)).sum())


def test_without_other_rows_the_attacked_ones_give_the_threshold_and_the_report_says_so(data: Path) -> None:
    said: list[str] = []
    report = _run(data, split="val", threshold_split="val", say=said.append).report
    assert report.points[1].calibrated_on == "the attacked rows themselves (val)"
    assert any("the attacked rows themselves" in line for line in said)


def test_a_constant_model_is_never_broken_and_the_missing_gradient_is_told(data: Path) -> None:
    threat = Threat(ImagePart("Linf", EPS, attacks=("fgsm", "apgd-t"), steps=3, queries=20))
    report = _run(data, threat, Constant(), points="policy").report
    worst = report.points[0].worst
    assert worst.attacked == report.counts["unsafe"]
    assert worst.success_rate.value == 0.0
    assert worst.success_rate.high is not None
    assert 0 < worst.success_rate.high < 0.2  # Wilson: never having failed is no proof
    assert worst.blind == worst.attacked
    assert worst.robust_recall == report.points[0].clean.recall


def test_the_worst_case_is_the_union_item_by_item(data: Path) -> None:
    threat = Threat(ImagePart("Linf", EPS, attacks=("fgsm", "square", "pgd"), steps=3, queries=3))
    outcome = _run(data, threat, points="policy")
    first = outcome.attempts[0]
    union = torch.stack([attempt.broken for attempt in first]).any(dim=0)
    assert outcome.report.points[0].worst.broken == int(union.sum())
    assert [attack.attack for attack in outcome.report.points[0].attacks] == ["fgsm", "square", "pgd"]
    assert first[1].broken.sum() <= first[0].broken.sum()  # three random squares do less than the exact attack


def test_safe_items_can_be_attacked_to_be_flagged(data: Path) -> None:
    means, labels, _ = _means(data, "test")
    worst = _run(data, direction="both", points="policy").report.points[0].worst
    safe, flagged = labels == 0, means > 0.5
    alarmed = safe & ~flagged & (means + EPS > 0.5)
    assert alarmed.sum() > 0
    assert worst.false_alarm_rate is not None
    assert worst.robust_fpr is not None
    assert worst.false_alarm_rate.value == pytest.approx(alarmed.sum() / (safe & ~flagged).sum())
    assert worst.robust_fpr.value == pytest.approx((alarmed | (safe & flagged)).sum() / safe.sum())


def test_a_curve_falls_and_starts_at_the_clean_figures(data: Path) -> None:
    means, labels, _ = _means(data, "test")
    report = _run(data, eps=(0.0, 4 / 255, EPS), eps_attacks=("pgd",), points="policy").report
    (curve,) = report.curves
    assert curve.attacks == ("pgd",)
    for at in curve.points:
        left = (labels == 1) & (means > 0.5) & (means - at.eps > 0.5)
        assert at.robust_recall is not None
        assert at.robust_recall.value == pytest.approx(left.sum() / (labels == 1).sum())


def test_the_classes_of_a_classifier_are_attacked_without_a_policy(tmp_path: Path) -> None:
    rows = []
    for number, (level, label) in enumerate(
        [(129, "unsafe"), (200, "unsafe"), (126, "safe"), (60, "safe"), (200, "safe")]
    ):
        Image.fromarray(np.full((SIZE, SIZE, 3), level, dtype=np.uint8)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{label},test\n")
    (tmp_path / "m.csv").write_text("image,label,split\n" + "".join(rows), encoding="utf-8")
    model = Bright()
    victim = Victim(Release(model.eval(), model.card, POLICY), target="labels")
    how = RobustnessOptions(say=lambda text: None)
    report = evaluate_robustness(victim, "", Selection(tmp_path / "m.csv"), FGSM, "fgsm8", how).report
    (point,) = report.points
    assert (point.point, report.target, report.policy) == ("labels", "labels", "")
    assert point.clean.accuracy.value == pytest.approx(4 / 5)
    assert point.worst.robust_accuracy.value == pytest.approx(2 / 5)  # both levels beside the border fall
    assert point.worst.success_rate.value == pytest.approx(2 / 4)
    assert point.clean.recall is None
    (tmp_path / "m.csv").write_text("image,label,split\n0.png,unsfae,test\n", encoding="utf-8")
    with pytest.raises(BadInputError, match='no label "unsfae"; did you mean "unsafe"'):
        evaluate_robustness(victim, "", Selection(tmp_path / "m.csv"), FGSM, "fgsm8", how)


def test_a_report_reads_itself_back_and_refuses_another_schema(data: Path, tmp_path: Path) -> None:
    report = _run(data, eps=(0.0, EPS)).report
    path = report.write(tmp_path)
    assert path.name == "mine.bright__fgsm8.json"
    assert RobustnessReport.read(path) == report
    assert report.budget == "fgsm8: Linf 8/255 (fgsm)"
    plain = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(plain | {"schema_version": 3}), encoding="utf-8")
    with pytest.raises(BadCardError, match="newer than 2"):
        RobustnessReport.read(path)
    old = {"schema_version": 1, "threat": plain["threat"]["image"] | {"schema_version": 1}}
    path.write_text(json.dumps(plain | old), encoding="utf-8")
    assert RobustnessReport.read(path) == report
    path.write_text(json.dumps(plain | {"report": "guard"}), encoding="utf-8")
    with pytest.raises(BadInputError, match="not a robustness report"):
        RobustnessReport.read(path)


def test_the_same_seed_draws_the_same_items_and_gives_the_same_figures(data: Path) -> None:
    first, again, other = (_run(data, limit=20, seed=seed, points="policy").report for seed in (3, 3, 4))
    assert first.counts["items"] <= 20
    assert first.items_sha256 == again.items_sha256 != other.items_sha256
    assert first.points[0].clean == again.points[0].clean


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, 'no rows of the split "dev"'),
        ({"limit": 0}, "`limit` must be at least 1, got 0"),
        ({"fpr": 1.5}, r"share in \(0, 1\), got 1.5"),
        ({"fpr": 0.001}, "too few for a false positive rate of 0.001: at least 1000"),
        ({"eps": (2.0,)}, "got 2; for grey levels write 2/255"),
        ({"eps": (0.1,), "eps_attacks": ("pdg",)}, 'no attack is called "pdg"; did you mean "pgd"'),
    ],
)
def test_options_that_make_no_sense_are_refused(data: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        _run(data, **options)  # type: ignore[arg-type]


def test_data_and_threats_that_do_not_fit_are_refused(data: Path, tmp_path: Path) -> None:
    victim, how = _victim(), RobustnessOptions(say=lambda text: None)
    with pytest.raises(BadInputError, match="judges no text, which this threat changes"):
        evaluate_robustness(victim, "", Selection(data), Threat(text=(TextPart(),)), "text", how)
    with pytest.raises(BadInputError, match=r'`by`: .* has no column "plaec"; did you mean "place"'):
        evaluate_robustness(victim, "", Selection(data, by=("plaec",)), FGSM, "fgsm8", how)
    safe = tmp_path / "safe.csv"
    safe.write_text(f"image,label,split\n{data.parent / '0.png'},0,test\n", encoding="utf-8")
    with pytest.raises(BadInputError, match='no item is unsafe by the label "1"'):
        evaluate_robustness(victim, "", Selection(safe), FGSM, "fgsm8", how)
    safe.write_text(f"image,label,split\n{data.parent / '0.png'},1,test\n", encoding="utf-8")
    with pytest.raises(BadInputError, match="no safe item to find the threshold on"):
        evaluate_robustness(victim, "", Selection(safe), FGSM, "fgsm8", how)
    panel = create_model("test_clip.panel")
    with pytest.raises(BadInputError, match="attack the models of its heads one by one"):
        Victim(Release(panel, panel.card, default_policy(model_entry("test_clip.panel"))))


def test_a_model_of_texts_alone_is_attacked_through_its_tokens(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("test_prompt_bert.random")
    label = model.card.labels[0]
    lines = [f"words with number {number},{label if number % 2 else ''},{label},test\n" for number in range(12)]
    (tmp_path / "m.csv").write_text("text,labels,judged,split\n" + "".join(lines), encoding="utf-8")
    release = Release(model, model.card, Policy("t", "1", "", (Category(label, "block", Threshold(0.5)),)))
    with model_scorer(model, release.policy) as scorer:
        scores = [v.scores[label] for v in scorer.verdicts(texts=[line.split(",")[0] for line in lines])]
    limit = min(scores) - 1e-4  # all are flagged, each by little
    policy = Policy("t", "1", "", (Category(label, "block", Threshold(limit)),))
    threat = Threat(text=(TextPart(("casing", "homoglyphs", "hotflip"), queries=40, steps=2),))
    how = RobustnessOptions(Labelling(label), points="policy", keep=True, say=lambda text: None)
    outcome = evaluate_robustness(Victim(release, policy), "", Selection(tmp_path / "m.csv"), threat, "text", how)
    (point,) = outcome.report.points
    assert point.clean.recall is not None
    assert point.clean.recall.value == 1.0
    assert (outcome.report.counts["unsafe"], outcome.report.counts["safe"]) == (6, 6)  # judged, so without it safe
    assert [attack.attack for attack in point.attacks] == ["casing", "homoglyphs", "hotflip", "characters"]
    assert point.worst.attacked == 6
    assert 0 < point.worst.broken == len({place for attempt in outcome.attempts[0] for place in attempt.examples})
    with model_scorer(model, policy) as scorer:
        found = [one.text for attempt in outcome.attempts[0] for one in attempt.examples.values()]
        assert all(verdict.is_safe for verdict in scorer.verdicts(texts=found))


# The parts


def test_a_threshold_flags_at_most_its_share_also_with_ties() -> None:
    heights = np.array([0.0] * 10 + [1.0] * 5 + [2.0] * 5)
    assert threshold_height(heights, 0.25) == 1.0
    assert threshold_height(heights, 0.2) == 2.0  # above 1 there are five of twenty
    with pytest.raises(BadInputError, match="20 safe items are too few"):
        threshold_height(heights, 0.01)


def test_rounding_goes_towards_the_clean_image_and_keeps_whole_steps() -> None:
    clean = torch.arange(256, dtype=torch.uint8)
    float_clean = clean.float() / 255
    for eps in (4 / 255, 0.013):
        for sign in (1, -1):
            found = (float_clean + sign * eps).clamp(0, 1)
            rounded = towards_clean(found, clean)
            steps = (rounded.double() - clean.double()).abs()
            assert (steps / 255 <= eps + 1e-9).all()
            inner = clean[(clean > 10) & (clean < 245)].long()
            assert (steps[inner] == np.floor(eps * 255 + 1e-6)).all()


def test_budgets_are_read_as_fractions_and_described() -> None:
    assert read_eps("4/255, 0,1/255") == (0.0, 1 / 255, 4 / 255)
    assert read_eps("1.5/255,0.03") == (1.5 / 255, 0.03)
    for wrong in ("a", "1/0", "-1", ","):
        with pytest.raises(BadInputError, match="--eps"):
            read_eps(wrong)
    assert describe(Threat(ImagePart("L2", 0.5, attacks=("pgd",)))) == "L2 0.5 (pgd)"
    assert describe(Threat(text=(TextPart(("casing",)),))) == "10 % of the characters (casing)"
