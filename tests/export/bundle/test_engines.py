"""Several engines in one bundle: what is added, what is refused, which one runs here and why, who signed it."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import export.onnx.export
import export.runtime.engine
import zoo
from export import runtime
from export.bundle.manifest import Engine, Precision, Verification
from export.bundle.store import Bundle, read_banks, read_bundle, sign, use_policy
from export.make import engine_name
from export.onnx.export import export_onnx
from export.precision.nodes import check_products, count_products, rounded_float32
from export.runtime.engine import clamps_int8, open_best
from export.source import load, weights_hash
from export.verify.report import Check
from tests.verdicts import same_verdict
from zoo.cli import run
from zoo.contract.policy import Policy, Threshold, read_policy
from zoo.errors import BadInputError, IncompatibleBundleError, TamperedFileError
from zoo.files.held import hashes
from zoo.guard.detector import load_detector
from zoo.judging import banks
from zoo.models.clip import PhraseEncoder
from zoo.models.served import text_bank
from zoo.registry import create_model
from zoo.release.store import load_release, load_scorer, write_release

CLIP, NSFWJS = "test_safeclip.random", "test_nsfwjs.random"
PASSED = Verification(True, 256, 0, 0, 0, {}, "cpu", "drawn")


@pytest.fixture(scope="module")
def two(bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an fp32 and a verified int8 engine."""
    folder = Path(shutil.copytree(bundles[CLIP], tmp_path_factory.mktemp("two") / "bundle"))
    export_onnx(CLIP, folder, precision="int8", check=Check())
    return folder


def _with(bundle: Bundle, *engines: Engine) -> Bundle:
    """The bundle as if it held these engines."""
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, engines=engines))


def _engine(bundle: Bundle, precision: Precision, passed: bool | None, **changes: Any) -> Engine:
    fields: dict[str, Any] = {"name": f"onnx-{precision}", "precision": precision, **changes}
    if passed is not None:
        fields["verification"] = dataclasses.replace(PASSED, passed=passed)
    return dataclasses.replace(bundle.manifest.engines[0], **fields)


def test_an_engine_is_added_beside_the_first(two: Path, bundles: dict[str, Path]) -> None:
    bundle = read_bundle(two)
    assert [engine.name for engine in bundle.manifest.engines] == ["onnx-fp32", "onnx-int8"]
    before, after = hashes(bundles[CLIP]), hashes(two)
    assert {name: after[name] for name in before if name != "manifest.json"} == {
        name: value for name, value in before.items() if name != "manifest.json"
    }
    engine = bundle.manifest.engine("onnx-int8")
    assert engine.verification is not None
    assert engine.verification.passed
    assert engine.budget is not None
    assert engine.budget.name == "int8"
    assert engine.matmuls["int8"] > 0
    assert engine.share("int8") + engine.share("fp32") == 1
    assert sorted(path.name for path in two.parent.iterdir()) == ["bundle"]


def test_other_weights_are_refused(two: Path, tmp_path: Path) -> None:
    write_release(create_model(CLIP), load_release(CLIP).policy, tmp_path / "release")
    before = hashes(two)
    with pytest.raises(IncompatibleBundleError, match="with other weights than these, and a bundle has one model"):
        export_onnx(tmp_path / "release", two, precision="fp16")
    assert hashes(two) == before


def test_the_same_engine_twice_is_refused(two: Path) -> None:
    with pytest.raises(BadInputError, match="has an engine onnx-int8 already; `replace` builds it again"):
        export_onnx(CLIP, two, precision="int8")


def test_an_engine_that_misses_its_budget_leaves_the_bundle_as_it_was(
    two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.onnx.export, "served_graph", lambda *_, **__: onnx.load(two / "onnx-fp32.onnx"))
    folder = Path(shutil.copytree(two, tmp_path / "bundle"))
    before = hashes(folder)
    strict = tmp_path / "strict.yaml"
    strict.write_text(
        "{name: strict, summary: '', max_logit_difference: 0, max_flips: 0, max_auroc_loss: null, at_threshold: true,"
        " schema_version: 1}",
        encoding="utf-8",
    )
    command = ["export", "onnx", "--model", CLIP, "--precision", "int8", "--profile", "throughput", "--verify"]
    for out in (folder, tmp_path / "new"):
        assert run([*command, "--budget", str(strict), "--out", str(out)]) == 1
        assert "onnx-int8-throughput does not answer what" in capsys.readouterr().err
    assert hashes(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "strict.yaml"]


def test_the_best_engine_runs_and_says_why(two: Path) -> None:
    bundle = read_bundle(two)
    assert open_best(bundle, device="cpu", threads=1).spec.name == "onnx-int8"
    with runtime.load(two, threads=1, device="cpu", engine="onnx-fp32") as scorer:
        assert scorer.engine.why == "onnx-fp32 on cpu by CPUExecutionProvider, not verified yet: asked for by name"
        assert scorer.batch_size == 8
    with pytest.raises(BadInputError, match='no engine "onnx-fp23"; did you mean "onnx-fp32"'):
        runtime.load(two, engine="onnx-fp23")
    with pytest.raises(BadInputError, match="batch_size is 65, and onnx-int8 was built for up to 64"):
        runtime.load(two, threads=1, batch_size=65)


@pytest.mark.parametrize(
    ("passed", "chosen", "why"),
    [
        (True, "onnx-int8", "verified"),
        (False, "onnx-fp32", "not onnx-int8 on cpu: its verification failed"),
        (None, "onnx-fp32", "not onnx-int8 on cpu: not verified, and it has fewer bits: run `zoo verify`"),
    ],
)
def test_fewer_bits_run_only_when_they_passed(two: Path, passed: bool | None, chosen: str, why: str) -> None:
    bundle = read_bundle(two)
    int8 = dataclasses.replace(_engine(bundle, "int8", passed), files=("onnx-int8.onnx",))
    engine = open_best(_with(bundle, bundle.manifest.engines[0], int8), device="cpu", threads=1)
    assert engine.spec.name == chosen
    assert why in engine.why


def test_an_engine_that_cannot_run_here_is_refused_with_the_command(two: Path) -> None:
    bundle = read_bundle(two)
    bf16 = _engine(bundle, "bf16", True, runs_on=("cuda",))
    with pytest.raises(IncompatibleBundleError, match=r"onnx-bf16 on cpu: made for cuda.*one that can: zoo export"):
        open_best(_with(bundle, bf16), device="cpu", engine="onnx-bf16", threads=1)
    with pytest.raises(IncompatibleBundleError, match=r"onnx-bf16: chosen only by name"):
        open_best(_with(bundle, bf16), device="cpu", threads=1)


def test_a_bundle_tells_of_its_engines(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bundle", "info", str(two), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs_here"].startswith("onnx-int8 on ")
    assert found["signature_checked"] is False
    assert found["engines"] == read_bundle(two).manifest.to_dict()["engines"]
    assert run(["bundle", "info", str(two)]) == 0
    shown = capsys.readouterr().out
    assert "onnx-int8" in shown
    assert "runs here:" in shown


def test_untrained_weights_are_the_same_each_time() -> None:
    one, other = load(CLIP, {"embedding_dim": 8}), load(CLIP, {"embedding_dim": 8})
    assert weights_hash(one.model) == weights_hash(other.model) != weights_hash(load(CLIP, {}).model)


def test_a_signature_is_checked_when_a_key_is_configured(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("cryptography", reason="extra `sign` is not installed")
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    for name in ("mine", "other"):
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
        (tmp_path / f"{name}.pem").write_bytes(pem)
        public = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / f"{name}.pub").write_bytes(public)
    bundle = Path(shutil.copytree(two, tmp_path / "bundle"))
    mine = tmp_path / "mine.pub"
    with pytest.raises(TamperedFileError, match=r"not signed, and the key .* is required"):
        read_bundle(bundle, public_key=mine)
    assert run(["bundle", "sign", str(bundle), "--key", str(tmp_path / "mine.pem")]) == 0
    assert read_bundle(bundle, public_key=mine).card.name == CLIP
    with pytest.raises(TamperedFileError, match="not one by"):
        read_bundle(bundle, public_key=tmp_path / "other.pub")
    with pytest.raises(BadInputError, match="not a readable private key"):
        sign(bundle / "manifest.json", mine)
    monkeypatch.setenv("SAFETY_ZOO_PUBLIC_KEY", str(mine))
    assert runtime.load(bundle, threads=1).card.name == CLIP
    text = (bundle / "manifest.json").read_text(encoding="utf-8")
    (bundle / "manifest.json").write_text(text.replace('"source": "', '"source": "elsewhere/'), encoding="utf-8")
    with pytest.raises(TamperedFileError, match="not one by"):
        runtime.load(bundle, threads=1)
    sign(bundle / "manifest.json", tmp_path / "mine.pem")
    with caplog.at_level(logging.WARNING):
        read_bundle(bundle).manifest.write(bundle)
    assert "sign it again: zoo bundle sign" in caplog.text
    with pytest.raises(TamperedFileError, match=r"not signed, and the key .* is required"):
        runtime.load(bundle, threads=1)
    monkeypatch.setenv("SAFETY_ZOO_PUBLIC_KEY", str(tmp_path / "none.pub"))
    with pytest.raises(BadInputError, match="key cannot be read"):
        runtime.load(bundle, threads=1)


def test_with_a_key_configured_nothing_unsigned_is_judged(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = load(CLIP)
    write_release(release.model, release.policy, tmp_path / "release")
    bundle = Path(shutil.copytree(two, tmp_path / "bundle"))
    (bundle / "manifest.json").unlink()
    monkeypatch.setenv("SAFETY_ZOO_PUBLIC_KEY", str(tmp_path / "key.pub"))
    for source in (tmp_path / "release", bundle, CLIP, "hf-hub:some/release"):
        with pytest.raises(TamperedFileError, match=r"not signed, and the key .* is required to judge"):
            load_scorer(source)
        with pytest.raises(TamperedFileError, match=r"not signed, and the key .* is required to judge"):
            load_detector(source)
    monkeypatch.setenv("SAFETY_ZOO_PUBLIC_KEY", "")
    for source in (tmp_path / "release", two):
        with pytest.raises(BadInputError, match="SAFETY_ZOO_PUBLIC_KEY is set, but empty"):
            load_scorer(source)


def test_with_a_key_configured_no_cached_text_bank_is_used(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write into the cache could put any phrases there: its digests are no signatures."""
    monkeypatch.setenv("SAFETY_ZOO_CACHE", str(tmp_path / "cache"))
    bundle = read_bundle(two)
    policy = read_policy("dogs").single()
    wanted = runtime.text_bank(bundle, policy)
    (kept,) = (tmp_path / "cache" / "text_banks").iterdir()
    banks._write(kept, kept.stem, -wanted * policy.temperature)
    np.testing.assert_array_equal(runtime.text_bank(bundle, policy), -wanted)
    bundle.files.signed = True  # as after `read_bundle` with a key
    np.testing.assert_array_equal(runtime.text_bank(bundle, policy), wanted)
    monkeypatch.setenv("SAFETY_ZOO_PUBLIC_KEY", str(tmp_path / "key.pub"))
    model = load(CLIP).model
    assert isinstance(model, PhraseEncoder)
    text_bank(model, policy)
    assert list((tmp_path / "cache" / "text_banks").iterdir()) == [kept]


def test_a_bundle_that_is_the_current_folder_is_used_verified_and_built_again(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(two, tmp_path / "bundle"))
    monkeypatch.chdir(bundle)
    place, engines = bundle.stat().st_ino, [engine.name for engine in read_bundle(".").manifest.engines]
    for words in (
        "policy use dogs --model .",
        "verify . --engine onnx-fp32",
        f"export onnx --model {CLIP} --out . --replace",
        "bundle info .",
    ):
        assert run(words.split()) == 0, capsys.readouterr().err
    assert read_bundle(bundle).policy.name == "dogs"
    assert sorted(engine.name for engine in read_bundle(bundle).manifest.engines) == sorted(engines)
    assert bundle.stat().st_ino == place
    assert not [path.name for path in bundle.iterdir() if path.name.startswith(".")]


def test_a_text_bank_that_the_manifest_does_not_list_is_not_used(two: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(two, tmp_path / "bundle"))
    (bundle / "onnx-fp32.npz").write_bytes(b"planted")
    assert read_banks(read_bundle(bundle).files, "onnx-fp32.onnx") == {}


def test_a_verification_by_another_policy_is_called_so(two: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(two, tmp_path / "bundle"))
    before = read_bundle(bundle).policy
    assert isinstance(before, Policy)
    policy = dataclasses.replace(before, version="9")
    use_policy(bundle, policy)
    assert "onnx-int8 on cpu" in (why := open_best(read_bundle(bundle), threads=1).why)
    assert f"verified by the policy {before.id}, not by {policy.id}:" in why


@pytest.mark.parametrize(
    ("flags", "clamps"),
    [
        ("flags\t\t: fpu avx2 avx512f\n", True),
        ("flags\t\t: fpu avx512f avx512_vnni\n", False),
        ("flags\t\t: fpu avx2 avx_vnni\n", False),
        ("Features\t: fp asimd\n", False),
        (None, False),
    ],
)
def test_eight_bits_are_not_trusted_where_their_sums_are_clamped(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str | None, clamps: bool
) -> None:
    told = tmp_path / "cpuinfo"
    if flags is not None:
        told.write_text(f"processor\t: 0\n{flags}", encoding="utf-8")
    assert clamps_int8(told) == clamps
    monkeypatch.setattr(export.runtime.engine, "clamps_int8", lambda: clamps_int8(told))
    bundle = read_bundle(two)
    assert open_best(bundle, threads=1).spec.name == "onnx-int8"  # its sums fit
    bundle = _with(bundle, *(dataclasses.replace(one, unclamped=False) for one in bundle.manifest.engines))
    running = open_best(bundle, threads=1)
    assert running.spec.name == ("onnx-fp32" if clamps else "onnx-int8")
    assert ("this CPU has no VNNI" in running.why) == clamps
    assert open_best(bundle, engine="onnx-int8", threads=1).spec.name == "onnx-int8"


def _policies(base: Policy, count: int) -> list[Policy]:
    """Policies of one set of phrases in different orders, with thresholds of their own."""
    found = []
    for number in range(count):
        turn = number % len(base.categories)
        categories = (*base.categories[turn:], *base.categories[:turn])
        limit = Threshold((number + 1) / (count + 2))
        moved = [c if c.threshold is None else dataclasses.replace(c, threshold=limit) for c in categories]
        found.append(dataclasses.replace(base, name=f"swap{number}", categories=tuple(moved), rule="each"))
    return found


def test_policies_need_no_rebuild(
    bundles: dict[str, Path], golden: dict[str, bytes], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Each verdict is that of the eager model with the same policy, and the engine stays loaded throughout."""
    release = load_release(CLIP)
    assert isinstance(release.policy, Policy)
    images = list(golden.values())[:3]
    times = []
    with runtime.load(bundles[CLIP], threads=1, device="cpu") as scorer:
        policies = _policies(release.policy, 30)
        for policy in policies[: len(release.policy.categories)]:
            scorer.with_policy(policy)  # from here on the phrases are embedded
        before = scorer.verdicts(images)
        for policy in policies:
            start = time.perf_counter()
            other = scorer.with_policy(policy)
            times.append(1000 * (time.perf_counter() - start))
            assert other.engine.session is scorer.engine.session  # type: ignore[attr-defined]
            found = other.verdicts(images)
            assert {verdict.policy for verdict in found} == {policy.id}
            with zoo.load_scorer(dataclasses.replace(release, policy=policy)) as eager:
                for ours, theirs in zip(found, eager.verdicts(images), strict=True):
                    assert same_verdict(ours, theirs, 1e-4)
        assert scorer.verdicts(images) == before
    with capsys.disabled():
        print(f"\n30 policy swaps, bank cached: median {np.median(times):.1f} ms, slowest {max(times):.1f} ms")
    # One of them against a bundle that was exported with it.
    write_release(release.model, policies[7], tmp_path / "release")
    export_onnx(tmp_path / "release", tmp_path / "bundle")
    swapped = runtime.load(bundles[CLIP], policies[7], threads=1, device="cpu")
    with runtime.load(tmp_path / "bundle", threads=1, device="cpu") as fresh, swapped:
        for ours, theirs in zip(swapped.verdicts(images), fresh.verdicts(images), strict=True):
            assert same_verdict(ours, theirs, 1e-6)


def test_policies_can_be_swapped_under_load(bundles: dict[str, Path], golden: dict[str, bytes]) -> None:
    """Every verdict is wholly that of the policy it names, whoever swaps in between."""
    base = load_release(CLIP).policy
    assert isinstance(base, Policy)
    one, other = _policies(base, 2)
    image = golden["exif_rotated.jpg"]
    with runtime.load(bundles[CLIP], one, threads=1, device="cpu") as first:
        scorers = [first, first.with_policy(other)]
        expected = {scorer.judge.policy_id: scorer.verdict(image) for scorer in scorers}
        wrong: list[Any] = []

        def judge(start: int) -> None:
            for number in range(20):
                verdict = scorers[(start + number) % 2].verdict(image)
                if not same_verdict(verdict, expected[verdict.policy], 1e-6):
                    wrong.append(verdict)

        threads = [threading.Thread(target=judge, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_policy_is_embedded_by_a_command(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAFETY_ZOO_CACHE", str(tmp_path))
    for model in (str(bundles[CLIP]), CLIP):
        assert run(["policy", "embed", "configs/policy/dogs.yaml", "--model", model]) == 0
        assert "phrases of 16 numbers, kept in" in capsys.readouterr().out
    assert len(list((tmp_path / "text_banks").glob("*.npy"))) == 2
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAFETY_ZOO_CACHE", str(tmp_path / "file"))
    assert run(["policy", "embed", "configs/policy/dogs.yaml", "--model", CLIP]) == 0
    assert f"not kept: {tmp_path / 'file' / 'text_banks'} cannot be written" in capsys.readouterr().out


def _graph(kind: int, *nodes: onnx.NodeProto, weights: tuple[TensorProto, ...] = ()) -> onnx.ModelProto:
    value = helper.make_tensor_value_info("x", kind, [2, 4])
    output = helper.make_tensor_value_info("y", kind, [2, 4])
    graph = helper.make_graph(list(nodes), "g", [value], [output], list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def test_products_are_counted_by_their_type() -> None:
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    proto = _graph(TensorProto.FLOAT, helper.make_node("MatMul", ["x", "w"], ["y"]), weights=(weight,))
    assert count_products(proto) == {"fp32": 1}
    with pytest.raises(IncompatibleBundleError, match=r"an fp16 engine was asked for.*\{'fp32': 1\}"):
        check_products(count_products(proto), "fp16")
    half = numpy_helper.from_array(np.eye(4, dtype=np.float16), "w")
    proto = _graph(TensorProto.FLOAT16, helper.make_node("MatMul", ["x", "w"], ["y"]), weights=(half,))
    assert count_products(proto) == {"fp16": 1}
    with pytest.raises(IncompatibleBundleError, match="but none of its matrix products is in it: it has none"):
        check_products(count_products(_graph(TensorProto.FLOAT, helper.make_node("Relu", ["x"], ["y"]))), "fp32")


def test_an_fp16_engine_without_fp16_products_is_an_error(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = onnx.load(bundles[CLIP] / "onnx-fp32.onnx")
    monkeypatch.setattr(export.onnx.export, "served_graph", lambda *_, **__: proto)
    with pytest.raises(IncompatibleBundleError, match="but none of its matrix products is in it"):
        export_onnx(CLIP, tmp_path / "bundle", precision="fp16")
    assert not list(tmp_path.iterdir())


def test_bfloat16_is_rounded_where_it_cannot_be_computed() -> None:
    import ml_dtypes
    import onnxruntime

    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 4)).astype(ml_dtypes.bfloat16)
    tensor = helper.make_tensor("w", TensorProto.BFLOAT16, [4, 4], weight.tobytes(), raw=True)
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.BFLOAT16),
        helper.make_node("MatMul", ["h", "w"], ["p"]),
        helper.make_node("Cast", ["p"], ["y"], to=TensorProto.FLOAT),
    ]
    session = onnxruntime.InferenceSession(
        rounded_float32(_graph(TensorProto.FLOAT, *nodes, weights=(tensor,))).SerializeToString()
    )
    x = rng.normal(size=(2, 4)).astype(np.float32)
    (found,) = session.run(None, {"x": x})
    exact = x.astype(ml_dtypes.bfloat16).astype(np.float32) @ weight.astype(np.float32)
    assert np.array_equal(found, exact.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert not np.array_equal(found, exact)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--precision", "int8_qdq"],
            "int8_qdq takes its scales from what the model judges: give --calibrate, a folder of images",
        ),
        (["--precision", "int8", "--calibrate", "photos"], "--calibrate is for int8_qdq"),
        (["--set", "layer=-1"], "--set goes with --untrained"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", "onnx", "--model", CLIP, "--out", str(tmp_path / "bundle"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("batch", ["", "1:8", "8:4:2", "0:1:2", "-1:2:3", "a:b:c"])
def test_batches_must_rise(batch: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run(["export", "onnx", "--model", CLIP, "--out", str(tmp_path / "b"), "--batch", batch])


def test_names_of_engines() -> None:
    assert engine_name("onnx", "fp16", "latency") == "onnx-fp16"
    assert engine_name("tensorrt", "fp16", "throughput") == "tensorrt-fp16-throughput"
