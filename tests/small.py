"""Small random models of a type; a test is skipped where an old transformers can't build one of it."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from patchclamp.core.errors import InputError
from patchclamp.models.tiny import tiny_model

KNOWN = (5, 23)  # from this version on every type of the tests can be built
INSTALLED = tuple(int(part) for part in transformers.__version__.split(".")[:2])


def small(model_type: str) -> Any:
    """`tiny_model`, or a skip that says why there is none with this transformers."""
    try:
        return tiny_model(model_type)
    except (AttributeError, InputError) as problem:
        if INSTALLED >= KNOWN:
            raise
        pytest.skip(f"transformers {transformers.__version__} can't build a small {model_type}: {problem}")
