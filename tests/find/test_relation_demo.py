"""On the demo model: masking the units found for a relation hurts facts about unseen subjects, random units don't."""

from __future__ import annotations

import numpy as np
import pytest

from patchclamp.data.task_sources import generated
from patchclamp.find.relation import relation
from patchclamp.find.relation_prompts import check_leakage, split_subjects
from patchclamp.measure import effect
from patchclamp.models.load import load
from patchclamp.record import record


@pytest.mark.slow
def test_masking_found_units_hurts_their_own_relation_on_unseen_subjects() -> None:
    model = load("demo")
    task = generated("facts", languages=("en",), relations=("capital", "currency", "language"))
    detection, tested = split_subjects(task, subject="country", evaluation=8)
    check_leakage(detection, tested, subject="country")
    sites = ("gate", "up", "mlp_out")
    recording = record(model, detection.corpus(by="relation"), sites=sites, statistics=["pooled"], quiet=True)
    found = relation(recording, pool="last", shuffles=5)
    for entry in found.null["labels"].values():
        assert entry["best"]["observed"] > entry["best"]["max"]
    effects = effect(
        model, found.select(share=0.1), on=tested.by("relation"), how="loss", controls=2, permutations=999, quiet=True
    )
    matrix = effects.matrix("effect")
    own, others = np.diag(matrix), matrix[~np.eye(len(matrix), dtype=bool)]
    random = [effects.row(name, name)["control_mean"] for name in effects.sets]
    assert own.mean() > 3 * max(np.mean(random), others.mean(), 0.01)
