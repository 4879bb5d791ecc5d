"""Broken inputs: each reader is given files with flipped, cut, inserted and repeated bytes, and refuses or reads them.

A refusal is an error of the zoo, never a traceback; and no picture that cannot be decoded is judged safe.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zoo.errors import ZooError

#: What is inserted: harmless pieces that readers are known to stumble over.
PIECES = (
    *(b"\x00", b"\xff\xfe", b"\n", b"\r", b",", b'"', b"'", b"{", b"}", b"[", b"[[[[[[", b": ", b"- ", b"&a ", b"*a"),
    *(b"#", b"NaN", b"Infinity", b"1e999", b"-1", b"0", b"9" * 40, b"true", b"null", b"\\ud800", "é".encode(), b"|"),
    *(b"%", b"$", "\u202e".encode(), b"__class__", b"!!python/none", b"\x7f\xff\xff\xff", b"\xff" * 8),
)  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """A kind of input: whole examples of it, and what reads one. `share` of all mutations are of this kind."""

    kind: str
    seeds: tuple[bytes, ...]
    read: Callable[[bytes], object]
    share: float


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one to four changes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        start = rng.randrange(len(changed) + 1)
        end = min(len(changed), start + rng.choice((1, 2, 8, 64)))
        kind = rng.randrange(6)
        if kind == 0:
            changed[start:start] = rng.choice(PIECES)
        elif kind == 1:
            changed[start:end] = rng.choice(PIECES)
        elif kind == 2:
            del changed[start:end]
        elif kind == 3:
            del changed[start:]
        elif kind == 4:
            changed[start:start] = changed[start:end]
        elif start < len(changed):
            changed[start] ^= 1 << rng.randrange(8)
    return bytes(changed)


def readers(folder: Path) -> list[Reader]:
    """All kinds of inputs, with their files in a folder."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from export.bundle.manifest import Budget
    from export.bundle.store import _key, read_manifest
    from export.onnx.export import export_onnx
    from export.verify.inputs import golden_images
    from zoo.adversary.threat import Threat
    from zoo.assets import shipped
    from zoo.contract.card import ModelCard
    from zoo.contract.policy import read_policy
    from zoo.data.corpora import Corpora
    from zoo.data.manifest import read_manifest as read_rows
    from zoo.inputs.image import decode_with_notes
    from zoo.inputs.text import TextCodec
    from zoo.release.store import load_model, load_release, load_scorer, write_release

    releases = {}
    for name in ("test_nsfwjs.random", "test_safeclip.random"):
        release = load_release(name)
        write_release(release.model, release.policy, folder / name)
        releases[name] = folder / name
    export_onnx(str(releases["test_nsfwjs.random"]), folder / "bundle")
    clip = releases["test_safeclip.random"]
    weights = releases["test_nsfwjs.random"] / "model.safetensors"
    card = json.loads(weights.with_name("card.json").read_bytes())
    scorer = load_scorer(releases["test_nsfwjs.random"])
    spec = ModelCard.read(clip / "card.json").text
    assert spec is not None
    pem = Ed25519PrivateKey.generate().private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    whole_weights = weights.read_bytes()
    header = 8 + int.from_bytes(whole_weights[:8], "little")

    def image(data: bytes) -> object:
        try:
            return decode_with_notes(data)
        except ZooError:
            verdict = scorer.verdict(data)
            if verdict.is_safe or verdict.status == "ok" or verdict.decision != "unknown":
                raise AssertionError(f"a picture that cannot be decoded is {verdict.decision}") from None
            raise

    def of_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
        path = folder / name
        path.parent.mkdir(exist_ok=True)

        def write_and_read(data: bytes) -> object:
            path.write_bytes(data)
            return read(path)

        return write_and_read

    def safetensors(data: bytes) -> object:
        card["files"]["model.safetensors"] = hashlib.sha256(data + whole_weights[header:]).hexdigest()
        weights.write_bytes(data + whole_weights[header:])
        weights.with_name("card.json").write_text(json.dumps(card), encoding="utf-8")
        return load_model(weights.parent)

    def tokenizer(data: bytes) -> object:
        return TextCodec(data.decode(errors="replace"), spec).encode(["a photo of a dog", ""])

    def files(kind: str) -> tuple[bytes, ...]:
        return tuple(path.read_bytes() for path in shipped(kind).values())

    rows = b'image,text,label,split\na.png,a dog,1,train\nb.png,"one, two",0,test\nc.png,,1,val\n'
    manifest, own_card = (folder / "bundle" / "manifest.json").read_bytes(), (clip / "card.json").read_bytes()
    return [
        Reader("images", tuple(data for data in golden_images().values() if len(data) < 20_000), image, 0.3),
        Reader("manifests, CSV", (rows,), of_file("rows.csv", read_rows), 0.2),
        Reader("policies, YAML", files("policy"), of_file("policy.yaml", read_policy), 0.1),
        Reader("threats, YAML", files("threat"), of_file("threat.yaml", Threat.read), 0.05),
        Reader("budgets, YAML", files("budget"), of_file("budget.yaml", Budget.read), 0.05),
        Reader("corpora, YAML", files("data"), of_file("corpora.yaml", Corpora.read), 0.05),
        Reader("cards, JSON", (own_card,), of_file("card.json", ModelCard.read), 0.1),
        Reader(
            "manifests of bundles, JSON",
            (manifest,),
            of_file("b/manifest.json", lambda path: read_manifest(path.parent)),
            0.1,
        ),
        Reader("headers of safetensors", (whole_weights[:header],), safetensors, 0.02),
        Reader("tokenizers, JSON", ((clip / "tokenizer.json").read_bytes(),), tokenizer, 0.02),
        Reader("keys, PEM", (pem,), of_file("key.pem", lambda path: _key(path, "private")), 0.01),
    ]


def mutate(count: int, seed: int = 0) -> int:
    """Give each reader its share of `count` broken inputs; prints a table; how many ended in anything but an answer."""
    rng, lost = random.Random(seed), 0
    print("| input | mutated | refused | read | slowest s | traceback, or judged safe |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="mutations-") as name:
        for reader in readers(Path(name)):
            ends, slowest = Counter[str](), 0.0
            for _ in range(round(count * reader.share)):
                start = time.monotonic()
                end = _end(reader, mutated(rng.choice(reader.seeds), rng))
                slowest = max(slowest, time.monotonic() - start)
                ends[end] += 1
            bugs = {end: times for end, times in ends.items() if end not in ("refused", "read")}
            lost += sum(bugs.values())
            print(
                f"| {reader.kind} | {ends.total():,} | {ends['refused']:,} | {ends['read']:,} | {slowest:.2f} "
                f"| {sum(bugs.values()) or 'none'} |",
                *(f"{times} times: {end}" for end, times in bugs.items()),
                sep="\n    ",
                flush=True,
            )
    return lost


def _end(reader: Reader, data: bytes) -> str:
    """How reading ends: "refused", "read", or the last lines of a traceback."""
    try:
        reader.read(data)
    except ZooError as problem:
        return "refused" if str(problem) else "an error without words"
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as problem:
        stream = io.StringIO()
        place = traceback.extract_tb(problem.__traceback__)[-1]
        print(f"{type(problem).__name__} at {place.filename}:{place.lineno}", file=stream)
        return f"{stream.getvalue().strip()}: {str(problem)[:90]}"
    return "read"
