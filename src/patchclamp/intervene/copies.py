"""A model's copy to change for good, when nothing of ours is active on the model."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from patchclamp.core.errors import InputError, ModelError
from patchclamp.models.hooks import in_use

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel


def copied(model: LanguageModel, verb: str) -> Any:
    """An independent copy of the `PreTrainedModel`, without our hooks. verb: what it is copied for ("edit", "fine-tune").

    transformers and accelerate leave hooks of their own on some models; these are copied. Raises InputError while a clamp or
    an observer is active, ModelError for a model spread over devices.
    """
    spread = getattr(model.hf, "hf_device_map", None)
    if spread and len(set(spread.values())) > 1:
        raise ModelError(
            f"a model spread by device_map can't be copied to {verb} it; load it on one device (the CPU will do)"
        )
    if in_use(model):
        raise InputError(
            f"the model is observed or changed now; leave every clamp, change and observe block to {verb} it"
        )
    return copy.deepcopy(model.hf)
