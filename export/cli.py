"""`zoo export`, `zoo verify`, `zoo bench`, `zoo bundle`, `zoo policy`, found by `zoo` through entry points."""

from __future__ import annotations

from export.commands import bench, bundle, onnx, openvino, policy, tensorrt, triton, verify
from zoo.commands.common import Commands, add_command


def add_export(commands: Commands) -> None:
    """Declare `zoo export` with its formats, and `zoo bundle` and `zoo policy`, for what was exported."""
    text = "export a model to a bundle that runs without torch"
    parser = add_command(commands, "export", onnx.export, text, "zoo export onnx --model releases/x --out bundles/x")
    formats: Commands = parser.add_subparsers(title="formats", metavar="FORMAT", required=True)
    for module in (onnx, openvino, tensorrt, triton):
        module.add(formats)
    bundle.add(commands)
    policy.add(commands)


def add_verify(commands: Commands) -> None:
    """Declare `zoo verify`."""
    verify.add(commands)


def add_bench(commands: Commands) -> None:
    """Declare `zoo bench`."""
    bench.add(commands)
