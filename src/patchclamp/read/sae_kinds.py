"""Sparse autoencoders as dictionaries of features: ReLU, TopK, BatchTopK and JumpReLU, ready to encode, decode and clamp.

With rows x of one site, features are f = activate(z @ encoder + encoder_bias), where z is x after `normalise`, less the
decoder bias where `input_bias` says so, and x is put together again as f @ directions + decoder_bias. How the kinds
activate is in their docstrings; how they are trained in `sae_training.py`; folders of SAELens in `sae_lens.py`.

`normalise` other than "none" divides every row by a number of its own. Features are then given in the units of x, so
that a change of a feature changes x by the same amount whatever the row: what SAELens calls a feature is ours divided
by the row's scale (`SAE.scale`). The part of a row that normalising takes out is put back by `reconstruct`.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.models.features import Dictionary, decompositions

NORMALISE = ("none", "centre", "norm", "layer")
_SMALL = 1e-5  # what SAELens adds to a row's standard deviation
_LEAST = 1e-30  # of a row's length: rows of zeros stay zeros


class SAE(Dictionary):
    """A sparse autoencoder of one site of one layer; its subclasses differ in how features become active.

    encoder: (d_in, n_features). encoder_bias: (n_features,). directions: (n_features, d_in), decoder rows. decoder_bias:
    (d_in,). input_bias: subtract decoder_bias from the input. normalise: "none", "centre" (each row's mean is taken out),
    "norm" (rows are brought to length sqrt(d_in)) or "layer" (mean 0, standard deviation 1). common: labels, model,
    provenance of `Dictionary`.
    """

    def __init__(
        self,
        name: str,
        site: str,
        layer: int,
        *,
        encoder: Tensor,
        encoder_bias: Tensor,
        directions: Tensor,
        decoder_bias: Tensor,
        input_bias: bool = True,
        normalise: str = "none",
        **common: Any,
    ) -> None:
        super().__init__(name, site, layer, **common)
        if normalise not in NORMALISE:
            raise InputError(f"normalise={normalise!r} given; rows are normalised by one of {', '.join(NORMALISE)}")
        rows = directions
        if rows.dim() != 2 or not rows.numel() or not rows.is_floating_point():
            raise InputError(f"directions have shape {tuple(rows.shape)} ({rows.dtype}); (features, width) is needed")
        count, width = rows.shape
        self._directions, self.input_bias, self.normalise = rows, bool(input_bias), normalise
        self.encoder = _like(rows, "encoder", encoder, (width, count))
        self.encoder_bias = _like(rows, "encoder_bias", encoder_bias, (count,))
        self.decoder_bias = _like(rows, "decoder_bias", decoder_bias, (width,))

    @property
    def directions(self) -> Tensor:
        return self._directions

    @abc.abstractmethod
    def activate(self, pre: Tensor) -> Tensor:
        """(n, n_features) pre-activations -> features of the normalised rows."""

    def encode(self, x: Tensor) -> Tensor:
        """(n, d_in) -> (n, n_features), in the units of x."""
        return self._encoded(x)[0]

    def decode(self, f: Tensor) -> Tensor:
        """(n, n_features) -> (n, d_in): f @ directions + decoder_bias; the bias is left out where rows are normalised,
        since it then differs from row to row (`reconstruct` puts it in)."""
        explained = f.to(self.dtype) @ self._directions
        return explained if self.normalise != "none" else explained + self.decoder_bias

    def reconstruct(self, x: Tensor) -> Tensor:
        """(n, d_in) -> (n, d_in): what encoding and decoding makes of x, with all that normalising took out."""
        f, centre, scale = self._encoded(x)
        if self.normalise == "none":
            return self.decode(f)
        return self.decode(f) + scale * self.decoder_bias + centre

    def scale(self, x: Tensor) -> Tensor:
        """(n, 1): what one unit of a normalised row is in the units of x; 1 without normalising."""
        return self._placed(x.to(self.dtype))[2]

    def _encoded(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, centre, scale = self._placed(x.to(self.dtype))
        if self.input_bias:
            z = z - self.decoder_bias
        f = self.activate(torch.addmm(self.encoder_bias, z, self.encoder))
        return f if self.normalise in ("none", "centre") else f * scale, centre, scale

    def _placed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n, d_in) normalised rows, (n, 1) what was subtracted, (n, 1) what a unit of the rest is in the units of x."""
        one, zero = x.new_ones(len(x), 1), x.new_zeros(len(x), 1)
        if self.normalise == "none":
            return x, zero, one
        if self.normalise == "norm":  # operations in SAELens's order: a feature at its threshold must not flip
            factor = self.d_in**0.5 / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(_LEAST)
            return x * factor, zero, 1 / factor
        centre = x.mean(1, keepdim=True)
        z = x - centre
        if self.normalise == "centre":
            return z, centre, one
        spread = z.std(1, keepdim=True)
        return z / (spread + _SMALL), centre, spread

    def tensors(self) -> dict[str, Tensor]:
        return {
            "encoder": self.encoder,
            "encoder_bias": self.encoder_bias,
            "directions": self._directions,
            "decoder_bias": self.decoder_bias,
        }

    def settings(self) -> dict[str, Any]:
        return {"input_bias": self.input_bias, "normalise": self.normalise}

    @classmethod
    def of_parts(cls, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        parts: dict[str, Any] = {**cls.common(header), **tensors, **header["settings"]}
        return cls(**parts)


@decompositions.add("relu")
class ReLUSAE(SAE):
    """f = max(pre, 0): the first kind (Bricken et al. 2023), trained with an L1 penalty. "standard" in SAELens."""

    kind: ClassVar[str] = "relu"

    def activate(self, pre: Tensor) -> Tensor:
        return pre.relu()


@decompositions.add("topk")
class TopKSAE(SAE):
    """f keeps the k largest pre-activations of each row, and of those the positive ones (Gao et al. 2024, eq. 4).

    Of equal pre-activations at the bar the ones with the smaller index are kept, never more than k.
    """

    kind: ClassVar[str] = "topk"

    def __init__(self, *args: Any, k: int, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= self.n_features:
            raise InputError(f"k={k!r} given; a whole number from 1 to the {self.n_features} features is needed")
        self.k = k

    def activate(self, pre: Tensor) -> Tensor:
        values, indices = largest(pre, self.k)
        return torch.zeros_like(pre).scatter(1, indices, values.relu())

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "k": self.k}


class _Threshold(SAE):
    """Kinds with a bar per feature: f = max(pre, 0) where pre > threshold, otherwise 0. threshold: (n_features,)."""

    def __init__(self, *args: Any, threshold: Tensor, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self.threshold = _like(self._directions, "threshold", threshold, (self.n_features,))

    def activate(self, pre: Tensor) -> Tensor:
        return torch.where(pre > self.threshold, pre.relu(), 0)

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "threshold": self.threshold}


@decompositions.add("jumprelu")
class JumpReLUSAE(_Threshold):
    """f = pre where pre is above the feature's own trained threshold, otherwise 0 (Rajamanoharan et al. 2024, eq. 8)."""

    kind: ClassVar[str] = "jumprelu"


@decompositions.add("batchtopk")
class BatchTopKSAE(_Threshold):
    """Trained to keep the k * n largest pre-activations of a batch of n rows (Bussmann et al. 2024).

    So that rows don't depend on their neighbours, encoding keeps what is above the threshold that such batches had on
    average (their eq. 5); about k features per row come out on text like that of the training. k: what it was trained for.
    """

    kind: ClassVar[str] = "batchtopk"

    def __init__(self, *args: Any, k: float | None = None, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self.k = k

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "k": self.k}


KINDS: dict[str, type[SAE]] = {kind.kind: kind for kind in (TopKSAE, BatchTopKSAE, JumpReLUSAE, ReLUSAE)}


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their columns, (n, k) each; of equal values those in the first columns."""
    if k >= values.shape[1]:
        return values, torch.arange(values.shape[1], device=values.device).expand_as(values)
    found, indices = values.topk(k + 1, dim=1)
    tied = (found[:, k - 1] == found[:, k]).nonzero()[:, 0]
    if len(tied):  # which of equal values topk takes is not defined
        ordered = values[tied].sort(dim=1, descending=True, stable=True)
        found, indices = found.clone(), indices.clone()
        found[tied], indices[tied] = ordered.values[:, : k + 1], ordered.indices[:, : k + 1]
    return found[:, :k], indices[:, :k]


def _like(rows: Tensor, name: str, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A part in the dtype and on the device of the directions; InputError for another shape."""
    if tuple(values.shape) != shape:
        raise InputError(f"{name} has shape {tuple(values.shape)}, {shape} is needed beside the directions")
    return values.to(device=rows.device, dtype=rows.dtype)
