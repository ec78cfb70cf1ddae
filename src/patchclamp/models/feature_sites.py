"""Dictionaries beside a model: do they fit it and each other, and what files say of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.core.files import to_json
from patchclamp.models.features import Dictionary
from patchclamp.models.units import describe

Features = Mapping[str, Mapping[int, Dictionary]]  # site -> layer -> dictionary


def joined(model: Any, dictionaries: Iterable[Dictionary]) -> dict[str, dict[int, Dictionary]]:
    """The features that a LanguageModel has, and those of further dictionaries, each checked and on its layer's device.

    InputError for what doesn't fit the model or each other, MismatchError for a dictionary of another model.
    """
    found = {site: dict(layers) for site, layers in model.anatomy.features.items()}
    for one in dictionaries:
        if not isinstance(one, Dictionary):
            raise InputError(
                f"with_features takes dictionaries, not {type(one).__name__}; read one with load_dictionary"
            )
        layers = found.setdefault(one.name, {})
        others = [other for other in layers.values() if other.site != one.site]
        if one.layer in layers:
            raise InputError(f"two dictionaries called {one.name!r} of layer {one.layer} given; give one another name")
        if others:
            raise InputError(
                f"dictionaries called {one.name!r} decompose {others[0].site} and {one.site}; give one another name"
            )
        layers[one.layer] = _fitted(model, one)
    return {site: dict(sorted(layers.items())) for site, layers in found.items()}


def features_identity(features: Features) -> dict[str, Any]:
    """Plain data that files store of a model's features: site -> fingerprint of all, and every dictionary."""
    found = {}
    for site, layers in features.items():
        each = [
            {
                "layer": layer,
                "site": one.site,
                "kind": one.kind,
                "n_features": one.n_features,
                "fingerprint": one.fingerprint,
                "folder": None if one.folder is None else str(one.folder),
            }
            for layer, one in layers.items()
        ]
        mark = to_json([[entry["layer"], entry["fingerprint"]] for entry in each])
        found[site] = {"fingerprint": hashlib.sha256(mark.encode()).hexdigest(), "dictionaries": each}
    return found


def _fitted(model: Any, one: Dictionary) -> Dictionary:
    if one.model and one.model.get("fingerprint") != model.fingerprint:
        raise MismatchError(
            f"{one!r} was made for model {describe(one.model)}, but {describe(model.identity)} was given"
        )
    entry = model.anatomy.site(one.site, one.layer)
    if entry.total_experts:
        raise InputError(
            f"{one!r}: {one.site} of layer {one.layer} is split over experts; a dictionary needs a dense site, such as mlp_out"
        )
    if one.d_in != entry.total_width:
        raise InputError(
            f"{one!r} takes vectors of {one.d_in} numbers, but {one.site}.{one.layer} has {entry.total_width}"
        )
    one.check()
    held = next(model.anatomy.module(entry.path).parameters(), None)
    return one if held is None or held.is_meta else one.on(held.device)
