"""Networks whose communities are known: groups of modules, each needed by its own datasets and skills."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def planted_blocks(
    *, groups: int = 4, each: int = 10, skills: int = 2, noise: float = 0.05, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """datasets x skills, datasets x modules, the group of every module, the group of every skill.

    Every dataset asks for one skill of its group and needs the modules of its group at weight 1, others at up to `noise`.
    """
    rng = np.random.default_rng(seed)
    module_group, skill_group = np.repeat(np.arange(groups), each), np.repeat(np.arange(groups), skills)
    dataset_group = np.repeat(np.arange(groups), each)
    b_dm = (dataset_group[:, None] == module_group[None]).astype(float) + rng.random((groups * each,) * 2) * noise
    b_ds = np.zeros((groups * each, groups * skills))
    b_ds[np.arange(groups * each), dataset_group * skills + np.arange(groups * each) % skills] = 1.0
    return b_ds, b_dm, module_group, skill_group
