"""Dictionaries: features as further units of a model, so that `sae.3.17` is recorded, clamped and measured like `mlp.3.17`.

A `Dictionary` splits the vector x at one site of one layer into features f = encode(x) and puts it together again. With
`model.with_features(dictionary)` its features form a site of the model. Changing features f to g changes x to
x + decode(g) - decode(f): what the dictionary doesn't explain of x is kept, and rows without a change stay as they are,
bit for bit.
"""

from __future__ import annotations

import abc
import functools
import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.core.files import to_json
from patchclamp.core.registry import Registry
from patchclamp.models.feature_files import read_folder, write_folder
from patchclamp.models.units import SITES

FEATURES_FORMAT = "patchclamp.features/1"
ACTIVATIONS = ("identity", "relu")
_PROBES = 4
_TOLERANCE = 1e-3  # of the largest number compared, for float32; wider for coarser types

decompositions: Registry[type[Dictionary]] = Registry("decomposition", room="patchclamp.read")


class Dictionary(abc.ABC):
    """Features of what flows through one site of one layer.

    name: of the site that the features form, such as "sae"; dictionaries of several layers share one. site, layer: what is
    decomposed. labels: a name for each feature, or None. model: identity of the model that it was made for (its name and
    fingerprint are kept), or None for any that fits. provenance: how it was made.

    A subclass defines `directions`, `encode`, `decode`, `tensors`, `settings` and `of_parts`, and registers with
    `@decompositions.add("kind")`; saving, moving and fingerprints follow from these. decode must be affine:
    decode(f) = decode(0) + f @ directions.
    """

    kind: ClassVar[str] = ""

    def __init__(
        self,
        name: str,
        site: str,
        layer: int,
        *,
        labels: Sequence[str] | None = None,
        model: Any = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name in SITES:
            taken = "a site of models" if name in SITES else "no such name"
            raise InputError(f"features can't be called {name!r} ({taken}); use letters, digits and _, such as 'sae'")
        if site not in SITES or site == "head":
            raise InputError(
                f"a dictionary of site {site!r} asked for; it decomposes one of {', '.join(s for s in SITES if s != 'head')}"
            )
        if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
            raise InputError(f"a dictionary of layer {layer!r} asked for; layers count from 0")
        self.name, self.site, self.layer = name, site, layer
        self.labels = None if labels is None else tuple(str(label) for label in labels)
        identity: Mapping[str, Any] = model if isinstance(model, Mapping) else getattr(model, "identity", {})
        self.model = {key: identity[key] for key in ("name", "fingerprint") if key in identity}
        self.provenance = dict(provenance or {})
        self.folder: Path | None = None
        self._elsewhere: dict[torch.device, Self] = {}

    @property
    @abc.abstractmethod
    def directions(self) -> Tensor:
        """(n_features, d_in): what one unit of each feature adds to x (decoder rows)."""

    @abc.abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """(n, d_in) activations -> (n, n_features) features. x comes in the dictionary's dtype."""

    @abc.abstractmethod
    def decode(self, f: Tensor) -> Tensor:
        """(n, n_features) features -> (n, d_in), the part of x that they explain."""

    @abc.abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Every number that the dictionary is made of, by name."""

    @classmethod
    @abc.abstractmethod
    def of_parts(cls, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """The dictionary of `header` (as `Dictionary.header` gives it; see `common`) and `tensors`."""

    def settings(self) -> dict[str, Any]:
        """Plain data beside the tensors that decides what is computed, such as {"activation": "relu"}."""
        return {}

    @staticmethod
    def common(header: Mapping[str, Any]) -> dict[str, Any]:
        """Constructor arguments that all kinds share, from a header."""
        return {key: header.get(key) for key in ("name", "site", "layer", "labels", "model", "provenance")}

    @property
    def header(self) -> dict[str, Any]:
        """Everything but the tensors, as plain data."""
        return {
            "format": FEATURES_FORMAT,
            "kind": self.kind,
            "name": self.name,
            "site": self.site,
            "layer": self.layer,
            "d_in": self.d_in,
            "n_features": self.n_features,
            "settings": self.settings(),
            "fingerprint": self.fingerprint,
            "model": self.model,
            "labels": None if self.labels is None else list(self.labels),
            "provenance": self.provenance,
        }

    @property
    def n_features(self) -> int:
        return int(self.directions.shape[0])

    @property
    def d_in(self) -> int:
        return int(self.directions.shape[1])

    @property
    def device(self) -> torch.device:
        return self.directions.device

    @property
    def dtype(self) -> torch.dtype:
        """What features are computed in, whatever the model's dtype is."""
        return self.directions.dtype

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over kind, place, settings and all tensors rounded to bfloat16, so that the dtype doesn't matter."""
        digest = hashlib.sha256(to_json([self.kind, self.name, self.site, self.layer, self.settings()]).encode())
        for name, values in sorted(self.tensors().items()):
            digest.update(f"{name}{list(values.shape)}".encode())
            plain = values.detach().cpu().contiguous()
            rounded = plain.to(torch.bfloat16).view(torch.int16) if plain.is_floating_point() else plain
            digest.update(np.ascontiguousarray(rounded.numpy()).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same dictionary elsewhere or in another floating-point type; itself if nothing changes."""
        here = torch.device(self.device if device is None else device)
        if here.type == "cuda" and here.index is None:
            here = torch.device("cuda", torch.cuda.current_device())
        if here == self.device and dtype in (None, self.dtype):
            return self
        with torch.inference_mode(False):  # a gradient must be able to pass through what is made here
            moved = {
                name: values.to(device=here, dtype=dtype if values.is_floating_point() else None)
                for name, values in self.tensors().items()
            }
        found = self.of_parts(self.header, moved)
        found.folder = self.folder
        vars(found)["fingerprint"] = self.fingerprint
        return found

    def on(self, device: torch.device) -> Self:
        """This dictionary on a device; the copy is kept."""
        if device == self.device:
            return self
        if device not in self._elsewhere:
            self._elsewhere[device] = self.to(device)
        return self._elsewhere[device]

    def moved(self, x: Tensor, old: Tensor, new: Tensor) -> Tensor:
        """x + decode(new) - decode(old), (n, d_in) in x's dtype, for the features `old` of x.

        Rows whose features are equal are returned bit for bit. Added up in float32 at least; only features that differ
        somewhere are multiplied.
        """
        wide = torch.promote_types(x.dtype, torch.float32)
        if torch.is_grad_enabled() and (new.requires_grad or old.requires_grad):
            return (x.to(wide) + ((new - old) @ self.directions).to(wide)).to(x.dtype)
        differs = new != old
        columns = differs.any(0).nonzero()[:, 0]
        if not len(columns):
            return x
        step = (new[:, columns] - old[:, columns]) @ self.directions[columns]
        return torch.where(differs.any(1, keepdim=True), (x.to(wide) + step.to(wide)).to(x.dtype), x)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write a new folder with features.json and features.safetensors, whole or not at all; `load_dictionary` reads it."""
        self.check()
        self.folder = write_folder(Path(folder), self.header, self.tensors())
        return self.folder

    def check(self) -> None:
        """InputError for NaN or infinite numbers, shapes that don't fit together, and a decode that isn't affine."""
        for name, values in self.tensors().items():
            if values.is_floating_point() and not bool(torch.isfinite(values).all()):
                bad = int((~torch.isfinite(values)).sum())
                raise InputError(f"{name} of {self!r} holds {bad} NaN or infinite values; the dictionary can't be used")
        if self.labels is not None and len(self.labels) != self.n_features:
            raise InputError(f"{self!r} has {len(self.labels)} labels; one per feature is needed")
        try:
            with torch.no_grad():
                gap = self._probed()
        except (RuntimeError, IndexError, TypeError) as problem:
            raise InputError(f"{self!r} can't encode and decode: {str(problem).splitlines()[0]}") from problem
        limit = _TOLERANCE * max(1.0, math.sqrt(torch.finfo(self.dtype).eps / torch.finfo(torch.float32).eps))
        if not gap <= limit:
            raise InputError(
                f"{self!r}: decode is not decode(0) + f @ directions (off by {gap:.2g} of the largest number)"
            )

    def _probed(self) -> float:
        """How far decode is from affine on a few random features, relative; InputError for outputs of a wrong shape."""
        generator = torch.Generator().manual_seed(0)
        x, f = (
            torch.randn(_PROBES, width, generator=generator).to(self.device, self.dtype)
            for width in (self.d_in, self.n_features)
        )
        f[0] = 0
        features, back = self.encode(x), self.decode(f)
        for what, found, wanted in (("encode", features, self.n_features), ("decode", back, self.d_in)):
            if tuple(found.shape) != (_PROBES, wanted):
                raise InputError(f"{what} of {self!r} gives shape {tuple(found.shape)}; {(_PROBES, wanted)} is needed")
        expected = back[:1].double() + f.double() @ self.directions.double()
        return float((back.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name}.{self.layer}: {self.n_features} features of {self.site}.{self.layer})"
        )


@decompositions.add("linear")
class LinearDictionary(Dictionary):
    """f = activation(x @ encoder + encoder_bias), x ~ f @ directions + decoder_bias; any list of directions is one."""

    kind: ClassVar[str] = "linear"

    def __init__(
        self,
        name: str,
        site: str,
        layer: int,
        directions: Tensor,
        *,
        encoder: Tensor | None = None,
        encoder_bias: Tensor | None = None,
        decoder_bias: Tensor | None = None,
        activation: str = "identity",
        **common: Any,
    ) -> None:
        """directions: (n_features, d_in). encoder: (d_in, n_features), by default directions transposed. encoder_bias:
        (n_features,); decoder_bias: (d_in,). activation: "identity" or "relu". common: labels, model, provenance.
        """
        super().__init__(name, site, layer, **common)
        if activation not in ACTIVATIONS:
            raise InputError(f"activation {activation!r} given; it is one of {', '.join(ACTIVATIONS)}")
        rows = torch.as_tensor(directions)
        if rows.dim() != 2 or not rows.numel():
            raise InputError(f"directions have shape {tuple(rows.shape)}; (features, width) is needed")
        if not rows.is_floating_point():
            rows = rows.float()
        count, width = rows.shape
        self._directions, self.activation = rows, activation
        self.encoder = _given("encoder", encoder, rows.T.contiguous(), (width, count))
        self.encoder_bias = _given("encoder_bias", encoder_bias, rows.new_zeros(count), (count,))
        self.decoder_bias = _given("decoder_bias", decoder_bias, rows.new_zeros(width), (width,))

    @classmethod
    def of_directions(
        cls,
        name: str,
        site: str,
        layer: int,
        directions: Any,
        labels: Sequence[str] | None = None,
        *,
        model: Any = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Self:
        """Directions as features: each is brought to length 1, and its feature is the projection of x on it.

        directions: (n_features, d_in), an array or a list of vectors; a single vector (d_in,) is one feature. Setting a
        feature to 0 projects its direction out. InputError for a zero or non-finite direction.
        """
        rows = _float_rows(directions)
        lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        wrong = ((lengths[:, 0] == 0) | ~torch.isfinite(lengths[:, 0])).nonzero()[:, 0]
        if len(wrong):
            raise InputError(
                f"direction {int(wrong[0])} of {len(rows)} is zero or not finite; a feature needs a finite non-zero direction"
            )
        found = cls(name, site, layer, rows / lengths, labels=labels, model=model, provenance=provenance)
        found.check()
        return found

    @property
    def directions(self) -> Tensor:
        return self._directions

    def encode(self, x: Tensor) -> Tensor:
        f = x.to(self.dtype) @ self.encoder + self.encoder_bias
        return f.relu() if self.activation == "relu" else f

    def decode(self, f: Tensor) -> Tensor:
        return f.to(self.dtype) @ self._directions + self.decoder_bias

    def tensors(self) -> dict[str, Tensor]:
        return {
            "directions": self._directions,
            "encoder": self.encoder,
            "encoder_bias": self.encoder_bias,
            "decoder_bias": self.decoder_bias,
        }

    def settings(self) -> dict[str, Any]:
        return {"activation": self.activation}

    @classmethod
    def of_parts(cls, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        parts: dict[str, Any] = {**cls.common(header), **tensors, **header["settings"]}
        return cls(**parts)


def load_dictionary(
    folder: str | os.PathLike[str], *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Dictionary:
    """Read what `Dictionary.save` wrote. InputError if it is no such folder, DamagedError if its files don't hold together."""
    path = Path(folder)
    header, tensors = read_folder(path, FEATURES_FORMAT)
    try:
        kind: type[Dictionary] = LinearDictionary if header["kind"] == "linear" else decompositions[header["kind"]]
        found = kind.of_parts(header, tensors)
        found.check()
    except (KeyError, TypeError, AttributeError) as problem:
        raise DamagedError(f"{path} holds no dictionary that can be used: {problem}") from problem
    if found.fingerprint != header.get("fingerprint"):
        raise DamagedError(f"the features in {path} have been altered: they don't have the fingerprint that they say")
    found.folder = path.absolute()
    return found.to(device, dtype)


def _given(name: str, value: Tensor | None, default: Tensor, shape: tuple[int, ...]) -> Tensor:
    found = default if value is None else torch.as_tensor(value).to(default.device, default.dtype)
    if tuple(found.shape) != shape:
        raise InputError(f"{name} has shape {tuple(found.shape)}, {shape} is needed")
    return found


def _float_rows(directions: Any) -> Tensor:
    """(n, width) float32 rows of whatever array, tensor or list of vectors was given."""
    if isinstance(directions, list | tuple) and directions and isinstance(directions[0], Tensor):
        directions = torch.stack(list(directions))
    try:
        rows = torch.as_tensor(directions).detach().to(torch.float32)
    except (ValueError, TypeError, RuntimeError) as problem:
        raise InputError(f"directions are no array of numbers: {problem}") from problem
    rows = rows[None] if rows.dim() == 1 else rows
    if rows.dim() != 2 or not rows.numel():
        raise InputError(f"directions have shape {tuple(rows.shape)}; (features, width) is needed")
    return rows
