"""What is lost when commands are killed, when the disk is full, and when inputs are broken: nothing, or this says what.

Every command that writes runs in a forked child of a process that has imported everything once. A child is killed at a
random moment: half of them by time, half at a random event of the file system, where the damage would be. Then all that
lay there before must lie there still, whole: other people's files, old outputs, every file by its own format, every
release and bundle by its hashes. On a full disk a command must say so in one line, and leave what was there.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import importlib.util
import io
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch

from export.onnx.graph import served_graph
from tests.benchmarks.common import answered, parser
from zoo.models.base import ZooModel

NSFWJS, CLIP, BERT, TINY = (
    "test_nsfwjs.random",
    "test_safeclip.random",
    "test_prompt_bert.random",
    "safeclip_tiny.zeroshot",
)
#: Seconds after which a command hangs.
LIMIT = 180
TRACEBACK = 70

#: Commands that write nothing. Any other one must have a case below.
READERS = {
    *("list", "show", "recipes", "recipes list", "recipes check", "threats", "threats list", "budgets", "budgets list"),
    *("data", "data list", "score", "guard", "attacks", "attacks list", "export", "bundle", "bundle info", "policy"),
    *("policy list", "validate", "test"),
    "pull",  # writes into the cache alone, a folder as a whole; it needs an index of packages
}


@dataclass
class Case:
    """A command with its arguments, which may name files of `base`; `own` are copied for it, as it changes them.

    `fresh`: it refuses an output that is there, so what the run before it wrote is removed. Without the
    optional package that it `needs` it is not tried.
    """

    command: str
    arguments: str
    own: tuple[str, ...] = ()
    fresh: bool = False
    needs: str = ""


CASES = (
    Case("recipes copy", "quickstart --out mine", fresh=True),
    Case("data signs", "--out signs --train 8 --val 2 --test 2", fresh=True),
    Case("data questions", "--signs {base}/signs --out questions.csv"),
    Case("data proxy", "--captions {base}/signs/captions.csv --positive-words red --out proxy.csv"),
    Case("data folder", "{base}/photos --out photos.csv --val-share 0.3"),
    Case("data corpora", "{base}/corpora.yaml --root {base} --out corpora.csv"),
    Case("fit", "--config {base}/tiny.yaml", fresh=True),
    Case("predict", "--config {base}/tiny.yaml --ckpt_path {base}/checkpoints/best.ckpt"),
    Case("release", "{base}/checkpoints/best.ckpt --out release --overwrite"),
    Case("import", f"clip {{base}}/tiny --name {TINY} --out imported --overwrite"),
    Case("panel", f"test_clip {CLIP} test_q16.random --out panel --overwrite"),
    Case("evaluate", "--model nsfwjs --data {base}/signs/manifest.csv --report report --update-card", ("nsfwjs",)),
    Case(
        "evaluate robustness",
        "--model nsfwjs --data {base}/signs/manifest.csv --threat {base}/threat.yaml --limit 2 --points policy"
        " --eps 0,8/255 --out attacked --save examples --update-card",
        ("nsfwjs",),
        fresh=True,
    ),
    Case(
        "evaluate texts",
        "--model bert --data {base}/texts.csv --latency 2 --draws 100 --out texts --update-card",
        ("bert",),
    ),
    Case(
        "evaluate guard",
        "--lvlm {base}/lvlm --detector {base}/clip --data {base}/asked.csv --max-new-tokens 2 --out answers.json"
        " --report asked",
    ),
    Case(
        "guard bench",
        f"--lm-layers 1 --lm-width 32 --lm-heads 2 --clip {CLIP} --rounds 3 --new-tokens 2 --threads 1 --out g.json",
    ),
    Case("leaderboard", "{base}/attacked --out board.md --plot curve.png"),
    Case("export onnx", "--model {base}/nsfwjs --out bundle --overwrite"),
    Case("export openvino", "--model {base}/nsfwjs --out bundle --replace", ("bundle",)),
    Case(
        "export tensorrt",
        "--model {base}/nsfwjs --out bundle --replace --capability SM89 --batch 1:1:2 --package tensorrt_rtx",
        ("bundle",),
        needs="tensorrt_rtx",
    ),
    Case("export triton", "--model {base}/bundle --out repository --overwrite"),
    Case("verify", "bundle --model {base}/nsfwjs --count 256", ("bundle",)),
    Case("bundle sign", "bundle --key {base}/key.pem", ("bundle",)),
    Case("policy use", "{base}/policy.yaml --model bundle", ("bundle",)),
    Case("policy embed", "dogs --model {base}/clip", fresh=True),
    Case("bench", "{base}/clip_bundle --rounds 5 --batch-sizes 1 --threads 1 --jpeg-size 64x64 --out timed"),
)  # fmt: skip


def names() -> set[str]:
    """The names of all commands, as the tree of parsers has them."""
    from zoo.cli import build_parser

    def walk(node: argparse.ArgumentParser, words: tuple[str, ...]) -> Iterator[str]:
        yield " ".join(words)
        for action in node._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, child in action.choices.items():
                    yield from walk(child, (*words, name))

    return set(walk(build_parser(), ())) - {""}


def unknown() -> set[str]:
    """Commands of which nobody said whether they write."""
    return names() ^ ({case.command for case in CASES} | READERS)


@dataclass
class Count:
    """What happened to one command. `lost` says each loss in words."""

    kills: int = 0
    full: int = 0
    refused: int = 0
    lost: list[str] = field(default_factory=list)


@dataclass
class Ended:
    """How a child ended: its status (None: killed), its last words, its events of writing, and its seconds."""

    status: int | None
    words: str
    events: int
    seconds: float


def child(
    run: Callable[[], int | None], where: Path, *, after: float = LIMIT, event: int = 0, largest: int | None = None
) -> Ended:
    """Run in a forked child, killed `after` seconds or at an event of writing; no file grows beyond `largest` bytes."""
    reading, writing = os.pipe()
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _in_child(run, where, writing, event, largest)
    os.close(writing)
    data = b""
    while (left := start + after - time.monotonic()) > 0:
        if select.select([reading], [], [], left)[0]:
            part = os.read(reading, 1 << 16)
            if not part:
                break
            data += part
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(reading)
    words, ended, events = data.decode(errors="replace").partition("\0")
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and not ended
    return Ended(
        None if killed else os.waitstatus_to_exitcode(status), words, int(events or 0), time.monotonic() - start
    )


def _in_child(run: Callable[[], int | None], where: Path, pipe: int, event: int, largest: int | None) -> None:
    """Run, tell status and events to the parent, and end whatever happens: the parent's own work is not for a child."""
    status, events = TRACEBACK, 0

    def watch(name: str, given: tuple[Any, ...]) -> None:
        nonlocal events
        writes = name == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or name in ("os.rename", "os.link", "os.mkdir", "os.remove", "shutil.rmtree", "os.chmod"):
            events += 1
            if events == event:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        os.dup2(pipe, 1)
        os.dup2(pipe, 2)
        sys.stdout = sys.stderr = open(os.dup(pipe), "w", buffering=1, encoding="utf-8")  # noqa: SIM115
        os.chdir(where)
        os.environ["SAFETY_ZOO_CACHE"] = str(where / "cache")
        sys.addaudithook(watch)
        if largest is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
        status = run() or 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1 if end.code else 0
        os.write(pipe, f"{end.code if isinstance(end.code, str) else ''}\n".encode())
    except BaseException:  # everything else is a traceback that a user would see
        os.write(pipe, traceback.format_exc().encode())
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        with contextlib.suppress(BaseException):
            os.write(pipe, f"\0{events}".encode())
        os._exit(status)


def command(case: Case, base: Path) -> Callable[[], int]:
    """What runs a case."""
    from zoo.cli import run

    return lambda: run([*case.command.split(), *case.arguments.format(base=base).split()])


#: What writes the inputs of cases that name them, in this order.
INPUTS = {
    "signs": "data signs --out signs --train 8 --val 4 --test 4",
    "checkpoints": "fit --config tiny.yaml",
    "bundle": "export onnx --model nsfwjs --out bundle",
    "clip_bundle": "export onnx --model clip --out clip_bundle",
    "attacked": "evaluate robustness --model nsfwjs --data signs/manifest.csv --threat threat.yaml --limit 2 "
    "--points policy --eps 0,8/255 --out attacked",
}


def prepare(base: Path, cases: Sequence[Case]) -> None:
    """Write everything that these cases read."""
    base.mkdir()
    _ended_well(child(lambda: _inputs(base), base))
    for name, words in INPUTS.items():
        if name == "signs" or any(name in case.own or f"{{base}}/{name}" in case.arguments for case in cases):
            _run(words, base)
        if name == "signs":
            _captions(base / "signs")


def _captions(signs: Path) -> None:
    with (signs / "manifest.csv").open(newline="", encoding="utf-8") as stream:
        rows = [(row["image"], row["text"], row["split"]) for row in csv.DictReader(stream)]
    with (signs / "captions.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("image", "text", "split"), *rows])


def _run(words: str, base: Path) -> None:
    """Run a command in a child, in the folder of inputs."""
    from zoo.cli import run

    _ended_well(child(lambda: run(words.split()), base), words)


def _ended_well(end: Ended, what: str = "inputs") -> None:
    if end.status != 0:
        raise RuntimeError(f"{what}: ended with {end.status}\n{end.words[-3000:]}")


def _inputs(base: Path) -> None:
    import yaml
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from PIL import Image

    from zoo.registry import create_model, default_policy, model_card, model_entry
    from zoo.release.store import load_release, write_release

    for name, folder in ((NSFWJS, "nsfwjs"), (CLIP, "clip"), (BERT, "bert")):
        release = load_release(name)
        write_release(release.model, release.policy, base / folder)
    tiny = create_model(TINY)
    tiny.tokenizer_json = load_release(CLIP).model.tokenizer_json
    write_release(tiny, default_policy(model_entry(TINY)), base / "tiny")
    policy = yaml.safe_load((base / "nsfwjs" / "policy.yaml").read_bytes()) | {"summary": "another"}
    (base / "policy.yaml").write_text(yaml.safe_dump(policy), encoding="utf-8")
    for number in range(8):
        photos = base / "photos" / "train" / ("bad" if number % 2 else "good")
        photos.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40, 40), 20 + 20 * number).convert("RGB").save(photos / f"{number}.png")
    _vision_language(load_release(CLIP).model, base / "lvlm")
    labels = model_card(BERT).labels
    rows = [f"one text of number {n},{labels[0] if n % 2 else ''},{'test' if n % 3 else 'val'}\n" for n in range(12)]
    (base / "texts.csv").write_text("text,labels,split\n" + "".join(rows), encoding="utf-8")
    marks = [{"name": "rude", "column": "labels", "values": [labels[0]]}]
    files = {"corpora.yaml": {"schema_version": 1, "sources": [{"file": "texts.csv", "categories": marks}]}}
    files["threat.yaml"] = {"schema_version": 1, "norm": "Linf", "eps": "8/255", "attacks": ["fgsm"], "steps": 1}
    checkpoint = {"dirpath": "checkpoints", "filename": "best", "save_last": True, "enable_version_counter": False}
    trainer = {"accelerator": "cpu", "max_epochs": 1, "default_root_dir": "logs", "enable_progress_bar": False}
    kept = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": checkpoint}
    data = {"manifest": str(base / "signs" / "manifest.csv"), "batch_size": 8}
    files["tiny.yaml"] = {
        "trainer": trainer | {"enable_model_summary": False, "log_every_n_steps": 1, "callbacks": [kept]},
        "model": {"class_path": "zoo.training.Contrastive", "init_args": {"model": CLIP}},
        "data": {"class_path": "zoo.training.ManifestData", "init_args": data},
    }
    for name, content in files.items():
        (base / name).write_text(yaml.safe_dump(content), encoding="utf-8")
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    (base / "key.pem").write_bytes(pem)


def _vision_language(clip: Any, folder: Path) -> None:
    """A vision-language model that answers nonsense to `asked.csv` beside it."""
    from zoo.guard.insertion import INSTRUCTION
    from zoo.models.tiny_llava import build_tiny_llava, tiny_llava_processor, train_llava_tokenizer

    question = "What is shown?"
    texts = [INSTRUCTION, f"USER: \n{question} ASSISTANT: A dog."]
    processor = tiny_llava_processor(clip, train_llava_tokenizer(texts, 500))
    model = build_tiny_llava(clip, processor, vocabulary_size=500, width=32, layers=1, heads=2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    photos = sorted((folder.parent / "photos").rglob("*.png"))
    rows = [(photo.relative_to(folder.parent), question, number % 2) for number, photo in enumerate(photos)]
    with (folder.parent / "asked.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("image", "question", "label"), *rows])


def import_all() -> None:
    """Import what the commands import, so that a child starts at once."""
    for name in (
        *("lightning", "matplotlib.figure", "onnx", "onnxruntime", "transformers.models.clip.modeling_clip"),
        *("tests.tiny_models", "zoo.training.cli", "export.bench.compare", "export.onnx.export", "export.openvino"),
        *("export.tensorrt.export", "transformers.models.llava.modeling_llava", "zoo.guard.lvlm"),
    ):
        importlib.import_module(name)
    torch.set_num_threads(1)


def trace_once(folder: Path) -> None:
    """Keep the graphs that exports trace in a folder: tracing takes seconds, and writes nothing."""

    def served(model: ZooModel, banks: tuple[torch.Tensor, ...], *, opset: int) -> onnx.ModelProto:
        path = folder / f"{model.card.name}-{next(model.parameters()).dtype}-{opset}.onnx"
        if not path.exists():
            onnx.save(served_graph(model, banks, opset=opset), path)
        return onnx.load(path)

    for module in ("export.onnx.export", "export.openvino"):
        vars(importlib.import_module(module))["served_graph"] = served


# What is whole


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by its path; not what killed runs left behind, which the next run removes."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    inside = {path.relative_to(folder): path for path in files}
    return {str(name): path.read_bytes() for name, path in inside.items() if not _litter(name)}


def _litter(name: Path) -> bool:
    return any(part.startswith(".") and part.endswith((".zoo-partial", ".zoo-old")) for part in name.parts)


def damage(folder: Path, before: dict[str, bytes]) -> list[str]:
    """What is lost or broken in a folder, in words."""
    after = contents(folder)
    found = [f"{name} is gone" for name in before.keys() - after.keys() if not name.endswith(".sig")]
    for name, data in after.items():
        if data != before.get(name) and (problem := _broken(Path(name), data)):
            found.append(f"{name}: {problem}")
    for path in folder.rglob("*.json"):
        beside = path.parent
        # A bundle's card has the hashes of its release, and a version of a Triton model is not a whole bundle.
        other = (path.name == "card.json" and (beside / "manifest.json").exists()) or (
            beside.parent / "config.pbtxt"
        ).exists()
        if path.name in ("card.json", "manifest.json") and not other and not _litter(path.relative_to(folder)):
            found += _mismatch(path)
    return found + [
        f"{name} was changed" for name, data in before.items() if name.startswith("thesis") and after.get(name) != data
    ]


def _broken(name: Path, data: bytes) -> str | None:
    """Why a file is not whole; None for one that is. Logs that Lightning appends to as it goes are not looked at."""
    if "version_" in str(name) and name.name != "predictions.jsonl":
        return None
    try:
        _read_whole(name.suffix, data)
    except Exception as problem:
        return f"{type(problem).__name__}: {problem} ({len(data)} bytes)"
    return None


def _read_whole(suffix: str, data: bytes) -> None:
    import numpy as np
    import safetensors.numpy
    import yaml
    from PIL import Image

    stream = io.BytesIO(data)
    if suffix in (".json", ".jsonl"):
        for line in [data] if suffix == ".json" else data.splitlines():
            json.loads(line)
    elif suffix in (".png", ".jpg"):
        Image.open(stream).load()
    elif suffix in (".ckpt", ".npz"):
        if zipfile.ZipFile(stream).testzip() is not None:
            raise ValueError("damaged")
    elif suffix == ".onnx":
        onnx.load(stream)
    elif suffix == ".npy":
        np.load(stream)
    elif suffix == ".safetensors":
        safetensors.numpy.load(data)
    elif suffix == ".yaml":
        yaml.safe_load(data)
    elif suffix == ".csv":
        widths = {len(row) for row in csv.reader(io.StringIO(data.decode()))}
        if len(widths) != 1 or not data.endswith(b"\n"):
            raise ValueError(f"rows of {widths} cells")
    elif (suffix == ".html" and not data.rstrip().endswith(b"</html>")) or (
        suffix == ".md" and not data.endswith(b"\n")
    ):
        raise ValueError("cut")


def _mismatch(path: Path) -> list[str]:
    try:
        wanted = json.loads(path.read_bytes()).get("files") or {}
    except ValueError as problem:
        return [f"{path}: {problem}"]
    files = {path.with_name(name): digest for name, digest in wanted.items()}
    missing = [file for file in files if not file.is_file()]
    hashes = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in files.keys() - set(missing)}
    changed = [file for file, digest in hashes.items() if digest != files[file]]
    return [f"{file}: missing, although {path.name} has its hash" for file in missing] + [
        f"{file}: not the file whose hash {path.name} has" for file in changed
    ]


# Kills and full disks


@contextlib.contextmanager
def disk(megabytes: int = 400) -> Iterator[tuple[Path, bool]]:
    """A folder on a disk of its own, where this process may mount one; else just a folder, and False."""
    folder = Path(tempfile.mkdtemp(prefix="losses-"))
    size = f"size={megabytes}m"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "losses", folder], capture_output=True, check=False)
    try:
        yield folder, mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", folder], check=False)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def filled(folder: Path, left: int | None) -> Iterator[None]:
    """Leave only some bytes on the disk of a folder; None: all that there are."""
    if left is None:
        yield
        return
    filler, status = folder / "filler", os.statvfs(folder)
    with filler.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, max(1, status.f_bavail * status.f_frsize - left))
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let nobody write to the disk of a folder, not even root."""
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", folder], check=True)


#: Disks that refuse: no file beyond a share of the largest output, a disk with only that much room, a read-only one.
DISKS = (
    *(("limit", 0.0), ("limit", 0.4), ("limit", 0.9)),
    *(("full", 0.0), ("full", 0.4), ("full", 0.9), ("read-only", 0.0)),
)


def try_case(case: Case, home: Path, kills: int, disks: bool, own_disk: bool, rng: random.Random) -> Count:
    """Kill a command and let it run out of disk; `home` holds `base`."""
    base, where, count = home / "base", home / case.command.replace(" ", "_"), Count()
    where.mkdir()
    (where / "thesis.txt").write_text("years of work", encoding="utf-8")
    for name in case.own:
        shutil.copytree(base / name, where / name)
    given, run = contents(where), command(case, base)
    whole = child(run, where)
    _ended_well(whole, case.command)
    outputs = contents(where)
    count.lost += [f"whole run: {what}" for what in damage(where, given)]
    for number in range(3 * kills):  # a command that ends before it is killed does not count
        if count.kills == kills:
            break
        before = _start(case, where, given)
        moment = {"after": rng.uniform(0, whole.seconds)} if number % 2 else {"event": rng.randint(1, whole.events)}
        end = child(run, where, **moment)
        count.kills += end.status is None
        count.lost += [f"kill at {moment}: {what}" for what in damage(where, before)]
    largest = max(len(data) for name, data in outputs.items() if data != given.get(name))
    for kind, share in DISKS if disks else ():
        if not own_disk and kind != "limit":
            continue
        before, least = _start(case, where, given), int(share * largest)
        with read_only(home) if kind == "read-only" else filled(home, least if kind == "full" else None):
            end = child(run, where, largest=least if kind == "limit" else None)
        count.full += 1
        count.refused += end.status != 0
        last = (end.words.strip().splitlines() or [""])[-1]
        if end.status and (end.status < 0 or end.status == TRACEBACK or "zoo: " not in last):
            count.lost.append(f"{kind} {share}: ended with {end.status}: {end.words[-1500:]}")
        count.lost += [f"{kind} {share}: {what}" for what in damage(where, before)]
    _start(case, where, given)
    _ended_well(child(run, where), f"{case.command} after all that")
    count.lost += [f"left behind: {path}" for path in where.rglob(".*") if _litter(path.relative_to(where))]
    shutil.rmtree(where)
    return count


def _start(case: Case, where: Path, given: dict[str, bytes]) -> dict[str, bytes]:
    """Remove what a command would refuse to replace; what lies there now."""
    if case.fresh:
        for path in where.iterdir():
            if path.name not in {Path(name).parts[0] for name in given} and not _litter(Path(path.name)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return contents(where)


def lose(kills: int, disks: bool, only: Sequence[str] = (), seed: int = 0) -> dict[str, Count]:
    """Try all cases, or those of the names given; `kills` in all, with `disks` on full ones too; prints each."""
    import_all()
    traces = tempfile.TemporaryDirectory(prefix="losses-traces-")
    trace_once(Path(traces.name))
    cases = [case for case in CASES if not only or case.command in only]
    absent = [case for case in cases if case.needs and importlib.util.find_spec(case.needs) is None]
    for case in absent:
        print(f"not tried: zoo {case.command}, as {case.needs} is not installed", file=sys.stderr)
    cases = [case for case in cases if case not in absent]
    rng, counts = random.Random(seed), {}
    with disk() as (home, own_disk):
        prepare(home / "base", cases)
        for place, case in enumerate(cases):
            share = kills // len(cases) + (place < kills % len(cases))
            start = time.monotonic()
            try:
                found = try_case(case, home, share, disks, own_disk, rng)
            except RuntimeError as problem:
                found = Count(lost=[str(problem)])
            counts[case.command] = found
            print(
                f"| `zoo {case.command}` | {found.kills} of {share} | {found.refused} of {found.full} | "
                f"{len(found.lost) or 'nothing'} |  <!-- {time.monotonic() - start:.0f} s -->",
                *found.lost,
                sep="\n    ",
                flush=True,
            )
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 1 when anything was lost."""
    options = parser("tests.benchmarks.losses", __doc__ or "", "--kills 200 --full-disks --mutations 100000")
    options.add_argument("--kills", type=int, default=0, metavar="N", help="kills over all writing commands")
    options.add_argument("--full-disks", action="store_true", help="full and read-only disks for each command")
    options.add_argument("--mutations", type=int, default=0, metavar="N", help="broken inputs over all readers")
    options.add_argument("--only", action="append", default=[], metavar="COMMAND", help="only this command; repeatable")
    options.add_argument("--seed", type=int, default=0, metavar="N", help="seed of moments and mutations")
    given = options.parse_args(arguments)
    if unknown():
        print(f"say whether these write: {sorted(unknown())}", file=sys.stderr)
        return 1
    lost = 0
    if given.kills or given.full_disks:
        print("| command | killed before its end | stopped by a full disk | lost |\n|---|---|---|---|")
        lost += sum(len(one.lost) for one in lose(given.kills, given.full_disks, given.only, given.seed).values())
    if given.mutations:
        import tests.tiny_models  # noqa: F401
        from tests.benchmarks.mutations import mutate

        lost += mutate(given.mutations, given.seed)
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(answered(main))
