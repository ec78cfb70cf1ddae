"""Units and sets of units: names such as `mlp.12.345`, where they lie in flat arrays, set algebra, files.

A unit is one coordinate of a site in a layer. `Layout` maps units of one site to positions of a flat array
(layers one after another, so layers may differ in width); `UnitSet` is an immutable set of units, with optional
scores, tied to the model it belongs to.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.core.files import atomic_write, read_json, write_json

SITES = ("mlp", "gate", "up", "attn", "resid", "attn_out", "mlp_out", "embed", "head", "pre", "q", "k", "v")
SETS_FORMAT = "patchclamp.sets/1"
_NAME = re.compile(r"(?P<site>[A-Za-z][A-Za-z0-9_]*)\.(?P<layer>\d+)\.(?:e(?P<expert>\d+)\.)?(?P<index>\d+)")


@dataclass(frozen=True, order=True)
class Unit:
    """One coordinate of a site in a layer; `str(unit)` is its name and `Unit.parse` reads it back.

    index counts within the expert where there is one, else within the layer.
    """

    site: str
    layer: int
    index: int
    expert: int | None = None

    @classmethod
    def parse(cls, name: str) -> Unit:
        """Read `site.layer.index` or `site.layer.eEXPERT.index`; InputError otherwise."""
        match = _NAME.fullmatch(name.strip())
        if match is None:
            raise InputError(
                f"{name!r} is no unit name; write site.layer.index, such as mlp.12.345 (experts: mlp.12.e3.345)"
            )
        expert = None if match["expert"] is None else int(match["expert"])
        return cls(match["site"], int(match["layer"]), int(match["index"]), expert)

    def __str__(self) -> str:
        expert = "" if self.expert is None else f"e{self.expert}."
        return f"{self.site}.{self.layer}.{expert}{self.index}"


@dataclass(frozen=True)
class Layout:
    """Where the units of one site lie in a flat array of shape (total,).

    widths: units in each layer, experts included; 0 for a layer without the site. experts: experts in each layer
    (0 for a dense layer); expert e of a layer holds the units e*w .. (e+1)*w - 1 with w = width / experts.
    """

    site: str
    widths: tuple[int, ...]
    experts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.experts:
            object.__setattr__(self, "experts", (0,) * len(self.widths))
        if len(self.experts) != len(self.widths):
            raise InputError(f"{len(self.widths)} layers of {self.site} but experts for {len(self.experts)}")

    @functools.cached_property
    def offsets(self) -> tuple[int, ...]:
        """Flat position where each layer starts, and the total at the end."""
        return (0, *accumulate(self.widths))

    @property
    def n_layers(self) -> int:
        return len(self.widths)

    @property
    def total(self) -> int:
        return self.offsets[-1]

    def slice(self, layer: int) -> slice:
        """The flat positions of one layer."""
        self._check_layer(layer)
        return slice(self.offsets[layer], self.offsets[layer + 1])

    def split(self, flat: Any) -> list[Any]:
        """Cut an array (..., total) into one array (..., width) per layer."""
        return [flat[..., self.slice(layer)] for layer in range(self.n_layers)]

    def unit(self, position: int) -> Unit:
        """The unit at a flat position."""
        if not 0 <= position < self.total:
            raise InputError(f"position {position} asked for, but {self.site} has {self.total} units")
        layer = int(np.searchsorted(self.offsets, position, side="right")) - 1
        inner = position - self.offsets[layer]
        if not self.experts[layer]:
            return Unit(self.site, layer, inner)
        expert, index = divmod(inner, self.widths[layer] // self.experts[layer])
        return Unit(self.site, layer, index, expert)

    def position(self, unit: Unit) -> int:
        """The flat position of a unit; InputError if the model has no such unit."""
        if unit.site != self.site:
            raise InputError(f"{unit} is not a unit of site {self.site}")
        self._check_layer(unit.layer)
        width, experts = self.widths[unit.layer], self.experts[unit.layer]
        if bool(experts) != (unit.expert is not None):
            form = f"{self.site}.{unit.layer}.e0.{unit.index}" if experts else f"{self.site}.{unit.layer}.{unit.index}"
            raise InputError(
                f"{unit}: layer {unit.layer} has {experts or 'no'} experts; a name there looks like {form}"
            )
        inner = unit.index
        if experts and unit.expert is not None:
            if unit.expert >= experts:
                raise InputError(f"{unit}: layer {unit.layer} has experts 0-{experts - 1}")
            width //= experts
            inner += unit.expert * width
        if unit.index >= width:
            what = f"units 0-{width - 1}" if width else "no such units"
            raise InputError(f"{unit} asked for, but {self.site} of layer {unit.layer} has {what}")
        return self.offsets[unit.layer] + inner

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < self.n_layers:
            raise InputError(f"layer {layer} asked for, but the model has {self.n_layers} (0-{self.n_layers - 1})")

    def names(self, positions: NDArray[Any] | Sequence[int] | None = None) -> list[str]:
        """Names of the units at flat positions (all by default)."""
        chosen = np.arange(self.total) if positions is None else np.asarray(positions, dtype=np.int64)
        layers = np.searchsorted(self.offsets, chosen, side="right") - 1
        inner = chosen - np.asarray(self.offsets)[layers]
        names = []
        for layer, index in zip(layers.tolist(), inner.tolist(), strict=True):
            if self.experts[layer]:
                expert, index = divmod(index, self.widths[layer] // self.experts[layer])
                names.append(f"{self.site}.{layer}.e{expert}.{index}")
            else:
                names.append(f"{self.site}.{layer}.{index}")
        return names

    def to_dict(self) -> dict[str, Any]:
        return {"site": self.site, "widths": list(self.widths), "experts": list(self.experts)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Layout:
        return cls(data["site"], tuple(data["widths"]), tuple(data["experts"]))


@dataclass(frozen=True, eq=False)
class UnitSet:
    """A set of units of one model, kept in canonical order (site, layer, position), with optional scores.

    layouts: site -> Layout of the model the set belongs to. positions: site -> sorted flat positions, int64.
    scores: site -> float64 of the same lengths, or None. model: identity of the model (`LanguageModel.identity`).
    """

    layouts: Mapping[str, Layout]
    positions: Mapping[str, NDArray[np.int64]]
    scores: Mapping[str, NDArray[np.float64]] | None = None
    model: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: Any,
        units: Iterable[Unit | str],
        scores: Sequence[float] | None = None,
    ) -> UnitSet:
        """Build from unit names. model: a LanguageModel, or its `identity` mapping."""
        identity = _identity(model)
        layouts = layouts_of(identity)
        found = [unit if isinstance(unit, Unit) else Unit.parse(unit) for unit in units]
        if scores is not None and len(scores) != len(found):
            raise InputError(f"{len(found)} units but {len(scores)} scores")
        flat: dict[str, dict[int, float]] = {}
        for number, unit in enumerate(found):
            if unit.site not in layouts:
                raise InputError(f"{unit}: {_no_site(unit.site, layouts)}")
            value = 0.0 if scores is None else float(scores[number])
            flat.setdefault(unit.site, {})[layouts[unit.site].position(unit)] = value
        positions = {site: np.array(sorted(values), dtype=np.int64) for site, values in sorted(flat.items())}
        kept = {site: np.array([flat[site][p] for p in where.tolist()]) for site, where in positions.items()}
        return cls(layouts, positions, None if scores is None else kept, identity)

    @classmethod
    def at(
        cls, model: Any, site: str, positions: NDArray[Any] | Sequence[int], scores: NDArray[Any] | None = None
    ) -> UnitSet:
        """Build from flat positions of one site (any order, repeats dropped), with scores of the same length."""
        identity = _identity(model)
        layouts = layouts_of(identity)
        if site not in layouts:
            raise InputError(_no_site(site, layouts))
        chosen, first = np.unique(np.asarray(positions, dtype=np.int64), return_index=True)
        if chosen.size and not 0 <= chosen[0] <= chosen[-1] < layouts[site].total:
            raise InputError(f"positions {chosen[0]}-{chosen[-1]} given, but {site} has {layouts[site].total} units")
        kept = None if scores is None else {site: np.asarray(scores, dtype=np.float64)[first]}
        return cls(layouts, {site: chosen}, kept, identity)

    def __len__(self) -> int:
        return sum(len(where) for where in self.positions.values())

    def __iter__(self) -> Iterator[Unit]:
        for site, where in self.positions.items():
            layout = self.layouts[site]
            yield from (layout.unit(position) for position in where.tolist())

    def __contains__(self, unit: object) -> bool:
        if isinstance(unit, str):
            unit = Unit.parse(unit)
        if not isinstance(unit, Unit) or unit.site not in self.positions:
            return False
        return bool(np.isin(self.layouts[unit.site].position(unit), self.positions[unit.site]))

    def __eq__(self, other: object) -> bool:
        """Same units of the same model; scores don't count."""
        if not isinstance(other, UnitSet):
            return NotImplemented
        return _fingerprint(self) == _fingerprint(other) and self.names() == other.names()

    __hash__ = None  # type: ignore[assignment]

    def __or__(self, other: UnitSet) -> UnitSet:
        return self._combined(other, np.union1d)

    def __and__(self, other: UnitSet) -> UnitSet:
        return self._combined(other, np.intersect1d)

    def __sub__(self, other: UnitSet) -> UnitSet:
        return self._combined(other, np.setdiff1d)

    def _combined(self, other: UnitSet, operation: Any) -> UnitSet:
        identity = joint_identity(self.model, other.model)
        empty = np.array([], dtype=np.int64)
        sites = sorted({*self.positions, *other.positions})
        positions = {
            site: operation(self.positions.get(site, empty), other.positions.get(site, empty)).astype(np.int64)
            for site in sites
        }
        return UnitSet(layouts_of(identity), positions, _merged_scores(self, other, positions), identity)

    def names(self) -> list[str]:
        """Names of all units in canonical order."""
        return [name for site, where in self.positions.items() for name in self.layouts[site].names(where)]

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites that at least one unit belongs to."""
        return tuple(site for site, where in self.positions.items() if len(where))

    def score_list(self) -> list[float] | None:
        """Scores in the order of `names()`, or None."""
        if self.scores is None:
            return None
        return [value for site in self.positions for value in self.scores[site].tolist()]

    def top(self, k: int) -> UnitSet:
        """The k units of highest score; ties go to the unit that comes first. InputError without scores."""
        if self.scores is None:
            raise InputError("this unit set has no scores, so it has no top; select from a finding instead")
        if k < 0:
            raise InputError(f"top({k}) asked for; k is at least 0")
        values = np.concatenate([self.scores[site] for site in self.positions] or [np.zeros(0)])
        chosen = np.sort(np.argsort(-values, kind="stable")[:k])
        return self._taken(chosen)

    def layers(self, keep: Iterable[int]) -> UnitSet:
        """Only the units of some layers."""
        wanted = set(keep)
        chosen = [number for number, unit in enumerate(self) if unit.layer in wanted]
        return self._taken(np.array(chosen, dtype=np.int64))

    def _taken(self, chosen: NDArray[np.int64]) -> UnitSet:
        positions, scores, start = {}, {}, 0
        for site, where in self.positions.items():
            mine = chosen[(chosen >= start) & (chosen < start + len(where))] - start
            positions[site] = where[mine]
            if self.scores is not None:
                scores[site] = self.scores[site][mine]
            start += len(where)
        return replace(self, positions=positions, scores=None if self.scores is None else scores)

    def per_layer(self, site: str | None = None) -> NDArray[np.int64]:
        """How many units lie in each layer, shape (n_layers,) int64; of one site or of all."""
        sites = self.positions if site is None else [site]
        n_layers = max((layout.n_layers for layout in self.layouts.values()), default=0)
        counts = np.zeros(n_layers, dtype=np.int64)
        for name in sites:
            where = self.positions.get(name, np.array([], dtype=np.int64))
            layers = np.searchsorted(self.layouts[name].offsets, where, side="right") - 1
            counts += np.bincount(layers, minlength=n_layers)
        return counts

    def matched_random(self, seed: int, *, exclude: UnitSet | None = None) -> UnitSet:
        """A random set with as many units of each site in every layer; never a unit of this set while others are left.

        exclude: further units not to draw. Where a layer has too few other units, the missing ones come from this set.
        """
        rng = np.random.default_rng(seed)
        avoid = self if exclude is None else self | exclude
        positions = {}
        for site, mine in self.positions.items():
            layout, drawn = self.layouts[site], []
            for layer in range(layout.n_layers):
                span = layout.slice(layer)
                wanted = int(np.count_nonzero((mine >= span.start) & (mine < span.stop)))
                if not wanted:
                    continue
                free = np.setdiff1d(np.arange(span.start, span.stop), avoid.positions.get(site, mine))
                picked = rng.permutation(free)[:wanted]
                if len(picked) < wanted:
                    rest = np.setdiff1d(np.arange(span.start, span.stop), picked)
                    picked = np.concatenate([picked, rng.permutation(rest)[: wanted - len(picked)]])
                drawn.append(picked)
            positions[site] = np.sort(np.concatenate(drawn)).astype(np.int64) if drawn else np.array([], dtype=np.int64)
        return UnitSet(self.layouts, positions, None, self.model)

    def check_model(self, model: Any) -> None:
        """Raise MismatchError unless `model` (a LanguageModel or identity) is the model of this set."""
        theirs = _identity(model)
        _check_weights(self.model, theirs)
        check_features("these units", self.model, theirs, self.sites)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: unit names and scores (the model is stored by the file that holds the set)."""
        return {"units": self.names(), "scores": self.score_list()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], model: Any) -> UnitSet:
        return cls.of(model, data["units"], data.get("scores"))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write JSON, or Parquet for a name that ends in `.parquet` (columns unit, site, layer, expert, index, score)."""
        if str(path).endswith(".parquet"):
            return _save_parquet(self, Path(path))
        return save_sets(path, {"units": self})

    @classmethod
    def load(cls, path: str | os.PathLike[str], name: str | None = None, *, model: Any = None) -> UnitSet:
        """Read one set. name: which, where the file holds several. model: needed for Parquet."""
        if str(path).endswith(".parquet"):
            return _load_parquet(Path(path), model)
        sets = load_sets(path)
        if name is None and len(sets) != 1:
            raise InputError(f"{path} holds the sets {', '.join(sets)}; say which")
        chosen = next(iter(sets)) if name is None else name
        if chosen not in sets:
            raise InputError(f"{path} holds no set {chosen!r}; it holds {', '.join(sets)}")
        return sets[chosen]

    def __repr__(self) -> str:
        shown = ", ".join(str(unit) for _, unit in zip(range(4), self, strict=False))
        more = ", ..." if len(self) > 4 else ""
        return f"UnitSet({len(self)} units of {describe(self.model)}: {shown}{more})"


def layouts_of(model: Any) -> dict[str, Layout]:
    """Site -> Layout of a LanguageModel or of an identity mapping."""
    sites: Mapping[str, Any] = _identity(model).get("sites", {})
    return {site: Layout.from_dict({"site": site, **entry}) for site, entry in sites.items()}


def check_features(what: str, mine: Any, theirs: Any, sites: Iterable[str]) -> None:
    """MismatchError unless the features among `sites` of one model come from the same dictionaries in the other.

    what: whose the first model is, for the message. mine, theirs: LanguageModels or identities. Sites of the model's own
    are not looked at: their units are the same with and without dictionaries.
    """
    sites = tuple(sites)
    ours, others = feature_marks(mine, sites), feature_marks(theirs, sites)
    for site in sites:
        wanted, found = ours.get(site), others.get(site)
        if wanted == found:
            continue
        if found is None:
            told = "which the model given has no dictionary for: give it one by model.with_features(...) (--features FOLDER)"
        elif wanted is None:
            told = "which are features of a dictionary in the model given, and not in theirs"
        else:
            told = f"features of dictionaries {wanted[:12]}, but the model given has {found[:12]} under that name"
        raise MismatchError(f"{what} lie in site {site!r}, {told}")


def feature_marks(model: Any, sites: Iterable[str]) -> dict[str, str]:
    """Fingerprints of the dictionaries behind those of some sites that are features; {} where none is."""
    features: Mapping[str, Any] = _identity(model).get("features", {})
    return {site: str(features[site]["fingerprint"]) for site in sites if site in features}


def joint_identity(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The identity of a model with the features of both; MismatchError for two models, or other features of one name."""
    _check_weights(mine, theirs)
    ours, more = mine.get("features", {}), theirs.get("features", {})
    check_features("these units", mine, theirs, [site for site in more if site in ours])
    new = [site for site in more if site not in ours]
    if not new:
        return mine
    added = {key: {**mine.get(key, {}), **{site: theirs[key][site] for site in new}} for key in ("sites", "features")}
    return {**mine, **added}


def describe(identity: Mapping[str, Any]) -> str:
    """Short name of a model for messages: its name and the start of its fingerprint."""
    return f"{identity.get('name') or 'unnamed'} ({str(identity.get('fingerprint') or '?')[:12]})"


def save_sets(path: str | os.PathLike[str], sets: Mapping[str, UnitSet], **extra: Any) -> Path:
    """Write several sets of one model as `patchclamp.sets/1`; `extra` are further top-level entries."""
    if not sets:
        raise InputError("no sets to save")
    identity = functools.reduce(joint_identity, (units.model for units in sets.values()))
    body = {name: units.to_dict() for name, units in sets.items()}
    return write_json(path, {"format": SETS_FORMAT, "model": dict(identity), **extra, "sets": body})


def load_sets(path: str | os.PathLike[str]) -> dict[str, UnitSet]:
    """Read the sets of a `patchclamp.sets/1` file, in the file's order."""
    data = read_json(path, format=SETS_FORMAT)
    try:
        return {name: UnitSet.from_dict(entry, data["model"]) for name, entry in data["sets"].items()}
    except (KeyError, TypeError, AttributeError) as problem:
        raise DamagedError(f"{path} is not a complete {SETS_FORMAT} file: {problem!r}") from problem


def _identity(model: Any) -> Mapping[str, Any]:
    if isinstance(model, Mapping):
        return model
    identity = getattr(model, "identity", None)
    if not isinstance(identity, Mapping):
        raise InputError(f"a LanguageModel or its identity is needed, not {type(model).__name__}; use patchclamp.load")
    return identity


def _check_weights(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    if mine.get("fingerprint") != theirs.get("fingerprint"):
        raise MismatchError(
            f"these units belong to model {describe(mine)}, but {describe(theirs)} was given; find them again on that model"
        )


def _no_site(site: str, layouts: Mapping[str, Layout]) -> str:
    more = "" if site in SITES else "; features come with model.with_features(...) (--features FOLDER)"
    return f"this model has no site {site!r}; it has {', '.join(layouts)}{more}"


def _fingerprint(units: UnitSet) -> Any:
    return units.model.get("fingerprint")


def _merged_scores(
    left: UnitSet, right: UnitSet, positions: Mapping[str, NDArray[np.int64]]
) -> dict[str, NDArray[np.float64]] | None:
    """Scores of a combined set: the left set's where it has the unit, else the right's; None unless all are known."""
    merged = {}
    for site, where in positions.items():
        values = np.full(len(where), np.nan)
        for source in (right, left):
            if source.scores is not None:
                known = np.isin(where, source.positions.get(site, where[:0]))
                values[known] = _looked_up(source, site, where[known])
        if len(where) and np.isnan(values).any():
            return None
        merged[site] = values
    return merged if left.scores is not None or right.scores is not None else None


def _looked_up(units: UnitSet, site: str, where: NDArray[np.int64]) -> NDArray[np.float64]:
    if not len(where) or units.scores is None:
        return np.zeros(len(where))
    return units.scores[site][np.searchsorted(units.positions[site], where)]


def _save_parquet(units: UnitSet, path: Path) -> Path:
    import duckdb

    listed = list(units)
    columns = {
        "unit": np.array([str(unit) for unit in listed], dtype=object),
        "site": np.array([unit.site for unit in listed], dtype=object),
        "layer": np.array([unit.layer for unit in listed], dtype=np.int32),
        "expert": np.array([-1 if unit.expert is None else unit.expert for unit in listed], dtype=np.int32),
        "index": np.array([unit.index for unit in listed], dtype=np.int32),
        "score": np.array(units.score_list() or [np.nan] * len(listed), dtype=np.float64),
    }
    with atomic_write(path) as part, duckdb.connect() as connection:
        connection.register("units", columns)
        score = "CASE WHEN isnan(score) THEN NULL ELSE score END AS score"
        select = f"SELECT unit, site, layer, nullif(expert, -1) AS expert, index, {score}"
        fingerprint = str(units.model.get("fingerprint", "")).replace("'", "''")
        connection.execute(
            f"COPY ({select} FROM units) TO '{part}' (FORMAT parquet, KV_METADATA {{fingerprint: '{fingerprint}'}})"
        )
    return path


def _load_parquet(path: Path, model: Any) -> UnitSet:
    import duckdb

    if model is None:
        raise InputError(f"{path}: a Parquet file holds units only; give model= to say whose they are")
    if not path.is_file():
        raise InputError(f"no file at {path}")
    try:
        with duckdb.connect() as connection:
            rows = connection.execute("SELECT unit, score FROM read_parquet(?)", [str(path)]).fetchall()
            stored = connection.execute(
                "SELECT decode(value) FROM parquet_kv_metadata(?) WHERE decode(key) = 'fingerprint'", [str(path)]
            ).fetchone()
    except duckdb.Error as problem:
        raise DamagedError(f"{path} is not a Parquet file of units: {problem}") from problem
    scores = [score for _, score in rows]
    found = UnitSet.of(model, [unit for unit, _ in rows], None if any(s is None for s in scores) else scores)
    if stored is not None and stored[0]:
        found.check_model({**found.model, "fingerprint": stored[0]})
    return found
