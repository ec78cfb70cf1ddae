"""Random scores: what any selection must beat."""

from __future__ import annotations

import numpy as np

from patchclamp.train.samples import Samples
from patchclamp.train.selections import Scores, selections


@selections.add("random")
def random(pool: Samples, *, seed: int = 0) -> Scores:
    """Random numbers by seed; the target plays no part.

    Example: `patchclamp select random --pool all=pool.jsonl --budget 0.05`.
    """
    return Scores(np.random.default_rng(seed).random(sum(1 for _ in pool)))
