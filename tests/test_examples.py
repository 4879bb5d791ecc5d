"""The examples in the docstrings of the public names give what they say."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import zoo
from zoo import registry
from zoo.assets import find_asset
from zoo.contract.policy import Policy
from zoo.registry import create_model
from zoo.release.store import write_release

PUBLIC = [name for name in zoo.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "Guard"])
def test_the_example_of_each_public_name_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    policy = Policy.read(find_asset("configs/policy/safeclip.yaml"))
    write_release(create_model("safeclip_tiny.zeroshot"), policy, Path("my_release"))
    Image.new("RGB", (80, 60), "green").save("photo.jpg")
    shutil.copy(find_asset("configs/policy/cifar10.yaml"), "my_policy.yaml")
    public = getattr(zoo, name)
    module = importlib.import_module(public.__module__)
    importlib.import_module("zoo.models.classifiers")
    (test,) = doctest.DocTestFinder(recurse=False).find(
        public, name, module=module, globs={**vars(module), "zoo": zoo, "torch": torch}
    )
    assert test.examples, f"zoo.{name} has no example"
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
    assert capsys.readouterr().out == ""


def test_the_example_of_the_guard_calls_what_there_is() -> None:
    """Not run: it needs the weights of a LLaVA."""
    (code,) = re.findall(r"```python\n(.*?)```", inspect.getdoc(zoo.Guard) or "", re.DOTALL)
    ast.parse(code)
    called = re.findall(r"\b(zoo|guard)\.(\w+)", code)
    assert called == [("zoo", "Guard"), ("guard", "inputs"), ("guard", "generate")]
    assert all(hasattr({"zoo": zoo, "guard": zoo.Guard}[owner], name) for owner, name in called)
