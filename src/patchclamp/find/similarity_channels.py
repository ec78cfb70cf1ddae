"""What is compared with a model: channels x conditions (x features), from arrays or a CSV; and a model's own responses.

Brain recordings come through the same door as anything else: trials become `itpc` per condition, or any number per channel
and condition.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.data.corpora import Corpus
from patchclamp.find.syntax_spectra import spectrum
from patchclamp.find.syntax_streams import Sentences, joined
from patchclamp.find.syntax_sums import Plan, tag_sums
from patchclamp.models.units import Layout

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

BAND = (0.5, 2.0)


@dataclass(frozen=True)
class Channels:
    """values: (channels, conditions, features) float64. names, regions: one per channel; regions may be None."""

    values: NDArray[np.float64]
    conditions: tuple[str, ...]
    names: tuple[str, ...]
    regions: tuple[str, ...] | None = None

    @classmethod
    def of(
        cls,
        values: Any,
        conditions: Sequence[str],
        *,
        names: Sequence[str] | None = None,
        regions: Sequence[str] | None = None,
    ) -> Channels:
        """From an array (channels, conditions) or (channels, conditions, features); InputError for other shapes and NaN."""
        x = _array(values, conditions)
        named = tuple(f"channel {at}" for at in range(len(x))) if names is None else tuple(map(str, names))
        for what, given in (("names", named), ("regions", regions)):
            if given is not None and len(given) != len(x):
                raise InputError(f"{len(given)} {what} given for {len(x)} channels")
        return cls(x, tuple(conditions), named, None if regions is None else tuple(map(str, regions)))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Channels:
        """From a CSV with the columns channel, condition, value and, if there are any, feature and region.

        One line per channel, condition and feature; all channels need the same ones.
        """
        source = Path(path)
        if not source.is_file():
            raise InputError(f"no file at {source}")
        with source.open(encoding="utf-8-sig", newline="") as lines:
            table = csv.DictReader(lines)
            missing = {"channel", "condition", "value"} - set(table.fieldnames or ())
            if missing:
                raise InputError(f"{source} lacks the column{'s' * (len(missing) > 1)} {', '.join(sorted(missing))}")
            rows = list(table)
        cells: dict[tuple[str, str, str], float] = {}
        regions: dict[str, str] = {}
        for line, row in enumerate(rows, 2):
            key = (row["channel"], row["condition"], row.get("feature") or "")
            if key in cells:
                raise InputError(f"{source}, line {line}: channel, condition and feature were there before")
            try:
                cells[key] = float(row["value"])
            except (TypeError, ValueError):
                raise InputError(f"{source}, line {line}: {row['value']!r} is no number") from None
            regions[row["channel"]] = row.get("region") or ""
        names, conditions, features = (list(dict.fromkeys(key[at] for key in cells)) for at in range(3))
        wanted = [(n, c, f) for n in names for c in conditions for f in features]
        absent = [key for key in wanted if key not in cells]
        if absent or not wanted:
            raise InputError(
                f"{source} has no value for {absent[0] if absent else 'anything'}; all channels need the same cells"
            )
        values = np.array([cells[key] for key in wanted]).reshape(len(names), len(conditions), len(features))
        known = [regions[name] for name in names]
        return cls.of(values, conditions, names=names, regions=known if any(known) else None)


@dataclass(frozen=True)
class Features:
    """A model's responses: values (n, conditions, features), n units of one site in their flat order."""

    values: NDArray[np.float64]
    conditions: tuple[str, ...]
    layout: Layout

    @classmethod
    def of(cls, model: LanguageModel, site: str, values: Any, conditions: Sequence[str]) -> Features:
        """From an array (units, conditions[, features]) over all units of a site."""
        layout = _layout(model, site)
        x = _array(values, conditions)
        if len(x) != layout.total:
            raise InputError(f"values of {len(x)} units given, but {site} has {layout.total}")
        return cls(x, tuple(conditions), layout)


def responses(
    model: LanguageModel,
    text: Corpus | Mapping[str, Iterable[Any]],
    *,
    units: str = "auto",
    skip_units: int = 4,
    band: tuple[float, float] = BAND,
    site: str = "mlp",
    special: bool = False,
    batch_tokens: int = 4096,
    quiet: bool = False,
) -> Features:
    """Amplitude spectrum of every unit's mean response to the trials of each condition, in a band of frequencies.

    text: condition (block) -> trials of equally many units of text, all conditions alike. units: "word", "character" or
    "auto". skip_units: units left out at the
    start of each trial (4 in the paper: 36 characters leave 32, and 0.5 to 2 Hz 13 bins). A nominal 4 units a second.
    """
    layout = _layout(model, site)
    labels = text.labels if isinstance(text, Corpus) else tuple(text)
    if not labels:
        raise InputError("no condition was given; name at least one, as in {'sentence 1': [trial, ...]}")
    series = []
    for name in labels:
        trials = Sentences.of(
            text.documents(name) if isinstance(text, Corpus) else text[name], unit=units, name=name, fewest=1
        )
        whole = np.arange(trials.n_units)[None]
        streams = [joined(trials, np.array([at]), whole) for at in range(len(trials))]
        plan = Plan(trials, 1, 0, 1, ())
        sums = tag_sums(
            model, plan, streams, site=site, special=special, batch_tokens=batch_tokens, title=name, quiet=quiet
        )
        series.append(sums.mean_series[skip_units:])
    lengths = {name: len(one) for name, one in zip(labels, series, strict=True)}
    if len(set(lengths.values())) > 1 or min(lengths.values()) < 4:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(
            f"after {skip_units} skipped units trials have these lengths: {shown}; all need the same, at least 4"
        )
    hz, _ = spectrum(series[0][:, :1])
    inside = (hz >= band[0]) & (hz <= band[1])
    if not inside.any():
        raise InputError(f"no frequency of {len(series[0])} units lies in {band[0]} to {band[1]} Hz")
    values = np.stack([spectrum(one.astype(np.float64))[1][inside].T for one in series], axis=1)
    return Features(values, tuple(labels), layout)


def itpc(
    trials: Any, *, sampling_rate: float, skip_seconds: float = 1.0, band: tuple[float, float] = BAND
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Frequencies in the band and inter-trial phase coherence |mean of e^(i phase)| over trials, between 0 and 1.

    trials: (..., trials, samples). Returns (bins,) Hz and (..., bins). n random phases give about sqrt(pi / 4n), so that few
    trials look coherent: compare equal numbers. skip_seconds: left out at the start of each trial.
    """
    x = np.asarray(trials, dtype=np.float64)
    if sampling_rate <= 0 or skip_seconds < 0:
        raise InputError(f"sampling_rate={sampling_rate}, skip_seconds={skip_seconds}; give samples per second above 0")
    start = round(skip_seconds * sampling_rate)
    if x.ndim < 2 or x.shape[-1] - start < 2 or x.shape[-2] < 1:
        raise InputError(f"trials of shape {x.shape} less {start} samples; (..., trials, samples) is needed")
    hz: NDArray[np.float64] = np.fft.rfftfreq(x.shape[-1] - start, d=1 / sampling_rate).astype(np.float64)
    inside = (hz >= band[0]) & (hz <= band[1])
    if not inside.any():
        raise InputError(f"no frequency of {x.shape[-1] - start} samples lies in {band[0]} to {band[1]} Hz")
    values = np.fft.rfft(x[..., start:], axis=-1)[..., inside]
    size = np.abs(values)
    phases = np.divide(values, size, out=np.zeros_like(values), where=size > 0)
    return hz[inside], np.abs(phases.mean(axis=-2))


def _array(values: Any, conditions: Sequence[str]) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim == 2:
        x = x[:, :, None]
    if x.ndim != 3 or not x.size or x.shape[1] != len(conditions) or len(set(conditions)) < len(conditions):
        raise InputError(
            f"values of shape {x.shape} for the conditions {', '.join(map(str, conditions))}; give (channels, conditions) or "
            "(channels, conditions, features), every condition once"
        )
    if not np.isfinite(x).all():
        raise InputError(f"{int((~np.isfinite(x)).sum())} values are NaN or infinite; drop those channels")
    return x


def _layout(model: LanguageModel, site: str) -> Layout:
    if site not in model.layouts:
        raise InputError(f"this model has no site {site!r}; it has {', '.join(model.layouts)}")
    return model.layouts[site]
