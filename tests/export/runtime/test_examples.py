"""The example in the docstring of each public name of `export.runtime` gives what it says."""

from __future__ import annotations

import doctest
import importlib
import shutil
from pathlib import Path

import pytest
from PIL import Image

from export import runtime


@pytest.mark.parametrize("name", runtime.__all__)
def test_the_example_of_each_public_name_runs(
    name: str,
    bundles: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundles["test_safeclip.random"], "my_bundle")
    Image.new("RGB", (80, 60), "green").save("photo.jpg")
    public = getattr(runtime, name)
    module = importlib.import_module(public.__module__)
    (test,) = doctest.DocTestFinder(recurse=False).find(
        public, name, module=module, globs={**vars(module), "runtime": runtime}
    )
    assert test.examples, f"export.runtime.{name} has no example"
    doctest.DocTestRunner().run(test)
    assert capsys.readouterr().out == ""
