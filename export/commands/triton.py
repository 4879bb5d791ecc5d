"""`zoo export triton`."""

from __future__ import annotations

import argparse
from pathlib import Path

from zoo.commands.common import Commands, add_command, read_policy


def add(formats: Commands) -> None:
    """Declare the subcommand."""
    text = "a bundle's engine as a model of a Triton Inference Server"
    example = "zoo export triton --bundle bundles/x --out model_repository"
    parser = add_command(formats, "triton", _export_triton, text, example)
    parser.add_argument("--bundle", type=Path, required=True, help="bundle directory")
    parser.add_argument("--out", type=Path, required=True, metavar="REPOSITORY", help="model repository to write into")
    parser.add_argument("--engine", metavar="NAME", help="engine of the bundle (default: its first for onnxruntime)")
    parser.add_argument("--policy", help="policy file in place of the bundle's own: its phrases go into the model")
    parser.add_argument("--name", help="name of the model in Triton (default: the model's own)")
    parser.add_argument("--version", type=int, default=1, help="version directory (default: 1); others are kept")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where instances run (default: the engine's first)")
    parser.add_argument("--instances", type=int, default=1, help="instances at once (default: 1)")
    parser.add_argument(
        "--max-batch", type=int, help="largest batch (default: the engine's); 0: none, phrases come with each request"
    )
    parser.add_argument("--delay-us", type=int, default=2000, help="how long a batch waits for more (default: 2000)")
    parser.add_argument("--queue", type=int, default=1024, help="requests that may wait, then refused (default: 1024)")
    parser.add_argument("--overwrite", action="store_true", help="replace the model with all its versions")


def _export_triton(options: argparse.Namespace) -> int:
    from export.triton import export_triton

    model = export_triton(
        options.bundle,
        options.out,
        engine=options.engine,
        policy=read_policy(options.policy),
        name=options.name,
        version=options.version,
        device=options.device,
        instances=options.instances,
        max_batch=options.max_batch,
        delay_us=options.delay_us,
        queue=options.queue,
        overwrite=options.overwrite,
    )
    print(f"{model}: version {options.version}; what clients send and get is said in {model / 'config.pbtxt'}")
    return 0
