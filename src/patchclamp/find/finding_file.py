"""Findings on disk: a JSON file that any tool reads, and beside it the scores of all units as safetensors.

`patchclamp.sets/1` JSON: model, method, parameters, sets (label -> unit names and scores), `layout` of a finding about one
site or `layouts` of one that spans several (the flat axis holds them one after another), classes (how many), and
`unit_classes`: the class of every unit, one string per layer (of each site in turn), one letter per unit with the letters
explained in `legend`; a number before a letter repeats it ("3u2s" is "uuuss"). `scores_file` names the safetensors file and its
SHA-256; it holds scores (labels, total) float64, unit_score (total,), member (labels, total) bool and p_values.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.core.files import atomic_write, read_json, sha256_file
from patchclamp.models.units import SETS_FORMAT, Layout, UnitSet, layouts_of, save_sets

if TYPE_CHECKING:
    from patchclamp.find.finding_fields import FindingFields

SCORES_FORMAT = "patchclamp.scores/1"
SCORES_SUFFIX = ".scores.safetensors"
ARRAYS = ("scores", "unit_score", "member", "p_values")
_RUN = re.compile(r"(\d*)([a-z])")


def write(finding: FindingFields, path: str | os.PathLike[str], *, scores: bool) -> Path:
    """Write the scores file, then the JSON file that names it. Each is written whole or not at all."""
    target = Path(path)
    named = _write_scores(finding, target) if scores and finding.scores is not None else None
    extra = {
        "method": finding.method,
        "parameters": finding.parameters,
        "labels": finding.labels,
        "classes": finding.class_counts(),
        "set_classes": finding.set_classes,
        **_layout_entries(finding.layouts),
        "null": finding.null,
        "details": finding.details,
        "notes": finding.notes,
        "scores_file": named,
        "provenance": finding.provenance,
    }
    if finding.classes is not None:
        extra["unit_classes"] = _packed(finding.classes, finding.class_names, finding.layouts)
    return save_sets(target, finding.sets, **extra)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Fields of the finding in a file. InputError if the file holds sets without a finding, DamagedError if altered."""
    source = Path(path)
    data = read_json(source, format=SETS_FORMAT)
    if "method" not in data or not {"layout", "layouts"} & set(data):
        raise InputError(f"{source} holds unit sets but no finding; read it with UnitSet.load")
    try:
        fields = _fields(source, data)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as problem:
        if isinstance(problem, InputError):
            raise DamagedError(f"{source} contradicts itself: {problem}") from problem
        raise DamagedError(f"{source} is not a complete finding: {problem!r}") from problem
    return fields


def _layout_entries(layouts: Sequence[Layout]) -> dict[str, Any]:
    """`layout` for one site, as in files of the first version; `layouts` for several."""
    if len(layouts) == 1:
        return {"layout": layouts[0].to_dict()}
    return {"layouts": [layout.to_dict() for layout in layouts]}


def _fields(source: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    labels = tuple(data["labels"])
    layouts = tuple(map(Layout.from_dict, data.get("layouts") or [data["layout"]]))
    of_model = layouts_of(data["model"])
    total = sum(layout.total for layout in layouts)
    for layout in layouts:
        if of_model[layout.site] != layout:
            raise DamagedError(f"{source}: the model it names has other {layout.site} units than the finding")
    chosen = np.zeros((len(labels), total), dtype=bool)
    kept = np.full(chosen.shape, np.nan)
    for at, label in enumerate(labels):
        units, start = UnitSet.from_dict(data["sets"][label], data["model"]), 0
        if not set(units.sites) <= {layout.site for layout in layouts}:
            expected = ", ".join(layout.site for layout in layouts)
            raise DamagedError(
                f"{source}: set {label!r} holds units of {', '.join(units.sites)}, not only of {expected}"
            )
        for layout in layouts:
            where = units.positions.get(layout.site, np.zeros(0, dtype=np.int64))
            chosen[at, start + where] = True
            if units.scores is not None and len(where):
                kept[at, start + where] = units.scores[layout.site]
            start += layout.total
    fields: dict[str, Any] = {key: data[key] for key in ("method", "model", "parameters", "null", "provenance")}
    fields |= {
        "labels": labels,
        "layouts": layouts,
        "chosen": chosen,
        "notes": tuple(data["notes"]),
        "set_classes": tuple(data["set_classes"]),
        "details": data["details"],
    }
    if "unit_classes" in data:
        fields["classes"], fields["class_names"] = _unpacked(data["unit_classes"], layouts)
    arrays = _read_scores(source, data["scores_file"], labels, total)
    return fields | {"scores": None, "kept_scores": None if "scores" in arrays else kept} | arrays


def _write_scores(finding: FindingFields, target: Path) -> dict[str, str]:
    from safetensors.numpy import save_file

    arrays = {
        name: np.ascontiguousarray(getattr(finding, name)) for name in ARRAYS if getattr(finding, name) is not None
    }
    beside = target.with_name(target.stem + SCORES_SUFFIX)
    with atomic_write(beside) as part:
        save_file(arrays, part, metadata={"format": SCORES_FORMAT})
    return {"name": beside.name, "sha256": sha256_file(beside)}


def _read_scores(source: Path, named: Any, labels: tuple[str, ...], total: int) -> dict[str, NDArray[Any]]:
    """Arrays of the scores file; none if the finding was saved without or the file is not there."""
    if named is None:
        return {}
    beside = source.with_name(Path(named["name"]).name)  # only ever a file of the same folder
    if not beside.is_file():
        return {}
    if sha256_file(beside) != named["sha256"]:
        raise DamagedError(
            f"{beside} is not the scores file of {source}: it was altered, truncated, or is of another run; "
            "remove it to go without, or find again"
        )
    from safetensors.numpy import load_file

    arrays = load_file(beside)
    for name, array in arrays.items():
        expected = (total,) if name == "unit_score" else (len(labels), total)
        if array.shape != expected:
            raise DamagedError(f"{beside}: {name} has shape {array.shape}, but {source} needs {expected}")
    return {name: array for name, array in arrays.items() if name in ARRAYS}


def _packed(classes: NDArray[np.int8], names: Sequence[str], layouts: Sequence[Layout]) -> dict[str, Any]:
    letters = _letters(names)
    bounds = np.cumsum(_widths(layouts))[:-1]
    return {
        "legend": dict(zip(letters, names, strict=True)),
        "encoding": "one letter per unit; a number before a letter repeats it",
        "layers": [_runs(layer, letters) for layer in np.split(classes, bounds)],
    }


def _widths(layouts: Sequence[Layout]) -> list[int]:
    """Units of every layer of every site, in the order of the flat axis."""
    return [width for layout in layouts for width in layout.widths]


def _runs(layer: NDArray[np.int8], letters: Sequence[str]) -> str:
    if not len(layer):
        return ""
    starts = np.flatnonzero(np.diff(layer, prepend=-1))
    lengths = np.diff(starts, append=len(layer))
    return "".join(
        f"{n if n > 1 else ''}{letters[k]}" for n, k in zip(lengths.tolist(), layer[starts].tolist(), strict=True)
    )


def _unpacked(packed: Mapping[str, Any], layouts: Sequence[Layout]) -> tuple[NDArray[np.int8], tuple[str, ...]]:
    legend = packed["legend"]
    number = {letter: at for at, letter in enumerate(legend)}
    layers, widths = packed["layers"], _widths(layouts)
    if len(layers) != len(widths):
        raise ValueError(f"unit_classes has {len(layers)} layers, not {len(widths)}")
    flat: list[NDArray[np.int8]] = []
    for layer, (text, width) in enumerate(zip(layers, widths, strict=True)):
        runs = _RUN.findall(text)
        lengths = [int(count or 1) for count, _ in runs]
        if sum(lengths) != width or "".join(count + letter for count, letter in runs) != text:
            raise ValueError(f"unit_classes of layer {layer} does not describe {width} units")
        flat.append(np.repeat(np.array([number[letter] for _, letter in runs], dtype=np.int8), lengths))
    return np.concatenate(flat) if flat else np.zeros(0, dtype=np.int8), tuple(legend.values())


def _letters(names: Sequence[str]) -> list[str]:
    """One small letter per name: its first one that is still free, else any."""
    taken: list[str] = []
    for name in names:
        candidates = [*(letter for letter in name.lower() if "a" <= letter <= "z"), *map(chr, range(97, 123))]
        taken.append(next(letter for letter in candidates if letter not in taken))
    return taken
