"""What a semi-nonnegative matrix factorisation found: features, strengths of every token, how the search went."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.models.features import LinearDictionary
from patchclamp.read.files import load_reading, save_reading
from patchclamp.read.snmf_solver import Data, nonnegative
from patchclamp.record.activations import Activations

KIND = "snmf"
WORDS = 8  # shown in a row; the tokens beside them are all that were kept
_SETTLED = 200  # most sweeps of `transform`


@dataclass(frozen=True)
class Convergence:
    """How a factorisation went.

    losses: |X - G F|^2 of the state held after every iteration: never rises. searched: the objective of every iteration
    of the published alternation, which may rise. total: |X|^2. n: tokens. converged: whether it ended by itself. dead:
    features of length 0. reseeded: how often a dead feature was begun anew. init: the start that won; trials: all.
    """

    losses: tuple[float, ...]
    total: float
    n: int
    searched: tuple[float, ...] = ()
    converged: bool = False
    dead: int = 0
    reseeded: int = 0
    init: str = ""
    trials: tuple[dict[str, Any], ...] = ()

    @property
    def iterations(self) -> int:
        return len(self.losses) - 1

    @property
    def explained(self) -> float:
        """1 - |X - G F|^2 / |X|^2; 1 where the data are all 0."""
        return 1.0 if self.total == 0 else 1 - max(0.0, self.losses[-1]) / self.total

    def to_dict(self) -> dict[str, Any]:
        return {**{name: getattr(self, name) for name in self.__dataclass_fields__}, "explained": self.explained}


@dataclass(frozen=True, eq=False)
class Factors:
    """Features of a factorisation and how strong each is on every token.

    features: (k, width) float32, rows of length 1 with `parameters["keep"]` non-zeros at most (a dead one is 0), by
    decreasing share of the data. strengths: (n, k) float32, >= 0, tokens in the order of the activations. site, layer,
    model: where the activations come from, if known. contexts: per feature its strongest tokens, strongest first, and
    per label the mean strength.
    """

    features: Tensor
    strengths: Tensor
    record: Convergence
    parameters: dict[str, Any]
    site: str | None = None
    layer: int | None = None
    model: dict[str, Any] | None = None
    contexts: Sequence[dict[str, Any]] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def k(self) -> int:
        return len(self.features)

    def transform(self, activations: Activations, *, rows: int = 4096, tolerance: float = 1e-6) -> Tensor:
        """Strengths of the features on other tokens, (n, k) float32: the non-negative least-squares solution."""
        self._check_width(activations.width)
        device, dtype = self.features.device, torch.float64 if self.features.device.type == "cpu" else torch.float32
        data = Data(activations, rows, device, dtype, bool(self.parameters.get("unit_rows")), cache=0)
        f = self.features.to(dtype)
        found = []
        for _, x in data:
            target = x @ f.T
            found.append(nonnegative(target, f @ f.T, target.clamp_min(0), _SETTLED, tolerance=tolerance).float())
        return torch.cat(found)

    def explained(self, activations: Activations, *, rows: int = 4096) -> float:
        """Share of the sum of squares of other activations that the features reproduce, strengths found anew."""
        strengths = self.transform(activations, rows=rows)
        data = Data(activations, rows, self.features.device, torch.float64, bool(self.parameters.get("unit_rows")), 0)
        left = sum(float((x - strengths[where].double() @ self.features.double()).square().sum()) for where, x in data)
        return 1.0 if data.total == 0 else 1 - left / data.total

    def dictionary(
        self, name: str = "snmf", *, site: str | None = None, layer: int | None = None, model: Any = None
    ) -> LinearDictionary:
        """The features as a dictionary: directions of length 1, strengths by one linear step and a ReLU.

        The encoder is relu(x F^+) with F^+ the pseudo-inverse: the non-negative least-squares strengths wherever these
        are all positive, close to them elsewhere. Dead features are left out. InputError if the place is not known.
        """
        site, layer = site or self.site, self.layer if layer is None else layer
        if site is None or layer is None:
            raise InputError("these features don't know where they come from; give site= and layer=")
        alive = (self.features != 0).any(1)
        if not bool(alive.any()):
            raise InputError("all features are 0: the activations were, so there is nothing to make a dictionary of")
        f = self.features[alive]
        encoder = torch.linalg.pinv(f.double()).float()
        return LinearDictionary(
            name, site, layer, f.clone(), encoder=encoder, activation="relu", model=model or self.model,
            labels=[_label(self._context(int(j)), int(j)) for j in alive.nonzero()] if self.contexts else None,
            provenance=self.provenance,
        )  # fmt: skip

    def neurons(self, feature: int, top: int | None = None) -> list[tuple[int, float]]:
        """The neurons of a feature with their weights, largest magnitude first."""
        row = self.features[feature]
        order = row.abs().argsort(descending=True, stable=True)[: int((row != 0).sum())]
        return [(int(i), float(row[i])) for i in order[:top]]

    def sharing(self) -> Tensor:
        """(k, k) int64: how many neurons each two features share; their own number on the diagonal."""
        used = (self.features != 0).double()
        return (used @ used.T).long()

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per feature: share of the data, how often it is active, its neurons and strongest words."""
        energy = self.strengths.double().square().sum(0)
        share = (energy / max(self.record.total, 1e-300)).tolist()
        active = (self.strengths > 0).double().mean(0).tolist()
        found = []
        for j in range(self.k):
            context = self._context(j)
            at = "" if self.layer is None else f".{self.layer}"
            found.append(
                {
                    "feature": f"{KIND}{at}.{j}",
                    "share": share[j],
                    "active": active[j],
                    "label": context.get("label", ""),
                    "words": " ".join(
                        list(dict.fromkeys(one["token"].strip() for one in context.get("tokens", ())))[:WORDS]
                    ),
                    "neurons": " ".join(f"{i}:{weight:+.2f}" for i, weight in self.neurons(j, 5)),
                    "n_neurons": int((self.features[j] != 0).sum()),
                    "tokens": context.get("tokens", []),
                }
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        model = {key: self.model[key] for key in ("name", "fingerprint")} if self.model else None
        return {
            "reading": KIND, "site": self.site, "layer": self.layer, "model": model, "parameters": self.parameters,
            "convergence": self.record.to_dict(), "features": self.rows(), "provenance": self.provenance,
        }  # fmt: skip

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `patchclamp.reading/1`, features and strengths in a safetensors file beside it; `load` reads it."""
        body = {
            "site": self.site, "layer": self.layer, "model": self.model, "parameters": self.parameters,
            "convergence": self.record.to_dict(), "contexts": list(self.contexts),
        }  # fmt: skip
        arrays = {"features": self.features.cpu().numpy(), "strengths": self.strengths.cpu().numpy()}
        return save_reading(path, KIND, body, provenance=self.provenance, arrays=arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Factors:
        """Read what `save` wrote; DamagedError for anything else."""
        data, arrays = load_reading(path, KIND)
        try:
            record = {name: data["convergence"][name] for name in Convergence.__dataclass_fields__}
            for name in ("losses", "searched", "trials"):
                record[name] = tuple(record[name])
            kept: dict[str, Any] = {
                name: data[name] for name in ("parameters", "site", "layer", "model", "contexts", "provenance")
            }
            held: dict[str, Any] = {
                name: torch.from_numpy(np.array(arrays[name])) for name in ("features", "strengths")
            }
            return cls(**held, record=Convergence(**record), **kept)
        except (KeyError, TypeError) as problem:
            raise DamagedError(f"{path} is not a complete factorisation: {problem!r}") from problem

    def _context(self, feature: int) -> dict[str, Any]:
        return self.contexts[feature] if self.contexts else {}

    def _check_width(self, width: int) -> None:
        if width != self.features.shape[1]:
            raise InputError(
                f"activations of width {width} given; these features have {self.features.shape[1]} neurons"
            )


def _label(context: dict[str, Any], number: int) -> str:
    words = list(dict.fromkeys(one["token"].strip() for one in context.get("tokens", ())))[:3]
    return " ".join(words) or f"feature {number}"
