"""Features of features: factorise the features of a factorisation again, and see which of them join.

Shafran, Geiger, Geva 2025 (arXiv 2506.10920), recursive SNMF: level t factorises the feature matrix of level t - 1 with
fewer features, so that a feature of a high level is a non-negative mixture of features below it. Neurons that all
members of a family share are its core, those of one member alone are exclusive to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.read.snmf import factorise
from patchclamp.read.snmf_factors import Factors
from patchclamp.record.activations import Activations

SHARE, CHILDREN = (
    0.15,
    4,
)  # of the largest coefficient, and at most so many: what counts as a child in the paper's trees


@dataclass(frozen=True)
class Node:
    """A feature in a tree: level and number, coefficient in its parent (1 for the root), and its parts one level down."""

    level: int
    feature: int
    coefficient: float
    children: tuple[Node, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "level": self.level, "feature": self.feature, "coefficient": self.coefficient,
            "children": [child.to_dict() for child in self.children],
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Hierarchy:
    """levels: factorisations, the first of tokens, each further one of the features below it."""

    levels: tuple[Factors, ...]

    def strengths(self, level: int) -> Tensor:
        """(tokens, features of the level) float32: how strong its features are on each token, G_0 G_1 ... G_level."""
        self._check(level)
        found = self.levels[0].strengths
        for factors in self.levels[1 : level + 1]:
            found = found @ factors.strengths.to(found.device)
        return found

    def tree(self, feature: int, level: int | None = None, *, share: float = SHARE, children: int = CHILDREN) -> Node:
        """What a feature is made of: its parts are features of the level below whose coefficient is at least `share` of the
        largest, at most `children` of them. A branch ends where a single part is left, as in the paper.
        """
        top = len(self.levels) - 1 if level is None else level
        self._check(top)
        if not 0 <= feature < self.levels[top].k:
            raise InputError(f"feature {feature} of level {top} asked for; it has 0 to {self.levels[top].k - 1}")
        if not 0 < share <= 1 or children < 1:
            raise InputError(
                f"share={share} and children={children} given; share lies in (0, 1], children is at least 1"
            )
        return self._node(top, feature, 1.0, share, children)

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per level: features, what they reproduce, neurons per feature, neurons shared by two features."""
        found = []
        for number, factors in enumerate(self.levels):
            shared = factors.sharing().double()
            own = shared.diagonal()
            pairs = factors.k * (factors.k - 1)
            found.append(
                {"level": number, "features": factors.k, "explained": factors.record.explained,
                 "neurons": float(own.mean()), "shared": float(shared.sum() - own.sum()) / pairs if pairs else None,
                 "dead": factors.record.dead}
            )  # fmt: skip
        return found

    def _node(self, level: int, feature: int, coefficient: float, share: float, most: int) -> Node:
        if level == 0:
            return Node(0, feature, coefficient)
        column = self.levels[level].strengths[:, feature]
        largest = float(column.max())
        order = column.argsort(descending=True, stable=True)[:most].tolist()
        parts = [j for j in order if largest > 0 and float(column[j]) >= share * largest]
        below = tuple(self._node(level - 1, j, float(column[j]), share, most) for j in parts) if len(parts) > 1 else ()
        return Node(level, feature, coefficient, below)

    def _check(self, level: int) -> None:
        if not 0 <= level < len(self.levels):
            raise InputError(f"level {level} asked for; this hierarchy has 0 to {len(self.levels) - 1}")


def hierarchy(base: Factors, ranks: Sequence[int], **arguments: Any) -> Hierarchy:
    """Factorise the features of `base` with ranks[0] features, those with ranks[1], and so on (400 -> 200 -> 100 -> 50).

    arguments: those of `factorise`; by default each level keeps as many neurons per feature as the base does. The joint
    fine-tuning of the reference is left out: it drops both constraints and the trees don't use it.
    Raises InputError for ranks that don't fall.
    """
    sizes = [base.k, *ranks]
    if not ranks or any(after >= before or after < 1 for before, after in itertools.pairwise(sizes)):
        raise InputError(
            f"ranks {list(ranks)} on {base.k} features given; each level needs fewer features than the one below"
        )
    arguments = {"sparsity": base.parameters["sparsity"], "seed": base.parameters.get("seed", 0), **arguments}
    levels = [base]
    for rank in ranks:
        below = levels[-1]
        rows = Activations.of_tensor(below.features, site=below.site, layer=below.layer, model=below.model)
        levels.append(factorise(rows, rank, **arguments))
    return Hierarchy(tuple(levels))


@dataclass(frozen=True)
class Family:
    """Neurons of some features: `core` of at least `common` of them, `exclusive` of one alone (feature -> neurons)."""

    features: tuple[int, ...]
    core: tuple[int, ...]
    exclusive: dict[int, tuple[int, ...]]


def family(factors: Factors, features: Sequence[int], *, common: float = 1.0) -> Family:
    """Which neurons some features share and which are one's own; common: share of the features that makes a core neuron."""
    chosen = tuple(dict.fromkeys(int(feature) for feature in features))
    if len(chosen) < 2 or not all(0 <= feature < factors.k for feature in chosen):
        raise InputError(f"features {list(features)} given; a family is two or more of 0 to {factors.k - 1}")
    if not 0 < common <= 1:
        raise InputError(f"common={common} given; it is a share of the features, in (0, 1]")
    used = factors.features[list(chosen)] != 0
    count = used.sum(0)
    core = (count >= max(2, common * len(chosen) - 1e-9)).nonzero().flatten().tolist()
    exclusive = {
        feature: tuple((row & (count == 1)).nonzero().flatten().tolist())
        for feature, row in zip(chosen, torch.unbind(used), strict=True)
    }
    return Family(chosen, tuple(core), exclusive)
