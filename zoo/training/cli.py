"""`zoo fit|validate|test|predict`: LightningCLI with our recipes, loggers and error messages."""

from __future__ import annotations

import importlib.util
import io
import logging
import pickle
import re
import sys
import traceback
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from zoo.errors import BadArgumentError, close_match, quoted, refusal
from zoo.files.writing import set_aside, write_file
from zoo.release.checkpoint import check_checkpoint

log = logging.getLogger("zoo.training")

OWN_MODELS = "--import MODULE (repeatable) first imports a module that registers your own models."


class Parser(LightningArgumentParser):
    """Names the close match of a wrong key, which jsonargparse does not."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with status 2, the message and the close match."""
        # "module has no attribute" names a class that does not exist, "object has no attribute" is Python's own.
        pattern = r"(?:(?:[Oo]ption|[Kk]ey|(?<!object has no )attribute) '|unrecognized arguments: --)([\w.]+)"
        wrong = re.search(pattern, message)
        if wrong:
            classes = re.findall(r"class_path '([\w.]+)'", message)
            names = _arguments(classes) if classes else _keys(self)
            match = close_match(wrong[1], names) or (f" is not an argument of {classes[0]}" if classes else "")
            message = f"'{wrong[1]}'{match}\n{message}"
        super().error(re.sub(r'"([^"\n]*)"', lambda part: quoted(part[1]), message), ex)


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that replace the last ones whole, also where the temporary folder lies on another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint to a file; one in remote storage as Lightning does."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        torch.save(checkpoint, stream := io.BytesIO())
        write_file(Path(path), stream.getbuffer())


class ZooCLI(LightningCLI):
    """LightningCLI with a CSV logger, TensorBoard when it is installed, and checkpoints read without pickle."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As Lightning's; the words are kept, for the name of the recipe."""
        self._words: list[str] = list(args)
        super().parse_arguments(parser, args)

    def before_fit(self) -> None:
        """Move the checkpoints of an earlier run aside, unless it is that run that goes on."""
        if self.trainer.fast_dev_run or not self.trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        resumed = str(self.config.fit.ckpt_path or "")
        for callback in self.trainer.checkpoint_callbacks:
            folder = Path(getattr(callback, "dirpath", None) or "")
            goes_on = resumed in ("best", "last", "hpc") or (resumed and Path(resumed).resolve().parent == folder)
            if folder.name and not goes_on and any(folder.glob("*.ckpt")):
                moved = set_aside(folder, "*.ckpt")
                log.warning("%s: the checkpoints of an earlier run were moved to %s", folder, moved)

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone: Lightning would merge a checkpoint's hyperparameters over the recipe's."""

    def before_instantiate_classes(self) -> None:
        """Refuse pickles in checkpoints, and let the card know which recipe this was."""
        config = self.config[self.subcommand]
        path = Path(config.get("ckpt_path") or "")
        if path.is_file():  # "best" and "last" are words of Lightning's
            check_checkpoint(path)
        if "weights_only" in config and config.weights_only is None:
            config.weights_only = True
        steps = config.trainer.accumulate_grad_batches
        if steps < 1:  # Lightning takes it, and divides by it
            raise BadArgumentError(f"--trainer.accumulate_grad_batches is at least 1, got {steps}")
        arguments = config.model.init_args
        if "recipe" in arguments and not arguments.recipe:
            arguments.recipe = _recipe(self._words)

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        """Add the default loggers, in `runs/RECIPE/version_N`, unless the recipe names loggers."""
        config = self.config[self.subcommand]
        if config.trainer.logger is None and not config.trainer.fast_dev_run:
            folder = Path(config.trainer.default_root_dir or "runs")
            name = config.model.init_args.get("recipe") or "model"
            csv = CSVLogger(folder, name=name, flush_logs_every_n_steps=10)  # short runs show up too
            kwargs["logger"] = [csv]
            if importlib.util.find_spec("tensorboard"):
                kwargs["logger"].append(TensorBoardLogger(folder, name=name, version=f"version_{csv.version}"))
        kwargs["plugins"] = [*(config.trainer.plugins or ()), WholeCheckpoints()]
        return super().instantiate_trainer(**kwargs)


class RecipeCheck(ZooCLI):
    """Binds every class and argument of a recipe, and stops there."""

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def run(args: list[str], kind: type[ZooCLI] = ZooCLI) -> None:
    """Run `fit`, `validate`, `test` or `predict` with its arguments, as `lightning fit --config X.yaml` does.

    `kind` may change what is done with the trainer. Exits with status 2 for a wrong argument and 1 for what the zoo
    refuses (message on standard error).
    """
    logging.getLogger("lightning.pytorch").addFilter(_no_advertising)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_advertising)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # not needed: images are in memory
    warnings.filterwarnings("ignore", message=".*args. parameter is intended to run from within Python.*")
    warnings.filterwarnings("ignore", message=".*recommended to use .*sync_dist=True.*")  # all processes log the same
    warnings.filterwarnings("ignore", message=".*isinstance.treespec.*")  # torch 2.13's own deprecation
    try:
        _cli(kind, args)
    except pickle.UnpicklingError:
        sys.exit(
            "zoo: --ckpt_path is a pickle with more than tensors and plain data in it, which could run code; refused"
        )
    except Exception as problem:
        message = refusal(problem) or _misconfigured(problem)  # jsonargparse wraps what a constructor raises
        if message is None:
            raise
        sys.exit(f"zoo: {message}")


def _misconfigured(problem: Exception) -> str | None:
    """What Lightning says of a configuration that cannot work, such as a figure to monitor that is never logged."""
    message = str(problem)
    known = isinstance(problem, (MisconfigurationException, FileNotFoundError))  # of a checkpoint that is not there
    known |= isinstance(problem, (ValueError, TypeError)) and _raised_in(problem).startswith(_OF_ARGUMENTS)
    if known or message.startswith("Early stopping conditioned on metric"):
        ranked = "auroc" in message or "auprc" in message
        return message + (" No ranking is logged where the rows have labels of one class only." if ranked else "")
    return None


#: Where Lightning refuses a strategy, an accelerator or a number of devices, by a plain ValueError or TypeError.
_OF_ARGUMENTS = (
    "lightning.pytorch.trainer.connectors.",
    "lightning.pytorch.accelerators.",
    "lightning.fabric.accelerators.",
)


def _raised_in(problem: Exception) -> str:
    """The module that raised it."""
    names = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(problem.__traceback__)]
    return names[-1] if names else ""


def check(recipe: Path) -> dict[str, str]:
    """Bind every class and argument of a recipe without building or running anything.

    Exits with status 2 and the close match on the first that does not bind. Returns the classes that were named.
    """
    cli = _cli(RecipeCheck, ["fit", "--config", str(recipe)])
    config = cli.config["fit"]
    return {group: config[group].class_path for group in ("model", "data") if config.get(group) is not None}


def _cli(kind: type[ZooCLI], args: list[str]) -> ZooCLI:
    names = ZooCLI.subcommands()
    return kind(
        model_class=lightning.LightningModule,
        datamodule_class=lightning.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        parser_class=Parser,
        # omegaconf+ resolves ${...} after the command line; plain omegaconf would resolve before it.
        parser_kwargs={"parser_mode": "omegaconf+", "prog": "zoo"}
        | {name: {"epilog": f"example: zoo {name} --config quickstart. {OWN_MODELS}"} for name in names},
        # Our checkpoints carry the card, from which the class follows; plain hyperparameters suffice.
        load_from_checkpoint_support=False,
        args=args,  # sys.argv stays as it is: with several devices Lightning starts it again for each
    )


def _recipe(args: list[str]) -> str:
    """The name of the first --config. The parsed configuration forgets it where the recipe has a ${...}."""
    for option, following in zip(args, [*args[1:], ""], strict=True):
        name, _, value = option.partition("=")
        if name in ("-c", "--config"):
            return Path(value or following).stem
    return ""


def _keys(parser: LightningArgumentParser) -> set[str]:
    """The keys of the parser and its subcommands."""
    parsers = [parser]
    for action in parser._actions:
        parsers += action.choices.values() if isinstance(action.choices, dict) else []
    return {action.dest for known in parsers for action in known._actions}


def _arguments(classes: Iterable[str]) -> set[str]:
    """The arguments of classes by their paths; for a class that does not exist, the names in its module."""
    names: set[str] = set()
    for path in classes:
        module, _, name = path.rpartition(".")
        try:
            home = importlib.import_module(module)
        except ImportError:
            continue
        named = getattr(home, name, None)
        owners = named.__mro__[:-1] if isinstance(named, type) else ()  # a class may pass arguments to its base
        names |= {one for owner in owners for one in getattr(vars(owner).get("__init__"), "__annotations__", ())}
        names |= set() if named else set(getattr(home, "__all__", vars(home)))
    return names - {"return", "kwargs"}


def _no_advertising(record: logging.LogRecord) -> bool:
    return not any(word in record.getMessage().lower() for word in ("litlogger", "litmodels", "lightning.ai"))
