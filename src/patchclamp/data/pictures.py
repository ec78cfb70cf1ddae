"""Labelled pictures in memory: pixels, classes and, where they are known, the regions that show a concept.

pictures = Pictures.of(pixels, labels, classes=("cat", "dog"))
pictures.batch([0, 5, 7])                     # float32 in [0, 1], whatever the pixels are stored as
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from patchclamp.core.errors import InputError


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures of one size, with a class each; on the CPU.

    pixels: (n, channels, height, width), uint8 in 0-255 or floating point in [0, 1]. labels: (n,) int64, numbers of `classes`.
    regions: concept -> (n, height, width) bool, where a picture shows it; empty where nobody has marked them.
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    regions: Mapping[str, Tensor] = field(default_factory=dict)
    name: str = "pictures"

    @classmethod
    def of(
        cls,
        pixels: Any,
        labels: Any = None,
        *,
        classes: Sequence[str] | None = None,
        regions: Mapping[str, Any] | None = None,
        name: str = "pictures",
    ) -> Pictures:
        """Check and keep arrays or tensors; InputError for shapes that don't fit, NaN, or values outside the range."""
        image = torch.as_tensor(pixels).cpu()
        if image.ndim != 4 or 0 in image.shape:
            raise InputError(
                f"pixels of shape {tuple(image.shape)} given; (pictures, channels, height, width) are needed"
            )
        if image.dtype != torch.uint8:
            if not image.is_floating_point():
                raise InputError(f"pixels are {image.dtype}; give uint8 (0-255) or floating point (0-1)")
            if not bool(torch.isfinite(image).all()):
                raise InputError("some pixels are NaN or infinite; give values between 0 and 1")
            low, high = float(image.min()), float(image.max())
            if low < 0 or high > 1:
                raise InputError(
                    f"pixels lie between {low:g} and {high:g}; give values between 0 and 1 (a normalisation that the "
                    "network needs is given to VisionModel as preprocess=)"
                )
        number = (
            torch.zeros(len(image), dtype=torch.int64)
            if labels is None
            else torch.as_tensor(labels).to("cpu", torch.int64)
        )
        if number.shape != (len(image),):
            raise InputError(f"{len(image)} pictures but labels of shape {tuple(number.shape)}")
        top = int(number.max()) + 1
        names = tuple(classes) if classes is not None else tuple(str(i) for i in range(top))
        if int(number.min()) < 0 or top > len(names):
            raise InputError(f"labels go from {int(number.min())} to {top - 1}, but there are {len(names)} classes")
        marked = {concept: torch.as_tensor(mask).to("cpu", torch.bool) for concept, mask in (regions or {}).items()}
        wanted = (len(image), *image.shape[2:])
        for concept, mask in marked.items():
            if mask.shape != wanted:
                raise InputError(f"the regions of {concept!r} have shape {tuple(mask.shape)}; {wanted} is needed")
        return cls(image, number, names, marked, name)

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return int(self.pixels.shape[2]), int(self.pixels.shape[3])

    def batch(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Pixels of some pictures, (len(ids), channels, height, width) float32 in [0, 1]."""
        chosen = self.pixels[torch.as_tensor(ids, dtype=torch.int64)]
        return chosen.to(torch.float32) / 255 if chosen.dtype == torch.uint8 else chosen.to(torch.float32)

    def batches(self, size: int = 128) -> Iterator[tuple[Tensor, Tensor]]:
        """(ids, pixels) of all pictures in order; the last batch may be smaller."""
        if size < 1:
            raise InputError(f"batches of {size} pictures asked for; at least 1 is needed")
        for start in range(0, len(self), size):
            ids = torch.arange(start, min(start + size, len(self)))
            yield ids, self.batch(ids)

    def subset(self, ids: Sequence[int] | Tensor) -> Pictures:
        """Some pictures, in the order given."""
        chosen = torch.as_tensor(ids, dtype=torch.int64)
        if not len(chosen):
            raise InputError("a subset without any picture was asked for")
        marked = {concept: mask[chosen] for concept, mask in self.regions.items()}
        return Pictures(self.pixels[chosen], self.labels[chosen], self.classes, marked, self.name)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over pixels, labels and classes."""
        digest = hashlib.sha256(repr((tuple(self.pixels.shape), str(self.pixels.dtype), self.classes)).encode())
        for start in range(0, len(self), 1024):
            digest.update(self.pixels[start : start + 1024].contiguous().cpu().float().numpy().tobytes())
        digest.update(self.labels.cpu().numpy().tobytes())
        return digest.hexdigest()

    @property
    def identity(self) -> dict[str, Any]:
        """What a result says of the pictures it was made from."""
        return {
            "name": self.name,
            "pictures": len(self),
            "classes": list(self.classes),
            "fingerprint": self.fingerprint,
        }

    def __repr__(self) -> str:
        height, width = self.size
        return f"Pictures({self.name}: {len(self)} of {height} x {width}, {len(self.classes)} classes)"
