"""The wheel: installed away from the repository, it brings its recipes and its commands."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import build
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def _run(*command: str | Path, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    # An isolated build fetches hatchling and all that it needs; where they are installed, no network is needed.
    requirements = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["build-system"][
        "requires"
    ]
    absent = [missing for requirement in requirements for missing in build.check_dependency(requirement)]
    isolation = [] if absent else ["--no-isolation"]
    _run(sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", out, REPOSITORY, cwd=out)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean environment with safety-zoo from the wheel. Returns its folder of executables.

    To save minutes the dependencies are those of the running environment, appended to the path by a .pth file.
    Its own `.pth` files are not read that way, so the editable safety-zoo there stays out: only the wheel's can
    be found.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "venv", with_pip=False)
    scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / Path(sys.executable).name
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(_run(python, "-c", code, cwd=folder).strip())
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return scripts


def test_the_wheel_holds_what_is_shipped_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("recipes", "configs"):
        shipped = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / folder).rglob("*.yaml")}
        assert shipped
        assert {f"zoo/_assets/{name}" for name in shipped} <= names
    assert "zoo/evaluation/page.html" in names
    assert {name.split("/")[0] for name in names} == {"zoo", "export", wheel.name.split("-py3")[0] + ".dist-info"}


def test_commands_run_outside_the_repository(elsewhere: Path, tmp_path: Path) -> None:
    code = "import zoo, export; from zoo.assets import recipes; print(zoo.__file__, export.__file__, sep='\\n')"
    code += "\nprint(*recipes().values(), sep='\\n')"
    found = _run(elsewhere / "python", "-c", code, cwd=tmp_path).split("\n")
    paths = [Path(line) for line in found if line]
    assert len(paths) > 2
    assert all(path.is_relative_to(elsewhere.parent) for path in paths), paths
    assert all("zoo/_assets/recipes" in path.as_posix() for path in paths[2:])
    zoo = elsewhere / "zoo"
    assert "test_safeclip.random" in _run(zoo, "list", cwd=tmp_path).split()
    listed = _run(zoo, "recipes", cwd=tmp_path)
    for recipe in paths[2:]:
        assert recipe.stem in listed
    assert ": ok, " in _run(zoo, "recipes", "check", paths[2], cwd=tmp_path)
    assert "zoo export" in _run(zoo, "export", "--help", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
