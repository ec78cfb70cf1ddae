"""Files of exemplars: passages and values as JSON, the values on the probe as an array beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from patchclamp.core.errors import DamagedError, Error
from patchclamp.read.exemplar import Exemplar, Exemplars, ExemplarStore
from patchclamp.read.files import load_reading, save_reading


def write(store: ExemplarStore, path: str | os.PathLike[str]) -> Path:
    """Write a store as the reading `exemplars`."""
    values = np.stack([store[unit].probe for unit in store])
    body = {**store.to_dict(), "model": store.model, "probe": [one.to_dict() for one in store.probe]}
    body.pop("reading")
    return save_reading(path, "exemplars", body, provenance=store.provenance, arrays={"probe": values})


def read(path: str | os.PathLike[str]) -> ExemplarStore:
    """Read what `write` wrote; DamagedError if it is incomplete."""
    data, arrays = load_reading(path, "exemplars")
    try:
        units = [_unit(entry, own) for entry, own in zip(data["units"], arrays["probe"], strict=True)]
        probe = [_exemplar(entry) for entry in data["probe"]]
        return ExemplarStore(
            units, probe=probe, medium=data["medium"], model=data["model"], provenance=data["provenance"]
        )
    except (KeyError, TypeError, ValueError, IndexError, Error) as problem:
        raise DamagedError(f"{path} is no complete reading of exemplars: {problem!r}") from problem


def _unit(entry: Mapping[str, Any], probe: Any) -> Exemplars:
    top, sample, held_out = (tuple(map(_exemplar, entry[name])) for name in ("top", "sample", "held_out"))
    return Exemplars(entry["unit"], float(entry["bar"]), top, sample, held_out, probe, tuple(entry["notes"]))


def _exemplar(entry: Mapping[str, Any]) -> Exemplar:
    parts = tuple(entry["parts"])
    tags = {}
    for name, where in entry["tags"].items():
        tags[name] = np.zeros(len(parts), dtype=bool)
        tags[name][where] = True
    values = np.array(entry["values"], dtype=np.float32)
    grid = (int(entry["grid"][0]), int(entry["grid"][1])) if "grid" in entry else None
    return Exemplar(parts, values, entry["label"], entry["document"], entry["start"], tags, grid=grid)
