"""What goes into an atlas, read from live objects or files: columns of statistics, findings, plain sets, effects, token maps."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.core.files import read_json, sha256_text, to_json
from patchclamp.models.units import SETS_FORMAT, UnitSet, load_sets

if TYPE_CHECKING:
    from patchclamp.find.finding import Finding
    from patchclamp.measure.effect_table import Effects
    from patchclamp.read.descriptions import Descriptions
    from patchclamp.read.token_map import TokenMap
    from patchclamp.record.recording import Recording

QUANTILES = {"q01": 0.01, "q05": 0.05, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q95": 0.95, "q99": 0.99}
_WITHOUT_COLUMNS = (
    "exemplars",
    "pooled",
    "cofiring",
    "activations",
)  # kept per document or per pair, not one number per unit


def recording_of(given: Recording | str | os.PathLike[str]) -> tuple[Recording, str | None]:
    """A recording and where it lies; from the object itself or its folder."""
    from patchclamp.record.recording import Recording

    if isinstance(given, Recording):
        return given, None
    if not isinstance(given, str | os.PathLike):
        raise InputError(f"a Recording or its folder is needed, not {type(given).__name__}")
    return Recording.open(Path(given)), str(given)


def finding_of(given: Any) -> tuple[Finding | dict[str, UnitSet], str | None]:
    """A finding, or plain named sets where that is all there is; from the object, a mapping of sets, or a file."""
    from patchclamp.find.finding import Finding

    if isinstance(given, Finding):
        return given, None
    if isinstance(given, Mapping):
        wrong = [name for name, units in given.items() if not isinstance(units, UnitSet)]
        if wrong or not given:
            raise InputError(
                f"sets are a mapping from name to UnitSet with at least one entry; {wrong or 'none'} given"
            )
        return dict(given), None
    if not isinstance(given, str | os.PathLike):
        raise InputError(f"a Finding, a mapping of unit sets or a sets file is needed, not {type(given).__name__}")
    data = read_json(given, format=SETS_FORMAT)
    complete = "method" in data and ("layout" in data or "layouts" in data)
    return (Finding.load(given) if complete else load_sets(given)), str(given)


def effects_of(given: Effects | str | os.PathLike[str]) -> tuple[Effects, str | None]:
    """Effects and where they lie; from the object or its file."""
    from patchclamp.measure.effect_table import Effects

    if isinstance(given, Effects):
        return given, None
    if not isinstance(given, str | os.PathLike):
        raise InputError(f"Effects or their file are needed, not {type(given).__name__}")
    return Effects.load(given), str(given)


def tokens_of(given: TokenMap | str | os.PathLike[str]) -> tuple[TokenMap, str | None]:
    """A map of tokens and where it lies; from the object or its file. InputError for one of raw directions, not units."""
    from patchclamp.read.token_map import TokenMap

    if not isinstance(given, TokenMap | str | os.PathLike):
        raise InputError(f"a TokenMap or its file is needed, not {type(given).__name__}")
    found = given if isinstance(given, TokenMap) else TokenMap.load(given)
    if found.own_names is not None:
        raise InputError(
            "a map of raw directions was given; an atlas is about units (make the directions features of a model)"
        )
    return found, None if isinstance(given, TokenMap) else str(given)


def descriptions_of(given: Descriptions | str | os.PathLike[str]) -> tuple[Descriptions, str | None]:
    """Descriptions and where they lie; from the object or its file. InputError for descriptions of an image network."""
    from patchclamp.read.descriptions import Descriptions

    if not isinstance(given, Descriptions | str | os.PathLike):
        raise InputError(f"Descriptions or their file are needed, not {type(given).__name__}")
    found = given if isinstance(given, Descriptions) else Descriptions.load(given)
    if found.medium != "text":
        raise InputError("descriptions of an image network were given; an atlas is about a language model")
    return found, None if isinstance(given, Descriptions) else str(given)


def model_of(source: Any) -> Mapping[str, Any]:
    """Identity of the model that a recording, a finding, sets or effects belong to; DamagedError if it is missing."""
    from patchclamp.measure.effect_table import Effects
    from patchclamp.read.descriptions import Descriptions

    if isinstance(source, Effects):
        identity = source.provenance.get("inputs", {}).get("model")
    elif isinstance(source, Mapping) and not isinstance(source, Descriptions):
        identity = next(iter(source.values())).model
    else:
        identity = source.model
    if not isinstance(identity, Mapping) or not identity.get("fingerprint") or not identity.get("sites"):
        raise DamagedError(f"a {type(source).__name__} without a model's fingerprint and sites can't go into an atlas")
    return identity


def unit_columns(name: str, statistic: Any) -> dict[str, NDArray[Any]]:
    """Column of the atlas -> one number per unit, (total,), of one statistic; none for statistics of pairs or documents.

    Statistics that the atlas does not know give every array of that shape in their state, as NAME_ARRAY.
    """
    total = statistic.layout.total
    if name == "firing":
        return {
            "n": np.full(total, int(np.sum(statistic.n))),
            "fired": np.asarray(statistic.counts).sum(axis=0),
            "rate": statistic.rate,
        }
    if name == "moments":
        columns = {"mean": statistic.mean, "sd": statistic.std, "min": statistic.min, "max": statistic.max}
        return {"n": np.full(total, int(statistic.n)), **columns}
    if name == "histogram":
        return dict(zip(QUANTILES, statistic.quantiles(list(QUANTILES.values())), strict=True))
    if name in _WITHOUT_COLUMNS:
        return {}
    arrays = {key: np.asarray(values) for key, values in statistic.state().items()}
    return {
        f"{name}_{key}": values
        for key, values in arrays.items()
        if values.shape == (total,) and values.dtype.kind in "iufb"
    }


def run_entries(source: Any, where: str | None) -> dict[str, Any]:
    """Columns of the table `runs` for a recording, a finding, sets, effects or tokens."""
    made: Mapping[str, Any] = dict(getattr(source, "provenance", None) or {})
    return {
        "method": _method(source),
        "call": made.get("call"),
        "fingerprint": getattr(source, "fingerprint", None) or content_fingerprint(source),
        "source": where,
        "arguments": made.get("arguments") or {},
        "inputs": made.get("inputs") or {},
        "seed": made.get("seed"),
        "versions": made.get("versions") or {},
        "created": made.get("created"),
    }


def _method(source: Any) -> str | None:
    """What a reading or a finding was made with; None for recordings, plain sets and effects."""
    from patchclamp.find.finding import Finding
    from patchclamp.read.descriptions import Descriptions
    from patchclamp.read.token_map import TokenMap

    if isinstance(source, TokenMap):
        return "tokens"
    if isinstance(source, Descriptions):
        return source.describer
    return source.method if isinstance(source, Finding) else None


def content_fingerprint(source: Any) -> str:
    """Hex SHA-256 over what a finding, sets, effects or a reading say; the same before saving and after loading."""
    from patchclamp.find.finding import Finding
    from patchclamp.measure.effect_table import Effects
    from patchclamp.read.descriptions import Descriptions
    from patchclamp.read.token_map import TokenMap

    model = model_of(source)["fingerprint"]
    if isinstance(source, TokenMap):
        return _hashed([model, list(source.positions), dict(source.parameters)], _arrays_of(source))
    if isinstance(source, Finding):
        sites = source.sites[0] if len(source.sites) == 1 else list(source.sites)
        named = [model, source.method, sites, list(source.labels), source.parameters]
        return _hashed(named, {name: getattr(source, name, None) for name in ("chosen", "scores", "classes")})
    if isinstance(source, Effects):
        said: Any = [source.rows, _units_of_effects(source)]
    elif isinstance(source, Descriptions):
        said = [source.to_dict()]
    else:
        said = [{name: units.to_dict() for name, units in source.items()}]
    return sha256_text(to_json([model, *said]))


def _arrays_of(tokens: TokenMap) -> dict[str, NDArray[Any]]:
    ends = {name: getattr(tokens, name) for name in ("top_ids", "top_values", "bottom_ids", "bottom_values")}
    return {**dict(tokens.positions), **ends}


def _hashed(named: Any, arrays: Mapping[str, NDArray[Any] | None]) -> str:
    digest = hashlib.sha256(to_json(named).encode())
    for name, values in arrays.items():
        digest.update(name.encode())
        if values is not None:
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def sets_of_effects(effects: Effects) -> dict[str, UnitSet]:
    """The clamped sets that effects carry in their provenance, by name."""
    model = model_of(effects)
    return {name: UnitSet.of(model, entry["units"]) for name, entry in _units_of_effects(effects).items()}


def _units_of_effects(effects: Effects) -> dict[str, Any]:
    found = effects.provenance.get("inputs", {}).get("sets", {})
    return {name: entry for name, entry in found.items() if isinstance(entry, Mapping) and "units" in entry}
