"""Every result says what made it."""

from __future__ import annotations

import json

import numpy
import torch

from patchclamp.core.provenance import provenance


def test_provenance_names_call_arguments_inputs_seed_and_versions() -> None:
    made = provenance("find.language", arguments={"rate": 0.01}, inputs={"recording": {"fingerprint": "ab"}}, seed=3)
    assert (made["call"], made["arguments"], made["seed"]) == ("find.language", {"rate": 0.01}, 3)
    assert made["versions"]["torch"] == torch.__version__
    assert made["versions"]["numpy"] == numpy.__version__
    assert json.loads(json.dumps(made)) == made
