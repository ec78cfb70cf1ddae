"""What every finder returns: scores of all units per label, the sets the method itself chooses, its null, its origin.

Scoring and choosing are apart: `Finding.sets` is the method's own choice, `Finding.select` makes another one from the
same scores, without running the finder again. The table of finders is here too.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.core.registry import Registry
from patchclamp.find import finding_file, finding_view
from patchclamp.find.ranking import discoveries, highest
from patchclamp.models.units import Layout, Unit, UnitSet, layouts_of

T = TypeVar("T")


class _OneLayout:
    """The field `layout` of a finding: the only one of its `layouts`; where there are several, asking for it is an error."""

    @overload
    def __get__(self, finding: None, owner: type | None = None) -> None: ...
    @overload
    def __get__(self, finding: Finding, owner: type | None = None) -> Layout: ...
    def __get__(self, finding: Finding | None, owner: type | None = None) -> Layout | None:
        if finding is None:
            return None  # the constructor's default: layouts= is given instead
        if len(finding.layouts) != 1:
            raise InputError(f"this finding spans the sites {', '.join(finding.sites)}; use its `layouts`")
        return finding.layouts[0]

    def __set__(self, finding: Finding, layout: Layout | None) -> None:
        if layout is not None:
            object.__setattr__(finding, "layouts", (layout,))


@dataclass(frozen=True, eq=False)
class Finding:
    """Scores and classes of all units of one site or several, and the units chosen for each label.

    method: the finder's method, such as "ternary". model: identity of the model. layouts: where units lie in the flat
    axis (total,): sites one after another, within a site layers one after another; layout: the same for one site.
    chosen: (labels, total) bool, the method's own set of every label. scores: (labels, total) float64,
    larger speaks more for the label; None if the file with the scores was not there on loading. unit_score: (total,)
    float64, the method's own score where it has one per unit. member: (labels, total) bool, which labels a unit serves
    whether chosen or not. classes: (total,) int8, positions in class_names. set_classes: classes whose units the sets
    hold completely. p_values: (labels, total) float32, for control of false discoveries. null: what chance names.
    parameters: of the method. details: what else it reports, plain data. notes: what a reader should know first.
    """

    method: str
    labels: tuple[str, ...]
    model: Mapping[str, Any]
    chosen: NDArray[np.bool_]
    scores: NDArray[np.float64] | None
    layouts: tuple[Layout, ...] = ()
    layout: _OneLayout = _OneLayout()
    kept_scores: NDArray[np.float64] | None = None
    unit_score: NDArray[np.float64] | None = None
    member: NDArray[np.bool_] | None = None
    classes: NDArray[np.int8] | None = None
    class_names: tuple[str, ...] = ()
    set_classes: tuple[str, ...] = ()
    p_values: NDArray[np.float32] | None = None
    null: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sites = self.sites
        if not sites or len(set(sites)) < len(sites):
            raise InputError(
                f"a finding needs the layout of each of its sites once; given: {', '.join(sites) or 'none'}"
            )
        if self.chosen.shape != (len(self.labels), self.total):
            raise InputError(
                f"a finding of {len(self.labels)} labels and {self.total} units was given choices of shape {self.chosen.shape}"
            )

    @property
    def site(self) -> str:
        """The site, or the sites joined by "+"."""
        return "+".join(self.sites)

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(layout.site for layout in self.layouts)

    @property
    def total(self) -> int:
        """Units of all sites: the length of the flat axis."""
        return sum(layout.total for layout in self.layouts)

    def by_site(self, flat: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Cut an array (..., total) into site -> (..., units of the site)."""
        return {site: flat[..., span] for site, span in spans(self.layouts).items()}

    def names(self, positions: Sequence[int] | NDArray[Any]) -> list[str]:
        """Names of the units at flat positions, in the order given."""
        return names_at(self.layouts, positions)

    def position(self, unit: Unit | str) -> int:
        """Flat position of a unit; InputError if the finding has no such unit."""
        unit = Unit.parse(unit) if isinstance(unit, str) else unit
        for layout, span in zip(self.layouts, spans(self.layouts).values(), strict=True):
            if layout.site == unit.site:
                return span.start + layout.position(unit)
        raise InputError(f"{unit}: this finding is about {', '.join(self.sites)}")

    @functools.cached_property
    def sets(self) -> dict[str, UnitSet]:
        """Label -> the units that the method chooses for it, scores included; a label without any has an empty set."""
        return self._sets(self.chosen)

    def select(
        self,
        *,
        top: int | None = None,
        share: float | None = None,
        fdr: float | None = None,
        classes: Sequence[str] | None = None,
    ) -> dict[str, UnitSet]:
        """Choose otherwise: label -> UnitSet, an empty one where nothing qualifies.

        top: the so many highest-scoring units of each label; share: round(share * units) of them; ties go to the
        smaller flat position. fdr: units whose p-value passes Benjamini-Hochberg at this false-discovery rate, over
        all labels and units. At most one of the three. classes: only units of these classes that serve the label.
        InputError if the finding lacks what is asked for (scores, p-values, classes).
        """
        given = [name for name, value in (("top", top), ("share", share), ("fdr", fdr)) if value is not None]
        if len(given) > 1 or (not given and classes is None):
            raise InputError(
                "give one of top=, share= and fdr=, or classes=, to select; `sets` is the method's own choice"
            )
        allowed = np.ones(self.chosen.shape, dtype=bool) if classes is None else self.serving(classes)
        if fdr is not None:
            return self._sets(allowed & self._significant(fdr))
        if given:
            return self._sets(self._highest(self._count(top, share), allowed))
        return self._sets(allowed)

    def serving(self, classes: Sequence[str]) -> NDArray[np.bool_]:
        """Which units of some classes serve which label, (labels, total) bool."""
        if self.classes is None:
            raise InputError(f"the method {self.method} sorts units into no classes; select by top=, share= or fdr=")
        wanted = [self.class_names.index(name) for name in self._checked(classes)]
        kind = np.isin(self.classes, wanted)
        if self.member is not None:
            return np.asarray(self.member & kind)
        if set(classes) <= set(self.set_classes):
            return np.asarray(self.chosen & kind)
        raise InputError(
            f"this finding was loaded without its scores file, so only {', '.join(self.set_classes) or 'its sets'} can be "
            f"told apart by label, not {', '.join(classes)}; put the .scores.safetensors file beside it or find again"
        )

    def per_layer(self) -> dict[str, NDArray[np.int64]]:
        """Class (or label, for a method without classes) -> units in each layer, of all sites, (n_layers,) int64."""
        sites = list(self.per_site())
        return {name: np.sum([self.per_site()[site][name] for site in sites], axis=0) for name in self._kinds()}

    def per_site(self) -> dict[str, dict[str, NDArray[np.int64]]]:
        """Site -> class (or label) -> units in each layer, (n_layers,) int64."""
        kinds = self._kinds()
        return {
            layout.site: {
                name: np.array([np.count_nonzero(part) for part in layout.split(taken[span])], dtype=np.int64)
                for name, taken in kinds.items()
            }
            for layout, span in zip(self.layouts, spans(self.layouts).values(), strict=True)
        }

    def _kinds(self) -> dict[str, NDArray[np.bool_]]:
        """Class (or label, for a method without classes) -> which units, (total,) bool."""
        if self.classes is None:
            return dict(zip(self.labels, self.chosen, strict=True))
        return {name: np.asarray(self.classes == at) for at, name in enumerate(self.class_names)}

    def class_of(self, unit: Unit | str) -> str | None:
        """Class of a unit, by name or `Unit`; None for a method without classes."""
        position = self.position(unit)
        return None if self.classes is None else self.class_names[self.classes[position]]

    def class_counts(self) -> dict[str, int]:
        """Units in each class; empty for a method without classes."""
        if self.classes is None:
            return {}
        counts = np.bincount(self.classes, minlength=len(self.class_names)).tolist()
        return dict(zip(self.class_names, counts, strict=True))

    def summary(self) -> dict[str, Any]:
        """The result in plain data, without the units: for tables, logs and `--json`."""
        return finding_view.summary(self)

    def save(self, path: str | os.PathLike[str], *, classes: Sequence[str] | None = None, scores: bool = True) -> Path:
        """Write `patchclamp.sets/1` JSON; the scores of all units go to NAME.scores.safetensors beside it.

        classes: the sets then hold only units of these classes that serve the label. scores: False writes no scores
        file; a finding loaded from such a file can't `select` by top, share or fdr.
        """
        if classes is None:
            return finding_file.write(self, path, scores=scores)
        narrowed = replace(
            self,
            layout=None,
            chosen=self.serving(classes),
            set_classes=tuple(classes),
            parameters={**self.parameters, "classes": list(classes)},
        )
        return finding_file.write(narrowed, path, scores=scores)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Finding:
        """Read what `save` wrote. DamagedError for an altered file; without the scores file `scores` is None."""
        return cls(**finding_file.read(path))

    def plot(self) -> Any:
        """Altair chart: units of each class per layer, stages behind them."""
        return finding_view.chart(self)

    def __repr__(self) -> str:
        return finding_view.line(self)

    def __rich__(self) -> Any:
        return finding_view.table(self)

    def _repr_html_(self) -> str:
        return finding_view.html(self)

    def _sets(self, taken: NDArray[np.bool_]) -> dict[str, UnitSet]:
        sets = {}
        for at, label in enumerate(self.labels):
            where = np.flatnonzero(taken[at])
            sets[label] = unit_set(self.model, self.layouts, where, self._scores_of(at, where))
        return sets

    def _scores_of(self, at: int, where: NDArray[np.int64]) -> NDArray[np.float64] | None:
        known = self.scores if self.scores is not None else self.kept_scores
        if known is None or np.isnan(known[at, where]).any():
            return None
        return np.asarray(known[at, where])

    def _count(self, top: int | None, share: float | None) -> int:
        if top is not None:
            if top < 0:
                raise InputError(f"top={top} asked for; it is at least 0")
            return top
        if share is None or not 0 <= share <= 1:
            raise InputError(f"share={share} asked for; it lies between 0 and 1")
        return round(share * self.total)

    def _highest(self, k: int, allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        if self.scores is None:
            raise InputError(
                "this finding was loaded without the scores of all units, so it can't select by top= or share=; "
                "put its .scores.safetensors file beside it or find again"
            )
        taken = np.zeros(self.scores.shape, dtype=bool)
        for at, row in enumerate(self.scores):
            open_to = np.flatnonzero(allowed[at])
            taken[at, open_to[highest(row[open_to], k)]] = True
        return taken

    def _significant(self, rate: float) -> NDArray[np.bool_]:
        if not 0 < rate < 1:
            raise InputError(f"fdr={rate} asked for; it lies between 0 and 1")
        if self.p_values is None:
            why = self.null.get("why") or "it was saved or loaded without its scores file"
            raise InputError(
                f"this finding has no p-values, so it can't select by fdr= ({why}); select by top= or share="
            )
        return discoveries(self.p_values, rate)

    def _checked(self, classes: Sequence[str]) -> Sequence[str]:
        unknown = [name for name in classes if name not in self.class_names]
        if unknown or isinstance(classes, str) or not classes:
            raise InputError(
                f"classes={classes!r} asked for; give a list of some of {', '.join(self.class_names) or 'none'}"
            )
        return classes


def spans(layouts: Sequence[Layout]) -> dict[str, slice]:
    """Site -> its part of a flat axis that holds sites one after another."""
    found, start = {}, 0
    for layout in layouts:
        found[layout.site] = slice(start, start + layout.total)
        start += layout.total
    return found


def names_at(layouts: Sequence[Layout], positions: Sequence[int] | NDArray[Any]) -> list[str]:
    """Names of the units at positions of the flat axis, in the order given."""
    where = np.asarray(positions, dtype=np.int64)
    names = np.empty(len(where), dtype=object)
    for layout, span in zip(layouts, spans(layouts).values(), strict=True):
        mine = (where >= span.start) & (where < span.stop)
        names[mine] = layout.names(where[mine] - span.start)
    return names.tolist()


def unit_set(
    model: Mapping[str, Any],
    layouts: Sequence[Layout],
    positions: NDArray[np.int64],
    scores: NDArray[Any] | None = None,
) -> UnitSet:
    """The units at sorted positions of the flat axis, with scores of the same length; sites in canonical order."""
    where, kept = {}, {}
    for site, span in sorted(spans(layouts).items()):
        mine = (positions >= span.start) & (positions < span.stop)
        where[site] = positions[mine] - span.start
        if scores is not None:
            kept[site] = np.asarray(scores[mine], dtype=np.float64)
    return UnitSet(layouts_of(model), where, None if scores is None else kept, model)


finders: Registry[Callable[..., Finding]] = Registry("finder", room="patchclamp.find")
