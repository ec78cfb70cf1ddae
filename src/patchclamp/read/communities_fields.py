"""What communities of modules and skills are made of, and their rows; `communities_result.py` adds files and views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from patchclamp.core.errors import InputError
from patchclamp.measure.bootstrap import percentile_interval, resampled_sums
from patchclamp.read.networks import Float, Projections
from patchclamp.read.partitions import Partition
from patchclamp.read.pruning_importance import PruningResponse


@dataclass(frozen=True, eq=False)
class CommunitiesFields:
    """Communities of weight modules and of skills.

    response: what pruning left. datasets_skills (datasets, skills), datasets_modules (datasets, modules): the bipartite
    matrices as used. projections: skills x modules and the two networks. partition, skill_partition: communities.
    participation, z: (modules,) roles. content: (communities, skills) shares. matched: per community the datasets, best
    first. tests: "modules" and "skills", modularity beside nulls. alignment: communities of "skills" with categories, of
    modules with "layers" and "kinds". contrast: do communities differ in skills. categories: skill -> category.
    """

    response: PruningResponse
    skills: tuple[str, ...]
    categories: Mapping[str, str]
    datasets_skills: Float
    datasets_modules: Float
    projections: Projections
    partition: Partition
    skill_partition: Partition
    participation: Float
    z: Float
    content: Float
    matched: Sequence[Sequence[Mapping[str, Any]]]
    tests: Mapping[str, Mapping[str, Any]]
    alignment: Mapping[str, Mapping[str, Any]]
    contrast: Mapping[str, Any]
    statistics: Mapping[str, Any]
    resolutions: Sequence[Mapping[str, Any]]
    notes: tuple[str, ...]
    provenance: Mapping[str, Any]

    @property
    def modules(self) -> tuple[str, ...]:
        return self.response.modules

    @property
    def datasets(self) -> tuple[str, ...]:
        return self.response.datasets

    @property
    def members(self) -> list[list[str]]:
        """Module names of every community, largest first."""
        return self.partition.members(self.modules)

    @property
    def skill_members(self) -> list[list[str]]:
        """Skill names of every community of skills."""
        return self.skill_partition.members(self.skills)

    def ranked(self, skill: str, *, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> list[dict[str, Any]]:
        """The modules that a skill needs most: rows module, community, weight, low, high, highest weight first.

        weight: mean importance over datasets, weighted by how much each asks for the skill; low and high: bootstrap over
        datasets. A skill of one dataset has no interval (None). InputError for an unknown skill.
        """
        if skill not in self.skills:
            raise InputError(f"no skill is called {skill!r}; there are {', '.join(self.skills)}")
        asks = self.datasets_skills[:, self.skills.index(skill)]
        having = asks > 0
        columns = np.concatenate([asks[having, None], asks[having, None] * self.datasets_modules[having]], 1)
        sums = columns.sum(0)
        weight = sums[1:] / sums[0] if having.any() else np.zeros(len(self.modules))
        bounds: list[tuple[float | None, float | None]] = [(None, None)] * len(self.modules)
        if having.sum() > 1:
            drawn = resampled_sums(columns, resamples=resamples, seed=seed)
            each = drawn[:, 1:] / drawn[:, :1]
            bounds = [percentile_interval(each[:, at], level=level) for at in range(len(self.modules))]
        return [
            {"module": self.modules[at], "community": int(self.partition.labels[at]), "weight": float(weight[at]),
             "low": bounds[at][0], "high": bounds[at][1]}
            for at in np.argsort(-weight, kind="stable")
        ]  # fmt: skip

    def top_skills(self, community: int, k: int = 3) -> list[str]:
        """The skills with the largest share in a community of modules."""
        shares = self.content[community]
        return [self.skills[at] for at in np.argsort(-shares, kind="stable")[:k] if shares[at] > 0]

    def rows(self) -> list[dict[str, Any]]:
        """One row per module: layer, block, community, strength, participation, z, its strongest skill."""
        b_sm = self.projections.skills_modules
        return [
            {
                "module": name,
                "layer": self.response.layers[at],
                "block": self.response.blocks[at],
                "community": int(self.partition.labels[at]),
                "strength": float(self.projections.modules[at].sum()),
                "participation": float(self.participation[at]),
                "z": float(self.z[at]),
                "skill": self.skills[int(b_sm[:, at].argmax())] if b_sm[:, at].any() else None,
            }
            for at, name in enumerate(self.modules)
        ]

    def skill_rows(self) -> list[dict[str, Any]]:
        """One row per skill: category, community of skills, datasets that ask for it, the module that it needs most."""
        b_sm = self.projections.skills_modules
        return [
            {
                "skill": name,
                "category": self.categories[name],
                "community": int(self.skill_partition.labels[at]),
                "datasets": int((self.datasets_skills[:, at] > 0).sum()),
                "module": self.modules[int(b_sm[at].argmax())] if b_sm[at].any() else None,
            }
            for at, name in enumerate(self.skills)
        ]

    def community_rows(self) -> list[dict[str, Any]]:
        """One row per community of modules: size, layers, top skills, best-matched datasets."""
        rows = []
        for number, members in enumerate(self.members):
            layers = sorted({self.response.layers[self.modules.index(name)] for name in members})
            rows.append(
                {
                    "community": number,
                    "modules": len(members),
                    "layers": layers,
                    "skills": self.top_skills(number),
                    "datasets": [row["dataset"] for row in self.matched[number][:3]],
                }
            )
        return rows
