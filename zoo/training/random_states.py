"""The states of the streams of random numbers, kept in checkpoints, so that a resumed run draws on."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

#: Where a checkpoint keeps the states, those of each process.
RANDOM_KEY = "safety_zoo_random"


def random_states() -> dict[str, Any]:
    """The state of each stream of random numbers, in types that a checkpoint without pickle may hold."""
    name, keys, *rest = np.random.get_state()
    states = {"torch": torch.get_rng_state(), "numpy": [name, torch.tensor(keys), *rest], "python": random.getstate()}
    return states | ({"cuda": torch.cuda.get_rng_state_all()} if torch.cuda.is_available() else {})


def restore_random_states(states: dict[str, Any]) -> None:
    """Go on with the streams of `random_states`; with those of GPUs where there are as many as there were."""
    torch.set_rng_state(states["torch"].cpu())
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.cpu().numpy(), *rest))
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    if len(states.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states.get("cuda", ())])
