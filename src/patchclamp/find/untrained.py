"""The same architecture before any training: what a finder names there owes nothing to learning."""

from __future__ import annotations

import copy

import torch

from patchclamp.core.errors import ModelError
from patchclamp.models.load import LanguageModel, load


def untrained(model: LanguageModel, *, seed: int = 0) -> LanguageModel:
    """A model of the same configuration with fresh weights as its own class initialises them; same tokenizer and device.

    The caller's random state is left as it was. Needs memory for a second model. ModelError for a class that can't be built
    from its configuration.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            hf = type(model.hf)(copy.deepcopy(model.hf.config))
        except (TypeError, ValueError) as problem:
            raise ModelError(
                f"a {type(model.hf).__name__} can't be built from its configuration: {problem}"
            ) from problem
    made = load(hf, tokenizer=model.tokenizer, dtype=model.dtype, device=model.device, check=False)
    made.name = f"{model.name}, untrained"
    return made
