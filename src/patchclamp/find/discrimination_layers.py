"""One layer's discrimination value with its null and controls, from states at sampled words."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.find.discrimination_samples import Plan, Sample
from patchclamp.find.discrimination_units import probe
from patchclamp.find.gdv import chance_of, distances, gdv, gdv2, permuted, scaled
from patchclamp.find.mds import mds
from patchclamp.measure.holm import holm

STRATUM = 10  # fewest samples of a class among those with one last word or last class
WITHIN = 100  # permutations inside strata
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Settings:
    target: str
    resamples: int
    permutations: int
    by_document: bool
    seed: int


@dataclass(frozen=True, eq=False)
class Words:
    """The samples of a plan and who belongs where: rows are places in `samples`.

    classes: class -> rows of its pool; size: how many of each class a balanced draw has. labels, others: (n,) class of the
    target and of the other word; document: (n,) numbers. control, pairs: class (of the other word), or both classes -> rows.
    """

    samples: list[Sample]
    classes: dict[str, Rows]
    size: int
    labels: NDArray[np.str_]
    others: NDArray[np.str_]
    document: NDArray[np.int64]
    control: dict[str, Rows]
    pairs: dict[str, Rows]
    left_out: dict[str, int]

    @classmethod
    def of(cls, plan: Plan, target: str, *, per_class: int, min_per_class: int, largest: int) -> Words:
        """InputError if fewer than two classes have min_per_class samples."""
        samples = plan.samples()
        row = {sample: at for at, sample in enumerate(samples)}
        main, other = (plan.next, plan.last) if target == "next" else (plan.last, plan.next)
        counts = {name: len(kept) for name, kept in main.kept().items()}
        frequent = [name for name, count in counts.items() if count >= min_per_class]
        if len(frequent) < 2:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise InputError(
                f"{len(frequent)} of the classes have {min_per_class} samples or more ({listed}); give more text, or a "
                f"lower min_per_class"
            )
        documents = {key: at for at, key in enumerate(dict.fromkeys((one.text, one.document) for one in samples))}
        both = [(one.next, one.last) if target == "next" else (one.last, one.next) for one in samples]
        control = {
            name: np.array([row[one] for one in kept])
            for name, kept in other.kept().items()
            if len(kept) >= min_per_class
        }
        return cls(
            samples,
            {name: np.array([row[one] for one in main.kept()[name]]) for name in frequent},
            min(per_class, largest // len(frequent), *(counts[name] for name in frequent)),
            np.array([mine for mine, _ in both]),
            np.array([its for _, its in both]),
            np.array([documents[one.text, one.document] for one in samples]),
            control,
            {name: np.array([row[one] for one in kept]) for name, kept in plan.pairs.kept().items()},
            {name: main.seen[name] for name in counts if name not in frequent},
        )

    def draw(self, number: int, seed: int = 0) -> Rows:
        """Rows of a balanced sample, in the order of the text; draw 0 is the first of every pool."""
        rng = np.random.default_rng([seed, number])
        picked = [
            pool[: self.size] if number == 0 else rng.permutation(pool)[: self.size] for pool in self.classes.values()
        ]
        return np.sort(np.concatenate(picked))


def measured(
    points: NDArray[np.float32], blank: NDArray[np.float32] | None, words: Words, how: Settings
) -> dict[str, Any]:
    """The row of one layer: see `discrimination`. points, blank: (samples, width), the latter of random weights or None."""
    rows = words.draw(0)
    labels = words.labels
    blocks = words.document[rows] if how.by_document else None
    value, null = permuted(points[rows], labels[rows], permutations=how.permutations, seed=how.seed, blocks=blocks)
    chance, first = chance_of(value, null), gdv(points[rows], labels[rows])
    drawn = [words.draw(number, how.seed) for number in range(1, how.resamples)]
    values = [value, *(gdv(points[other], labels[other]).value for other in drawn)]
    within = _within(points, words, _classes_of(words), how.seed)
    same_word = _within(points, words, _words_of(words), how.seed)
    return {
        "gdv": float(np.mean(values)),
        "sd": float(np.std(values)),
        "null_mean": chance.mean,
        "null_sd": chance.sd,
        "z": chance.z,
        "p": chance.p,
        "last": _control(points, words),
        "untrained": None if blank is None else gdv(blank[rows], labels[rows]).value,
        "within_last_class": None if within is None else within[0],
        "p_within": None if within is None else within[1],
        "within_last_word": None if same_word is None else same_word[0],
        "p_word": None if same_word is None else same_word[1],
        "probe": probe(points[rows], labels[rows], words.document[rows]),
        "probe_chance": 1 / len(words.classes),
        "gdv2": gdv2(points[rows], labels[rows]),
        "dimensions": first.dimensions,
        "constant": first.constant,
        "far": first.far,
        "intra": dict(zip(first.classes, first.intra.tolist(), strict=True)),
        "inter": [
            {"class": a, "other": b, "distance": float(first.inter[i, j])}
            for i, a in enumerate(first.classes)
            for j, b in enumerate(first.classes)
            if i < j
        ],
    }


def corrected(rows: Sequence[dict[str, Any]]) -> None:
    """Add p_holm: p corrected over all layers."""
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p


def mapped(points: NDArray[np.float32], words: Words, most: int, seed: int) -> dict[str, Any]:
    """A 2-D map (metric MDS) of at most so many words of the balanced draw: their text, classes and places; and its stress."""
    rows = words.draw(0)
    share = max(most // len(words.classes), 2)
    kept = np.concatenate([rows[words.labels[rows] == name][:share] for name in words.classes])
    found = mds(distances(scaled(points[kept].astype(np.float64))[0]), seed=seed)
    return {
        "stress": found.stress,
        "points": [
            {"word": words.samples[row].word, "class": str(words.labels[row]), "other": str(words.others[row]),
             "x": float(x), "y": float(y)}
            for row, (x, y) in zip(kept, found.points, strict=True)
        ],
    }  # fmt: skip


def _control(points: NDArray[np.float32], words: Words) -> float | None:
    """GDV for the class of the other word, balanced over its own classes; None with fewer than two."""
    if len(words.control) < 2:
        return None
    size = min(len(pool) for pool in words.control.values())
    size = min(size, words.size * len(words.classes) // len(words.control))
    if size < 2:
        return None
    rows = np.concatenate([pool[:size] for pool in words.control.values()])
    return gdv(points[rows], words.others[rows]).value


def _classes_of(words: Words) -> Iterator[Rows]:
    """Samples that share the other word's class, from the pools that hold enough of every pair of classes."""
    strata: dict[str, list[Rows]] = {}
    for pool in words.pairs.values():
        if str(words.labels[pool[0]]) in words.classes:
            strata.setdefault(str(words.others[pool[0]]), []).append(pool)
    for pools in strata.values():
        yield np.concatenate(pools)


def _words_of(words: Words) -> Iterator[Rows]:
    """Samples of the pools that share the word at which the state is taken."""
    strata: dict[str, list[int]] = {}
    for row in np.concatenate(list(words.classes.values())):
        strata.setdefault(words.samples[row].word, []).append(int(row))
    for found in strata.values():
        yield np.array(found)


def _within(
    points: NDArray[np.float32], words: Words, strata: Iterator[Rows], seed: int
) -> tuple[float, float, int] | None:
    """Mean GDV inside strata, weighted by samples, its permutation p, and the number of strata; None if none qualifies.

    A stratum takes part if two classes or more have 10 samples in it; they are balanced by cutting to the smallest.
    """
    values: list[float] = []
    nulls: list[NDArray[np.float64]] = []
    weights: list[int] = []
    for number, stratum in enumerate(strata):
        groups = [stratum[words.labels[stratum] == name] for name in np.unique(words.labels[stratum])]
        groups = [group for group in groups if len(group) >= STRATUM]
        if len(groups) < 2:
            continue
        size = min(len(group) for group in groups)
        rows = np.concatenate([group[:size] for group in groups])
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # the embeddings of one word are all the same: a value of 0, as it should be
            value, null = permuted(points[rows], words.labels[rows], permutations=WITHIN, seed=seed + number)
        values.append(value)
        nulls.append(null)
        weights.append(len(rows))
    if not values:
        return None
    mean = float(np.average(values, weights=weights))
    return mean, chance_of(mean, np.average(nulls, axis=0, weights=weights)).p, len(values)
