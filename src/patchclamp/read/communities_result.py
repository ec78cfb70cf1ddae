"""What the reading `communities` gives: matrices, communities, roles, tests; rows, charts and files of them.

`patchclamp.reading/1`: names, labels and tests as JSON, all matrices in the safetensors file beside it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.measure.bootstrap import percentile_interval, resampled_sums
from patchclamp.read import communities_view as view
from patchclamp.read.files import load_reading, save_reading
from patchclamp.read.networks import Float, Projections, centralities
from patchclamp.read.node_roles import role_correlations
from patchclamp.read.partitions import Partition
from patchclamp.read.pruning_importance import PruningResponse

KIND = "communities"


@dataclass(frozen=True, eq=False)
class Communities:
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

    def summary(self) -> dict[str, Any]:
        """The result in plain data, without matrices and rows per node."""
        return {
            "model": {key: self.response.model.get(key) for key in ("name", "fingerprint")},
            "modules": len(self.modules),
            "datasets": len(self.datasets),
            "skills": len(self.skills),
            "communities": self.community_rows(),
            "skill_communities": self.skill_members,
            "modularity": self.partition.modularity,
            "stability": self.partition.stability,
            "tests": {name: dict(test) for name, test in self.tests.items()},
            "alignment": {name: dict(found) for name, found in self.alignment.items()},
            "contrast": dict(self.contrast),
            "statistics": dict(self.statistics),
            "resolutions": [dict(row) for row in self.resolutions],
            "notes": list(self.notes),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the summary, every module and skill, the most central modules and correlations of roles."""
        return {
            **self.summary(),
            "rows": self.rows(),
            "skill_rows": self.skill_rows(),
            "central": centralities(self.projections.modules, self.modules),
            "roles": role_correlations(self.participation, self.z, self.partition.labels),
            "provenance": dict(self.provenance),
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the JSON file and, beside it, the matrices; returns the path."""
        body = {
            **self.summary(),
            "names": {"modules": self.modules, "datasets": self.datasets, "skills": self.skills},
            "layers": self.response.layers,
            "blocks": self.response.blocks,
            "ratios": self.response.ratios,
            "categories": dict(self.categories),
            "model": dict(self.response.model),
            "parameters": dict(self.response.parameters),
            "matched": [[dict(row) for row in rows] for rows in self.matched],
            "partitions": {
                name: {"modularity": one.modularity, "stability": one.stability, "resolution": one.resolution}
                for name, one in (("modules", self.partition), ("skills", self.skill_partition))
            },
        }
        return save_reading(path, KIND, body, provenance=self.provenance, arrays=self._arrays())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Communities:
        """What `save` wrote. InputError for a missing file, DamagedError for one that is altered or another kind."""
        data, arrays = load_reading(path, KIND)
        try:
            return _loaded(data, arrays)
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as problem:
            raise DamagedError(f"{path} is not a complete reading of communities: {problem!r}") from problem

    def _arrays(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "kept": self.response.kept, "saliency": self.response.saliency, "plain": self.response.plain,
            "pruned": self.response.pruned, "datasets_skills": self.datasets_skills,
            "datasets_modules": self.datasets_modules, "participation": self.participation, "z": self.z,
            "content": self.content, "skills_modules": self.projections.skills_modules,
            "module_network": self.projections.modules, "skill_network": self.projections.skills,
        }  # fmt: skip
        for name, one in (("modules", self.partition), ("skills", self.skill_partition)):
            found |= {f"{name}_labels": one.labels, f"{name}_agreement": one.agreement, f"{name}_runs": one.runs}
        return found

    def chart(self, kind: str = "network") -> Any:
        """An altair chart: "network" (modules as nodes), "skills" (skills x modules), "importance" (datasets x modules)."""
        return view.chart(self, kind)

    def __repr__(self) -> str:
        return view.line(self)

    def __rich__(self) -> Any:
        return view.table(self)

    def _repr_html_(self) -> str:
        return view.html(self)


def _loaded(data: Mapping[str, Any], arrays: Mapping[str, Any]) -> Communities:
    names = {key: tuple(value) for key, value in data["names"].items()}
    response = PruningResponse(
        names["modules"], tuple(data["layers"]), tuple(data["blocks"]), names["datasets"], tuple(data["ratios"]),
        arrays["kept"], arrays["saliency"], arrays["plain"], arrays["pruned"], data["model"], data["parameters"],
    )  # fmt: skip
    if response.saliency.shape[1:] != (len(names["datasets"]), len(names["modules"])):
        raise ValueError("matrices and names don't fit")
    parts = {
        name: Partition(
            arrays[f"{name}_labels"], kept["modularity"], kept["stability"], arrays[f"{name}_agreement"],
            arrays[f"{name}_runs"], kept["resolution"],
        )
        for name, kept in data["partitions"].items()
    }  # fmt: skip
    projections = Projections(arrays["skills_modules"], arrays["module_network"], arrays["skill_network"])
    return Communities(
        response, names["skills"], data["categories"], arrays["datasets_skills"], arrays["datasets_modules"], projections,
        parts["modules"], parts["skills"], arrays["participation"], arrays["z"], arrays["content"], data["matched"],
        data["tests"], data["alignment"], data["contrast"], data["statistics"], data["resolutions"],
        tuple(data["notes"]), data["provenance"],
    )  # fmt: skip
