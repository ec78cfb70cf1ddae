"""Circuits: sets of heads, MLPs or edges, stage by stage; saved, compared, and overlapped against what chance would share."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.core.files import read_json, write_json
from patchclamp.models.units import UnitSet, describe, layouts_of

FORMAT = "patchclamp.circuit/1"
FRACTIONS = (0.01, 0.02, 0.05, 0.1)


@dataclass(frozen=True, eq=False)
class Circuit:
    """Members of a circuit: edges ("head.0.1->head.2.0.q") or nodes ("head.2.0", "mlp.3"), not both.

    stages: name -> members, in the order in which they were found; a circuit without stages has one, called "all". scores:
    member -> score (percent of the flip), for weighted overlap. total: how many members the model has in all, which the null
    of an overlap draws from.
    """

    stages: Mapping[str, tuple[str, ...]]
    scores: Mapping[str, float] = field(default_factory=dict)
    total: int = 0
    model: Mapping[str, Any] = field(default_factory=dict)
    name: str = "circuit"

    def __post_init__(self) -> None:
        stages = {str(stage): tuple(dict.fromkeys(map(str, members))) for stage, members in self.stages.items()}
        object.__setattr__(self, "stages", stages)
        kinds = {"->" in member for member in self.members}
        if len(kinds) > 1:
            raise InputError(f"the circuit {self.name!r} mixes edges and nodes; give one or the other")
        if self.total < len(self.members):
            raise InputError(
                f"the circuit {self.name!r} has {len(self.members)} members, but the model only {self.total}"
            )
        if unknown := set(self.scores) - set(self.members):
            raise InputError(f"{min(unknown)!r} has a score but is no member of the circuit {self.name!r}")

    @classmethod
    def of_edges(
        cls, edges: Mapping[str, float] | Iterable[str], *, model: Any, total: int, name: str = "circuit"
    ) -> Circuit:
        """A circuit of edges "sender->receiver", with scores if a mapping is given. total: edges that the model has."""
        scores = dict(edges) if isinstance(edges, Mapping) else {}
        return cls({"all": tuple(edges)}, scores, total, _identity(model), name)

    @classmethod
    def of_heads(
        cls,
        heads: UnitSet | Iterable[str] | Mapping[str, UnitSet | Iterable[str]],
        *,
        model: Any = None,
        total: int | None = None,
        name: str = "circuit",
    ) -> Circuit:
        """A circuit of heads (and MLPs), or stage -> heads; a set's scores are kept (the largest of several).

        model: a LanguageModel or identity, not needed beside a UnitSet. total: by default the model's heads, and its MLPs where
        the circuit holds any.
        """
        given = heads if isinstance(heads, Mapping) else {"all": heads}
        stages: dict[str, tuple[str, ...]] = {}
        scores: dict[str, float] = {}
        identity = {} if model is None else _identity(model)
        for stage, members in given.items():
            names = tuple(members.names() if isinstance(members, UnitSet) else map(str, members))
            stages[str(stage)] = names
            if isinstance(members, UnitSet):
                identity = identity or dict(members.model)
                values = members.score_list() or []
                for member, value in zip(names, values, strict=False):
                    scores[member] = max(value, scores.get(member, 0.0), key=abs)
        if total is None:
            layouts = layouts_of(identity)
            mlps = any(member.startswith("mlp") for members in stages.values() for member in members)
            total = layouts["head"].total + (sum(map(bool, layouts["mlp_out"].widths)) if mlps else 0)
        return cls(stages, scores, total, identity, name)

    @property
    def members(self) -> tuple[str, ...]:
        """All members, each once, in the order of the stages."""
        return tuple(dict.fromkeys(member for members in self.stages.values() for member in members))

    @property
    def is_edges(self) -> bool:
        return any("->" in member for member in self.members)

    @property
    def edges(self) -> list[tuple[str, str]]:
        """Edges as (sender, receiver); InputError for a circuit of nodes."""
        if not self.is_edges and self.members:
            raise InputError(f"{self.name!r} is a circuit of nodes; it has no edges")
        pairs = (member.split("->") for member in self.members)
        return [(sender, receiver) for sender, receiver in pairs]

    @property
    def nodes(self) -> tuple[str, ...]:
        """Nodes: its members, or the heads and MLPs that its edges join (embedding and logits left out).

        Keys and values that several heads read stand for all of these heads.
        """
        if not self.is_edges:
            return self.members
        found = (name for edge in self.edges for end in edge for name in self._at(end))
        return tuple(dict.fromkeys(name for name in found if name not in ("embed", "logits")))

    def _at(self, end: str) -> list[str]:
        """The nodes at one end of an edge."""
        kind, *rest = end.split(".")
        if kind != "head" or len(rest) < 3 or rest[2] == "q":
            return [".".join(end.split(".")[:3])]
        layer, group, site = int(rest[0]), int(rest[1]), rest[2]
        layouts = layouts_of(self.model) if self.model else {}
        if site not in layouts:
            return [f"head.{layer}.{group}"]
        heads = layouts["head"].widths[layer]
        each = layouts["q" if site == "k" else "attn"].widths[layer] // heads
        shared = heads // (layouts[site].widths[layer] // each)
        return [f"head.{layer}.{head}" for head in range(group * shared, (group + 1) * shared)]

    def __len__(self) -> int:
        return len(self.members)

    def __contains__(self, member: object) -> bool:
        return member in self.members

    def without(self, members: Iterable[str]) -> Circuit:
        """The circuit with some members left out."""
        gone = set(members)
        stages = {stage: tuple(m for m in kept if m not in gone) for stage, kept in self.stages.items()}
        return Circuit(
            stages, {m: s for m, s in self.scores.items() if m not in gone}, self.total, self.model, self.name
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write JSON, whole or not at all."""
        return write_json(path, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "format": FORMAT, "name": self.name, "model": dict(self.model), "total": self.total,
            "stages": {stage: list(members) for stage, members in self.stages.items()}, "scores": dict(self.scores),
        }  # fmt: skip

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Circuit:
        """Read what `save` wrote; DamagedError for anything else."""
        data = read_json(path, format=FORMAT)
        try:
            stages = {stage: tuple(members) for stage, members in data["stages"].items()}
            scores = {member: math.nan if value is None else float(value) for member, value in data["scores"].items()}
            return cls(stages, scores, int(data["total"]), data["model"], data["name"])
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise DamagedError(f"{path} is no complete {FORMAT} file: {problem}") from problem

    def __repr__(self) -> str:
        what = "edges" if self.is_edges else "nodes"
        stages = "" if len(self.stages) == 1 else "; " + ", ".join(f"{s} {len(m)}" for s, m in self.stages.items())
        whose = f" of {describe(self.model)}" if self.model else ""
        return f"Circuit({self.name}: {len(self)} of {self.total} {what}{whose}{stages})"


@dataclass(frozen=True)
class Overlap:
    """What two circuits share.

    shared: members of both. share: |A and B| / |A|. jaccard: |A and B| / |A or B|. weighted: sum over members of the smaller of
    the two |scores|, each circuit's scaled to sum to 1 (NaN without scores). expected, p: mean of the hypergeometric null, where
    two sets of these sizes are drawn from `total` members, and its P(>= shared). p_permuted: share of permutations, members
    moved within their layers, that share at least as many (counting the observed one); NaN if none were made.
    """

    shared: tuple[str, ...]
    n_first: int
    n_second: int
    total: int
    share: float
    jaccard: float
    weighted: float
    expected: float
    p: float
    p_permuted: float = math.nan
    permuted_mean: float = math.nan


def hypergeometric(shared: int, n_first: int, n_second: int, total: int) -> tuple[float, float]:
    """Mean number of shared members of two random sets, and P(at least `shared`). InputError for sizes above the total."""
    from scipy.stats import hypergeom

    if not 0 <= max(n_first, n_second) <= total or min(n_first, n_second, shared) < 0:
        raise InputError(f"sets of {n_first} and {n_second} among {total} given; sizes lie between 0 and the total")
    if not total:
        return 0.0, 1.0
    return n_first * n_second / total, float(hypergeom.sf(shared - 1, total, n_first, n_second))


def overlap(first: Circuit, second: Circuit, *, permutations: int = 0, seed: int = 0) -> Overlap:
    """What two circuits of one model share, against chance.

    permutations: how many times the first circuit's nodes are moved to random places in their own layers: a null that keeps
    which layers a circuit uses. MismatchError for circuits of two models, InputError for edges beside nodes.
    """
    if first.model and second.model and first.model.get("fingerprint") != second.model.get("fingerprint"):
        raise MismatchError(f"{first.name!r} is a circuit of {describe(first.model)}, {second.name!r} of another model")
    if first.total != second.total or (first.members and second.members and first.is_edges != second.is_edges):
        raise InputError(
            f"{first.name!r} has members out of {first.total}, {second.name!r} out of {second.total}; only circuits over the "
            "same members overlap: both edges, or both heads with or without MLPs"
        )
    a, b = set(first.members), set(second.members)
    shared = tuple(member for member in first.members if member in b)
    expected, p = hypergeometric(len(shared), len(a), len(b), first.total)
    p_permuted, mean = math.nan, math.nan
    if permutations:
        drawn = _permuted(first, b, permutations, seed)
        p_permuted, mean = float(((drawn >= len(shared)).sum() + 1) / (permutations + 1)), float(drawn.mean())
    return Overlap(
        shared, len(a), len(b), first.total, len(shared) / len(a) if a else math.nan,
        len(shared) / len(a | b) if a | b else math.nan, _weighted(first, second), expected, p, p_permuted, mean,
    )  # fmt: skip


def _weighted(first: Circuit, second: Circuit) -> float:
    sums = [sum(abs(value) for value in circuit.scores.values()) for circuit in (first, second)]
    if not all(math.isfinite(total) and total > 0 for total in sums):
        return math.nan
    both = set(first.scores) & set(second.scores)
    return float(sum(min(abs(first.scores[m]) / sums[0], abs(second.scores[m]) / sums[1]) for m in both))


def _permuted(first: Circuit, other: set[str], permutations: int, seed: int) -> np.ndarray[Any, Any]:
    """(permutations,) members shared when the first circuit's nodes move within their layers."""
    if first.is_edges or not first.model:
        raise InputError("permutations move nodes within their layers: give circuits of heads that know their model")
    rng = np.random.default_rng(seed)
    widths = layouts_of(first.model)["head"].widths
    per_layer: dict[tuple[str, int], int] = {}
    for member in first.members:
        key = (member.split(".")[0], int(member.split(".")[1]))
        per_layer[key] = per_layer.get(key, 0) + 1
    found = np.zeros(permutations, dtype=np.int64)
    for (kind, layer), count in per_layer.items():
        if kind != "head":  # one MLP a layer: it stays where it is
            found += f"mlp.{layer}" in other
            continue
        marked = sum(f"head.{layer}.{head}" in other for head in range(widths[layer]))
        found += rng.hypergeometric(marked, widths[layer] - marked, count, size=permutations)
    return found


def top_members(scores: Mapping[str, float], fraction: float) -> dict[str, float]:
    """The given share of members (rounded up) with the highest |score|; NaN comes last, ties go to the first."""
    if not 0 < fraction <= 1:
        raise InputError(f"fraction={fraction}; a share in (0, 1] is needed")
    names = list(scores)
    values = np.nan_to_num(np.abs(np.array([scores[name] for name in names], dtype=np.float64)), nan=-1.0)
    count = math.ceil(round(fraction * len(names), 9))
    return {names[i]: float(scores[names[i]]) for i in np.argsort(-values, kind="stable")[:count].tolist()}


def top_circuit(
    stages: Mapping[str, Mapping[str, float]], fraction: float, *, model: Any = None, name: str = "circuit"
) -> Circuit:
    """The union over stages of the top fraction of each stage's members; the largest |score| of several is kept.

    stages: stage -> (member -> score), the same members in every stage: what a path-patching stage gives for all heads.
    """
    sizes = {len(scores) for scores in stages.values()}
    if len(sizes) != 1:
        raise InputError(f"stages score {sorted(sizes)} members; every stage must score the same ones, at least one")
    chosen = {stage: top_members(scores, fraction) for stage, scores in stages.items()}
    merged: dict[str, float] = {}
    for scores in chosen.values():
        for member, value in scores.items():
            merged[member] = max(value, merged.get(member, 0.0), key=abs)
    identity = {} if model is None else _identity(model)
    return Circuit({stage: tuple(scores) for stage, scores in chosen.items()}, merged, sizes.pop(), identity, name)


def overlap_sweep(
    first: Mapping[str, Mapping[str, float]],
    second: Mapping[str, Mapping[str, float]],
    fractions: Sequence[float] = FRACTIONS,
    *,
    model: Any = None,
    permutations: int = 0,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One row per fraction: the overlap of the circuits that the top fraction of every stage makes.

    first, second: stage -> (member -> score). Rows: fraction, n_first, n_second, shared, share, jaccard, weighted, expected, p,
    p_permuted. An overlap at one threshold alone says little.
    """
    rows = []
    for fraction in fractions:
        circuits = [top_circuit(stages, fraction, model=model) for stages in (first, second)]
        found = overlap(*circuits, permutations=permutations, seed=seed)
        rows.append(
            {
                "fraction": fraction, "n_first": found.n_first, "n_second": found.n_second, "shared": len(found.shared),
                "share": found.share, "jaccard": found.jaccard, "weighted": found.weighted, "expected": found.expected,
                "p": found.p, "p_permuted": found.p_permuted,
            }
        )  # fmt: skip
    return rows


def _identity(model: Any) -> dict[str, Any]:
    return dict(model) if isinstance(model, Mapping) else dict(model.identity)
