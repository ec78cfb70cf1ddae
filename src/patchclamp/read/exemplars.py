"""The passages that drive a unit most, a sample over its whole range, and others kept out for scoring, from a recording.

The recording's `exemplars` statistic says where the highest values stand, its `histogram` gives the bar above which a unit
counts as firing; the model fills in the values of the tokens around. Hernandez et al. 2022 (MILAN, arXiv 2201.11114, section
3), carried from images to text: an exemplar is a passage around the highest token instead of an image, its mask the tokens
above the bar instead of the pixels.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.callable_room import make_callable
from patchclamp.core.errors import InputError, MismatchError
from patchclamp.core.provenance import provenance
from patchclamp.data.batches import Selection
from patchclamp.data.corpora import Corpus
from patchclamp.data.demo import open_corpus
from patchclamp.data.documents import Tally
from patchclamp.models.units import Unit, UnitSet, describe
from patchclamp.read.exemplar import Exemplar
from patchclamp.read.exemplar_store import Exemplars, ExemplarStore
from patchclamp.read.passages import PassageReader, Wanted
from patchclamp.read.registry import readings

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel
    from patchclamp.record.recording import Recording

K, QUANTILE, WINDOW = 15, 0.99, 64  # the paper's k and quantile; W of its carry-over to text
HELD_OUT_EVERY = 3  # documents 2, 5, 8, ... are kept out of descriptions; parallel texts keep the same ones out
_SPARE = 2  # passages read per passage wanted: some turn out to be the same text
_BLOCK = 8192  # units read in one pass


@readings.add("exemplars")
def exemplars(
    recording: Recording,
    *,
    units: UnitSet | Sequence[str],
    model: LanguageModel | None = None,
    text: Corpus | None = None,
    k: int = K,
    quantile: float = QUANTILE,
    window: int = WINDOW,
    sample: int = 10,
    probe: int = 96,
    held_out: int = K,
    seed: int = 0,
) -> ExemplarStore:
    """Top passages of units, a sample over their range, and held-out passages, with the value of every token.

    recording: with the statistic `exemplars` (its k at least some three times the k here) and, for exact bars, `histogram`.

    units: names such as mlp.3.17, or a set. model: the recording's; opened again from where it says it is if not given. text:
    likewise. k: top passages of a unit, at most one per document, none twice. quantile: a token fires if its value is above
    this quantile of all values of the unit. window: tokens of a passage. sample: passages evenly spaced in rank from the
    lowest to the highest of the probe. probe: random passages that all units are read on. held_out: so many top passages and
    so many random ones of documents that nothing else comes from (every third one).

    Raises InputError for units, sizes or statistics that don't fit, MismatchError for another model or text.
    Example: `patchclamp read exemplars rec/ --units mlp.3.17 --out exemplars.json`.
    """
    names = unit_names(units)
    _check(k=k, window=window, sample=sample, probe=probe, held_out=held_out)
    if not 0 < quantile < 1:
        raise InputError(f"quantile={quantile}; it lies between 0 and 1")
    n_documents = sum(recording.documents(label) for label in recording.labels)
    if k > n_documents:
        raise InputError(f"k={k} passages asked for, at most one per document, but {n_documents} were recorded")
    if "exemplars" not in recording.statistics:
        raise InputError(
            "the recording has no exemplars; record with statistics={'exemplars': {'k': 50}, 'histogram': {}} "
            "(--statistic exemplars --statistic histogram)"
        )
    model, text = _model(recording, model), _text(recording, text)
    plan = _Plan(recording, probe=probe, held_out=held_out, k=k, seed=seed)
    found: list[Exemplars] = []
    shared: list[Exemplar] = []
    for start in range(0, len(names), _BLOCK):
        block = [Unit.parse(name) for name in names[start : start + _BLOCK]]
        made, shared = _block(recording, model, text, block, plan, k, quantile, window, sample, held_out)
        found += made
    _warn_of_one_document(found)
    arguments = {
        "units": names, "k": k, "quantile": quantile, "window": window, "sample": sample, "probe": probe,
        "held_out": held_out, "seed": seed,
    }  # fmt: skip
    inputs = {
        "recording": {
            "fingerprint": recording.fingerprint,
            "folder": None if recording.folder is None else str(recording.folder.absolute()),
            "labels": list(recording.labels),
        }
    }
    source = provenance("read.exemplars", arguments=arguments, inputs=inputs, seed=seed)
    return ExemplarStore(found, probe=shared, medium="text", model=recording.model, provenance=source)


def unit_names(units: UnitSet | Sequence[str] | Any) -> list[str]:
    """Names of units in the order given, each once; InputError for none or a name that is none."""
    listed = units.names() if isinstance(units, UnitSet) else [units] if isinstance(units, str | Unit) else list(units)
    names = list(dict.fromkeys(str(Unit.parse(str(name))) for name in listed))
    if not names:
        raise InputError("no units were given; name some, such as mlp.3.17")
    return names


class _Plan:
    """Which documents serve what: a third are kept out; of both parts some are drawn at random for all units."""

    def __init__(self, recording: Recording, *, probe: int, held_out: int, k: int, seed: int) -> None:
        self.recording, self.k = recording, k
        rng = np.random.default_rng(seed)
        self.probe = self._drawn(rng, probe, kept_out=False)
        self.random = self._drawn(rng, held_out, kept_out=True)

    def _drawn(self, rng: np.random.Generator, count: int, *, kept_out: bool) -> list[tuple[str, int, float]]:
        """(label, document, share of the text) of random passages, as many of each label as of any other."""
        labels = self.recording.labels
        found = []
        for number, label in enumerate(labels):
            free = [d for d in range(self.recording.documents(label)) if is_kept_out(d) == kept_out]
            wanted = (count * (number + 1)) // len(labels) - (count * number) // len(labels)
            chosen = np.sort(rng.permutation(np.array(free, dtype=np.int64))[:wanted])
            found += [(label, document, float(rng.random())) for document in chosen.tolist()]
        return found

    def tops(self, site: str, positions: NDArray[np.int64]) -> Iterator[tuple[list[Any], list[Any]]]:
        """For each unit its recorded tokens (label, document, position), best first, one per document: (used, kept out)."""
        columns = []
        for label in self.recording.labels:
            kept = self.recording.get("exemplars", label, site)
            columns.append((label, kept.value[:, positions], kept.document[:, positions], kept.position[:, positions]))
        for at in range(len(positions)):
            tokens = [
                (-float(v), order, int(d), int(p), label)
                for order, (label, value, document, position) in enumerate(columns)
                for v, d, p in zip(value[:, at], document[:, at], position[:, at], strict=True)
                if d >= 0
            ]
            best: dict[tuple[str, int], int] = {}
            for _, _, document, position, label in sorted(tokens):
                best.setdefault((label, document), position)
            sides: tuple[list[Any], list[Any]] = ([], [])
            for (label, document), position in best.items():
                sides[is_kept_out(document)].append((label, document, position))
            yield sides[0][: _SPARE * self.k], sides[1][: _SPARE * self.k]


def is_kept_out(document: int) -> bool:
    """Whether documents of this number serve scoring only."""
    return document % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def _block(
    recording: Recording,
    model: LanguageModel,
    text: Corpus,
    units: Sequence[Unit],
    plan: _Plan,
    k: int,
    quantile: float,
    window: int,
    sample: int,
    held_out: int,
) -> tuple[list[Exemplars], list[Exemplar]]:
    """Exemplars of some units, and the probe."""
    arguments = recording.arguments
    reader = PassageReader(
        model, text, units, max_length=arguments["max_length"], select=Selection(**arguments["select"]), window=window
    )
    every = np.arange(len(units))
    wanted = [Wanted(label, document, None, every, share) for label, document, share in [*plan.probe, *plan.random]]
    role: list[tuple[int, int]] = [(0, -1)] * len(plan.probe) + [(1, -1)] * len(plan.random)
    bars = np.full(len(units), np.nan)
    for site in dict.fromkeys(unit.site for unit in units):
        mine = np.array([at for at, unit in enumerate(units) if unit.site == site])
        positions = np.array([_position(recording, units[at]) for at in mine], dtype=np.int64)
        bars[mine] = _bars(recording, site, positions, quantile)
        for at, sides in zip(mine.tolist(), plan.tops(site, positions), strict=True):
            for side, tokens in enumerate(sides):
                wanted += [Wanted(label, d, p, np.array([at])) for label, d, p in tokens]
                role += [(2 + side, at)] * len(tokens)
    shared: dict[int, tuple[Exemplar, NDArray[np.float32]]] = {}
    own: dict[int, Exemplar] = {}
    for number, passage, values in reader.read(wanted):
        if role[number][1] < 0:
            shared[number] = (passage, values)
        else:
            own[number] = passage.with_values(values[0])
    probe = [shared[number] for number in range(len(plan.probe)) if number in shared]
    random = [shared[n] for n in range(len(plan.probe), len(plan.probe) + len(plan.random)) if n in shared]
    lists: dict[tuple[int, int], list[Exemplar]] = {}
    for number in sorted(own):  # as wanted: best first
        lists.setdefault(role[number], []).append(own[number])
    made = [
        _unit(str(unit), at, bars[at], probe, random, lists.get((2, at), []), lists.get((3, at), []), k, quantile,
              sample, held_out)
        for at, unit in enumerate(units)
    ]  # fmt: skip
    return made, [passage for passage, _ in probe]


def _unit(
    name: str,
    at: int,
    bar: float,
    probe: Sequence[tuple[Exemplar, NDArray[np.float32]]],
    random: Sequence[tuple[Exemplar, NDArray[np.float32]]],
    used: Sequence[Exemplar],
    kept_out: Sequence[Exemplar],
    k: int,
    quantile: float,
    sample: int,
    held_out: int,
) -> Exemplars:
    notes = []
    values = np.concatenate([own[at] for _, own in probe]) if probe else np.zeros(0, dtype=np.float32)
    if np.isnan(bar):
        bar = float(np.quantile(values, quantile)) if len(values) else 0.0
        notes.append("the recording has no histogram, so the bar is a quantile of the probe only")
    top = distinct(used)[:k]
    if len(top) < k:
        notes.append(f"{len(top)} distinct top passages instead of {k}; record with more exemplars per unit for more")
    passages = sorted((one.with_values(own[at]) for one, own in probe), key=lambda one: one.value)
    ranks = np.unique(np.linspace(0, len(passages) - 1, min(sample, len(passages))).round().astype(int))
    seen = {one.source[:2] for one in kept_out}
    others = [one.with_values(own[at]) for one, own in random if one.source[:2] not in seen]
    fresh = distinct([*distinct(kept_out)[:held_out], *others], without=top)
    return Exemplars(name, bar, tuple(top), tuple(passages[rank] for rank in ranks), tuple(fresh), values, tuple(notes))


def distinct(passages: Iterable[Exemplar], *, without: Iterable[Exemplar] = ()) -> list[Exemplar]:
    """The passages in their order, without those whose text (white space and case aside) came before or is in `without`."""
    seen = {_bare(one) for one in without}
    found = []
    for one in passages:
        key = _bare(one)
        if key not in seen:
            found.append(one)
        seen.add(key)
    return found


def _bare(one: Exemplar) -> str:
    return " ".join(one.text.casefold().split())


def _position(recording: Recording, unit: Unit) -> int:
    if unit.site not in recording.sites:
        raise InputError(f"{unit}: site {unit.site!r} was not recorded; the recording has {', '.join(recording.sites)}")
    if unit.layer not in recording.layers(unit.site):
        raise InputError(f"{unit}: layer {unit.layer} of {unit.site} was not recorded")
    return recording.layouts[unit.site].position(unit)


def _bars(recording: Recording, site: str, positions: NDArray[np.int64], quantile: float) -> NDArray[np.float64]:
    """(m,) the quantile of all recorded values of each unit; NaN without histograms."""
    if "histogram" not in recording.statistics:
        return np.full(len(positions), np.nan)
    first, *rest = (recording.get("histogram", label, site) for label in recording.labels)
    for other in rest:
        first = first.merge(other)
    return np.asarray(first.quantiles(quantile))[positions]


def _model(recording: Recording, model: LanguageModel | None) -> LanguageModel:
    if model is None:
        from patchclamp.models.load import load

        if not recording.model.get("source"):
            raise InputError("the recording is of a model that was in memory; give it: model=")
        model = load(recording.model["source"], dtype=recording.model.get("dtype"))
    if model.fingerprint != recording.model["fingerprint"]:
        raise MismatchError(
            f"the recording is of {describe(recording.model)}, but {describe(model.identity)} was given"
        )
    return model


def _text(recording: Recording, text: Corpus | None) -> Corpus:
    if text is None:
        return open_corpus(recording.corpus)
    if absent := [label for label in recording.labels if label not in text.labels]:
        raise MismatchError(f"the text given has no label {absent[0]!r}, which was recorded")
    for label in recording.labels:
        if text.cheap(label) and _sha256(text, label, recording.documents(label)) != _recorded_sha256(recording, label):
            raise MismatchError(f"the text of label {label!r} is not what was recorded; give the recorded text")
    return text


def _sha256(text: Corpus, label: str, documents: int) -> str:
    tally = Tally()
    for document in itertools.islice(text.documents(label), documents):
        tally.add(document)
    return tally.sha256


def _recorded_sha256(recording: Recording, label: str) -> str:
    return str(recording.corpus["labels"][label]["sha256"])


def _warn_of_one_document(found: Sequence[Exemplars]) -> None:
    alone = [one.unit for one in found if one.top and len({each.source[:2] for each in one.top}) == 1]
    if alone:
        warnings.warn(
            f"all top passages of {len(alone)} units, such as {alone[0]}, come from one document", stacklevel=3
        )


def _check(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name}={size} given; it must be at least 1")


make_callable(__name__)
