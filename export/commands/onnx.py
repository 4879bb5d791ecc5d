"""`zoo export onnx`."""

from __future__ import annotations

import argparse

from export.commands.options import add_engine_options, engine_options, print_exported
from zoo.commands.common import Commands, add_command


def add(formats: Commands) -> None:
    """Declare the subcommand."""
    text = "an ONNX graph, for onnxruntime on CPUs and CUDA"
    example = "zoo export onnx --model releases/x --out bundles/x --precision int8"
    add_engine_options(add_command(formats, "onnx", export, text, example))


def export(options: argparse.Namespace) -> int:
    """Export an ONNX engine."""
    from export.onnx.export import export_onnx

    print_exported(options, "onnx", export_onnx(options.model, options.out, **engine_options(options)))
    return 0
