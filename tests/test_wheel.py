"""The files that are published: what sdist and wheel hold, and that the wheel works with each extra alone."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import build
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
#: What an extra is for, as Python that works with it. Extras that only collect others are left out.
USES = {
    "train": "import zoo.training.contrastive, zoo.evaluation.run, zoo.models.clip, export.onnx.export",
    "cpu": "import export.runtime, onnxruntime",
    "gpu": "import export.runtime, onnxruntime",
    "cuda": "import export.runtime.cuda, cuda.bindings.runtime",
    "tensorrt": "import export.tensorrt.build, tensorrt",
    "tensorrt-rtx": "import export.tensorrt.build, tensorrt_rtx",
    "openvino": "import export.runtime.openvino, openvino; openvino.Core()",
    "parquet": "import pyarrow.parquet",
    "finetune": "import zoo.models.lora, peft",
    "peers": "from sklearn.linear_model import LogisticRegression",
    "heic": "import zoo.inputs.image; from pi_heif.as_plugin import HeifImageFile",
    "jxl": "import zoo.inputs.image; from pylibjxl.pillow_plugin import JxlImageFile",
    "fast": "import zoo.inputs.image; assert zoo.inputs.image.resizer().startswith('cykooz')",
    "language": "import zoo.inputs.language; from py3langid import langid",
    "sign": "import export.bundle.store; from cryptography.hazmat.primitives.asymmetric import ed25519",
    "video": "import zoo.inputs.video, av; av.codec.Codec('h264')",
    "tensorboard": "import lightning.pytorch.loggers as loggers; loggers.TensorBoardLogger('logs')",
}
Environment = Callable[[str], Path]


def _run(*command: str | Path, cwd: Path, statuses: tuple[int, ...] = (0,), **variables: str) -> str:
    """Standard output, then standard error, of a command that ends with one of these statuses."""
    foreign = ("PYTHONPATH", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in foreign} | variables
    words = [str(part) for part in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in statuses, f"{' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that was built from it."""
    out = tmp_path_factory.mktemp("dist")
    # An isolated build fetches hatchling and all that it needs; if they are installed, no network is needed.
    absent = [missing for need in PROJECT["build-system"]["requires"] for missing in build.check_dependency(need)]
    isolation = [] if absent else ["--no-isolation"]
    _run(sys.executable, "-m", "build", *isolation, "--outdir", out, REPOSITORY, cwd=out)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def environment(published: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Gives a folder of executables: safety-zoo from the wheel, and what it requires with one extra, nothing else.

    To save minutes and gigabytes, required packages are links to those of the running environment. One that is not
    declared, directly or by another, is not linked and cannot be imported. Skips if the extra is not installed.
    """
    _, wheel = published
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "venv", with_pip=False)
    scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / Path(sys.executable).name
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    site = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())

    def with_extra(extra: str) -> Path:
        links = folder / (extra or "core")
        if not links.is_dir():
            packages = _required(wheel, extra)
            links.mkdir()
            for package in packages:
                _link(package, links)
        (site / "dependencies.pth").write_text(f"{links}\n")
        return scripts

    return with_extra


def _required(wheel: Path, extra: str) -> list[importlib.metadata.Distribution]:
    """The installed packages that the wheel requires with an extra, directly or by another. Checks their versions."""
    (metadata,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA"))
    declared = importlib.metadata.PathDistribution(zipfile.Path(wheel, metadata.removesuffix("METADATA")))
    known: dict[str, importlib.metadata.Distribution] = {}
    visited = set()
    waiting: list[tuple[importlib.metadata.Distribution, tuple[str, ...]]] = [(declared, (extra,))]
    while waiting:
        package, extras = waiting.pop()
        for line in package.requires or ():
            need = Requirement(line)
            if need.marker and not any(need.marker.evaluate({"extra": one}) for one in (*extras, "")):
                continue
            name = canonicalize_name(need.name)
            if name == "safety-zoo":
                waiting.append((declared, tuple(need.extras)))
                continue
            try:
                installed = known.setdefault(name, importlib.metadata.distribution(name))
            except importlib.metadata.PackageNotFoundError:
                assert extra, f"{name}, which the wheel requires, is not installed"
                pytest.skip(f"{name} of the extra {extra} is not installed")
            if package is declared:
                assert need.specifier.contains(installed.version, prereleases=True), f"{need}: {installed.version}"
            if (name, *need.extras) not in visited:
                visited.add((name, *need.extras))
                waiting.append((installed, tuple(need.extras)))
    return list(known.values())


def _link(package: importlib.metadata.Distribution, links: Path) -> None:
    """Link the files of a package, by what lies at the top of its site-packages."""
    for name in {file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")}:
        source = Path(str(package.locate_file(name)))
        if source.exists() and not (links / name).exists():
            (links / name).symlink_to(source)


def test_the_wheel_holds_what_is_shipped_and_nothing_else(published: tuple[Path, Path]) -> None:
    _, wheel = published
    assert wheel.name.endswith("-py3-none-any.whl")  # for every processor and system
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("recipes", "configs"):
        shipped = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / folder).rglob("*.yaml")}
        assert shipped
        assert {f"zoo/_assets/{name}" for name in shipped} <= names
    assert "zoo/evaluation/page.html" in names
    for package in ("zoo", "export"):  # page templates and READMEs too
        files = [path for path in (REPOSITORY / package).rglob("*.*") if path.is_file() and path.suffix != ".pyc"]
        assert {path.relative_to(REPOSITORY).as_posix() for path in files} <= names
    assert {name.split("/")[0] for name in names} == {"zoo", "export", wheel.name.split("-py3")[0] + ".dist-info"}


def test_the_sdist_holds_the_guide_and_the_tests(published: tuple[Path, Path]) -> None:
    sdist, _ = published
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "pyproject.toml"} <= names
    assert {"recipes/results/quickstart.json", ".github/figures/speed.png", "tests/test_wheel.py"} <= names
    assert not any(name.startswith(("runs/", ".venv/", "dist/")) for name in names)
    guide = {path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("*/*/README.md")}
    assert {name for name in guide if name.startswith(("zoo/", "tests/"))} <= names


def test_every_extra_is_tried(published: tuple[Path, Path]) -> None:
    assert set(USES) == set(PROJECT["project"]["optional-dependencies"]) - {"dev"}


def test_commands_run_outside_the_repository(environment: Environment, tmp_path: Path) -> None:
    scripts = environment("train")
    code = "import zoo, export; from zoo.assets import shipped; print(zoo.__file__, export.__file__, sep='\\n')"
    code += "\nprint(*shipped('recipe').values(), sep='\\n')"
    paths = [Path(line) for line in _run(scripts / "python", "-c", code, cwd=tmp_path).split("\n") if line]
    assert len(paths) > 2
    assert all(path.is_relative_to(scripts.parent) for path in paths), paths
    assert all("zoo/_assets/recipes" in path.as_posix() for path in paths[2:])
    zoo = scripts / "zoo"
    version = re.search(r'__version__ = "(.+)"', (REPOSITORY / "zoo" / "__init__.py").read_text(encoding="utf-8"))
    assert version
    assert _run(zoo, "--version", cwd=tmp_path) == f"safety-zoo {version[1]}\n"
    assert ": ok, " in _run(zoo, "recipes", "check", paths[2], cwd=tmp_path)
    commands = "list", "recipes", "policy list", "threats list", "budgets list", "data list"
    code = f"from zoo.cli import run; [run(words.split()) for words in {commands}]"
    listed = _run(scripts / "python", "-c", code, cwd=tmp_path).split()
    wanted = {"safeclip_tiny.zeroshot", "dogs", "linf4_pgd", "int8", "text_corpora", *(one.stem for one in paths[2:])}
    assert wanted <= set(listed)
    assert "zoo export" in _run(zoo, "export", "--help", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


#: What these import compiles for half a minute, and all tests need it anyway.
SLOW_EXTRAS = ("finetune", "peers", "train")


@pytest.mark.parametrize(
    "extra", [pytest.param(extra, marks=[pytest.mark.slow] * (extra in SLOW_EXTRAS)) for extra in USES]
)
def test_each_extra_alone_brings_what_it_is_for(environment: Environment, extra: str, tmp_path: Path) -> None:
    _run(environment(extra) / "python", "-c", USES[extra], cwd=tmp_path)


def test_a_bundle_is_judged_with_the_extra_cpu_alone(
    environment: Environment, bundles: dict[str, Path], tmp_path: Path
) -> None:
    from PIL import Image

    bundle = shutil.copytree(bundles["test_safeclip.random"], tmp_path / "bundle")
    Image.new("RGB", (90, 70), (200, 30, 30)).save(tmp_path / "red.png")
    command = ("score", "--model", bundle, "red.png", "--json")
    light = environment("cpu")
    printed = _run(light / "zoo", *command, cwd=tmp_path, statuses=(0, 3))
    verdict = json.loads(printed.splitlines()[0])
    assert verdict["status"] == "ok"
    assert verdict["decision"] in ("safe", "review", "unsafe")
    told = "judging by a bundle does not: pip install 'safety-zoo[train]'"
    for words in (("fit", "--config", "quickstart"), ("verify", bundle), ("score", "--model", "test", "red.png")):
        said = _run(light / "zoo", *words, cwd=tmp_path, statuses=(1,))
        assert (told in said) == (words[0] != "score")
        assert "Traceback" not in said
    code = "import zoo; zoo.create_model('safeclip_tiny.zeroshot')"
    assert f"MissingDependencyError: this needs torch, which {told}" in _run(
        light / "python", "-c", code, cwd=tmp_path, statuses=(1,)
    )
    refused = _run(environment("") / "zoo", *command, cwd=tmp_path, statuses=(1,))
    assert "[cpu]" in refused
    assert "Traceback" not in refused


@pytest.mark.network
def test_published_models_answer_by_name_without_torch(environment: Environment, tmp_path: Path) -> None:
    """With the extra cpu alone, each model whose weights lie in an archive; the README shows the first of them."""
    from zoo.archives.archive import Archived
    from zoo.registry import list_models, model_entry

    scripts = environment("cpu")
    assert "No module named 'torch'" in _run(scripts / "python", "-c", "import torch", cwd=tmp_path, statuses=(1,))
    cache = {"SAFETY_ZOO_CACHE": str(tmp_path / "cache")}
    photo = REPOSITORY / ".github" / "cat.jpg"
    shown = (REPOSITORY / "README.md").read_text(encoding="utf-8").partition("zoo score .github/cat.jpg\n```")[2]
    folder = shutil.copytree(photo.parent, tmp_path / ".github", ignore=shutil.ignore_patterns("figures"))
    said = _run(scripts / "zoo", "score", ".github/cat.jpg", cwd=tmp_path, statuses=(0, 1), **cache)
    if "cannot be fetched" in said:
        pytest.skip(said.strip())
    assert (
        said.partition("opennsfw.yahoo, policy")[2].splitlines()[:7]
        == shown.partition("opennsfw.yahoo, policy")[2].splitlines()[:7]
    )
    for name in list_models():
        entry = model_entry(name)
        if isinstance(entry.pretrained, Archived):
            words = [str(folder / "cat.jpg")] if entry.card.image else ["--text", "a cat looks up"]
            printed = _run(
                scripts / "zoo", "score", "--model", name, *words, "--json", cwd=tmp_path, statuses=(0, 3), **cache
            )
            assert json.loads(printed.splitlines()[0])["status"] == "ok", name
