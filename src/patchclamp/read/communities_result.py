"""What the reading `communities` gives: matrices, communities, roles, tests; rows, charts and files of them.

`patchclamp.reading/1`: names, labels and tests as JSON, all matrices in the safetensors file beside it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchclamp.core.errors import DamagedError
from patchclamp.read import communities_view as view
from patchclamp.read.communities_fields import CommunitiesFields
from patchclamp.read.files import load_reading, save_reading
from patchclamp.read.networks import Projections, centralities
from patchclamp.read.node_roles import role_correlations
from patchclamp.read.partitions import Partition
from patchclamp.read.pruning_importance import PruningResponse

KIND = "communities"


@dataclass(frozen=True, eq=False, repr=False)
class Communities(CommunitiesFields):
    """Communities of weight modules and of skills, to be saved, drawn and shown; `CommunitiesFields` says what they hold."""

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
