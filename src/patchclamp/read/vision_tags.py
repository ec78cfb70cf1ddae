"""What the cells of a picture show, said without a network: colour, brightness, texture, place; and learned concepts.

`picture_tags(pixels, grid)` needs nothing else. `ConceptTagger.of(labelled)` learns concepts from labelled pictures (Broden's
part in Network Dissection; the pictures behind CLIP-Dissect's words) by linear discriminant analysis of colours and edges of a
cell and its neighbourhood, so that its verdicts can be traced; both are taggers for `image_exemplars(tags=...)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.data.pictures import Pictures

HUES = (("red", 15), ("orange", 45), ("yellow", 70), ("green", 165), ("cyan", 195), ("blue", 265), ("purple", 320),
        ("red", 361))  # fmt: skip  # each up to so many degrees
COLOURFUL = 0.3  # saturation from which a colour has a hue
DARK, LIGHT = 0.2, 0.8  # value below which a cell is black, above which an unsaturated one is white
EDGY = 0.06  # mean gradient (per pixel, brightness in 0-1) from which a cell has edges
ALIGNED = 0.6  # share of gradient energy in one direction from which edges have it
TAKEN = 0.5  # share of a cell that must show a colour; probability from which a learned concept is seen

Tags = dict[str, NDArray[np.bool_]]


def picture_tags(pixels: Tensor, grid: tuple[int, int]) -> Tags:
    """Concept -> (n, rows * columns) bool for pixels (n, channels, height, width) in [0, 1].

    Colours: most of the cell's pixels have it. plain, edges, upright and level edges: by gradients of the channels. top, bottom,
    left, right: halves of the picture; middle: its middle quarter. Pictures of one channel have black, grey and white only.
    """
    _check(pixels, grid)
    n = len(pixels)
    tags: Tags = {}
    hue, saturation, value = _hsv(pixels)
    colours = {"black": value < DARK}
    pale = (saturation < COLOURFUL) & (value >= DARK)
    colours["white"] = pale & (value > LIGHT)
    colours["grey"] = pale & (value <= LIGHT)
    vivid = (saturation >= COLOURFUL) & (value >= DARK)
    low = 0
    for name, high in HUES:
        inside = vivid & (hue >= low) & (hue < high)
        colours[name] = colours[name] | inside if name in colours else inside
        low = high
    for name, where in colours.items():
        tags[name] = (_mean(where.float()[:, None], grid)[:, 0] > TAKEN).numpy()
    # of every channel by itself: colours may differ at equal brightness
    across, down = _gradients(pixels.flatten(0, 1))
    planes = torch.stack([across.square(), down.square(), (across.abs() + down.abs()) / 2], 1)
    energy = _mean(planes.unflatten(0, (n, -1)).mean(1), grid)
    edgy = energy[:, 2] > EDGY
    share = energy[:, 0] / (energy[:, 0] + energy[:, 1]).clamp_min(1e-12)
    tags["plain"] = (~edgy).numpy()
    tags["edges"] = edgy.numpy()
    tags["upright edges"] = (edgy & (share > ALIGNED)).numpy()
    tags["level edges"] = (edgy & (share < 1 - ALIGNED)).numpy()
    rows, columns = (np.arange(count) for count in grid)
    y, x = np.repeat((rows + 0.5) / grid[0], grid[1]), np.tile((columns + 0.5) / grid[1], grid[0])
    places = {
        "top": y < 0.5, "bottom": y > 0.5, "left": x < 0.5, "right": x > 0.5,
        "middle": (abs(y - 0.5) < 0.25) & (abs(x - 0.5) < 0.25),
    }  # fmt: skip
    for name, place in places.items():
        tags[name] = np.broadcast_to(place, (n, len(place))).copy()
    return tags


@dataclass(frozen=True, eq=False)
class ConceptTagger:
    """Concepts learned from labelled pictures; called as a tagger, it adds them to `picture_tags`.

    concepts: names. weights (features, concepts), bias (concepts,): of the linear discriminants on standardised features.
    accuracy: share of left-out labelled cells that get their own concept; share_of_largest: what always naming the most
    frequent one would get.
    """

    concepts: tuple[str, ...]
    mean: NDArray[np.float64]
    spread: NDArray[np.float64]
    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    grid: tuple[int, int]
    accuracy: float
    share_of_largest: float

    @classmethod
    def of(
        cls,
        labelled: Mapping[str, Pictures | Tensor],
        *,
        grid: tuple[int, int] = (8, 8),
        per_concept: int = 400,
        seed: int = 0,
    ) -> ConceptTagger:
        """Learn from pictures of each concept.

        labelled: concept -> pictures. If the pictures mark regions of that name, cells mostly inside them count, otherwise all
        cells. per_concept: cells of a concept, at most. A concept named "ground" is learned but never tagged.
        InputError for fewer than two concepts, or one without any cell.
        """
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        if len(labelled) < 2:
            raise InputError("at least two concepts are needed: one alone can't be told from anything")
        rng = np.random.default_rng(seed)
        names = tuple(labelled)
        cells = [_cells(name, labelled[name], grid, per_concept, rng) for name in names]
        x = np.concatenate(cells)
        y = np.repeat(np.arange(len(names)), [len(found) for found in cells])
        order = rng.permutation(len(x))
        x, y = x[order], y[order]
        mean, spread = x.mean(0), np.maximum(x.std(0), 1e-6)
        fitted, cut = (x - mean) / spread, max(1, len(x) // 5)
        even = np.full(len(names), 1 / len(names))  # how many pictures of a concept there are says nothing of the world
        kept = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=even)
        right = float((kept.fit(fitted[cut:], y[cut:]).predict(fitted[:cut]) == y[:cut]).mean())
        largest = float(np.bincount(y).max() / len(y))
        kept.fit(fitted, y)
        weights, bias = kept.coef_.T, kept.intercept_
        if len(names) == 2:  # scikit-learn keeps one column for two classes
            weights, bias = np.concatenate([-weights, weights], 1) / 2, np.concatenate([-bias, bias]) / 2
        return cls(names, mean, spread, weights, bias, grid, right, largest)

    def probabilities(self, pixels: Tensor, grid: tuple[int, int]) -> NDArray[np.float64]:
        """(n, cells, concepts): which concept each cell shows, summing to 1."""
        if grid != self.grid:
            raise InputError(f"the concepts were learned on a grid of {self.grid}, but {grid} is asked for")
        found = (cell_features(pixels, grid) - self.mean) / self.spread @ self.weights + self.bias
        found = np.exp(found - found.max(-1, keepdims=True))
        return np.asarray(found / found.sum(-1, keepdims=True))

    def __call__(self, pixels: Tensor, grid: tuple[int, int]) -> Tags:
        seen = self.probabilities(pixels, grid) > TAKEN
        learned = {name: seen[..., at] for at, name in enumerate(self.concepts) if name != "ground"}
        return {**picture_tags(pixels, grid), **learned}

    def __repr__(self) -> str:
        right = f"{self.accuracy:.0%} of left-out cells right, {self.share_of_largest:.0%} by always saying the same"
        return f"ConceptTagger({', '.join(self.concepts)}: {right})"


def cell_features(pixels: Tensor, grid: tuple[int, int]) -> NDArray[np.float64]:
    """(n, cells, features) float64: means and spreads of colour, edge energy by direction and at two scales, in the cell and
    in the 3 x 3 cells around it.
    """
    _check(pixels, grid)
    colour = pixels if pixels.shape[1] == 3 else pixels.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    grey = colour.mean(1)
    across, down = _gradients(grey)
    angle = torch.atan2(down, across) % np.pi
    strength = torch.hypot(across, down)
    bins = [strength * ((angle - at).sin().abs() < np.sin(np.pi / 8)) for at in np.arange(4) * np.pi / 4]
    fine = (grey - F.avg_pool2d(grey[:, None], 3, 1, 1, count_include_pad=False)[:, 0]).abs()
    planes = torch.stack([*colour.unbind(1), strength, fine, *bins, grey < DARK, grey > LIGHT], 1).float()
    means = _mean(planes, grid)
    squares = _mean(planes[:, :5].square(), grid)
    spread = (squares - means[:, :5].square()).clamp_min(0).sqrt()
    own = torch.cat([means, spread], 1).unflatten(2, grid)
    around = F.avg_pool2d(own, 3, 1, 1, count_include_pad=False)
    highest = F.max_pool2d(own[:, 3:], 3, 1, 1)
    return torch.cat([own, around, highest], 1).flatten(2).transpose(1, 2).double().numpy()


def _cells(
    name: str, labelled: Pictures | Tensor, grid: tuple[int, int], per_concept: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """(cells, features) of one concept."""
    pictures = labelled if isinstance(labelled, Pictures) else Pictures.of(labelled)
    found = []
    for ids, pixels in pictures.batches(256):
        features = cell_features(pixels, grid)
        inside = np.ones(features.shape[:2], dtype=bool)
        if name in pictures.regions:
            inside = (_mean(pictures.regions[name][ids].float()[:, None], grid)[:, 0] > TAKEN).numpy()
        found.append(features[inside])
    every = np.concatenate(found)
    if not len(every):
        raise InputError(f"the pictures of {name!r} mark no region that fills half a cell of the grid {grid}")
    return every[np.sort(rng.permutation(len(every))[:per_concept])]


def _mean(planes: Tensor, grid: tuple[int, int]) -> Tensor:
    """(n, planes, cells): mean over each cell."""
    return F.adaptive_avg_pool2d(planes, grid).flatten(2)


def _gradients(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Differences across and down between the two neighbours of each pixel, halved; the rim repeats itself."""
    padded = F.pad(grey[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    return (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2, (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2


def _hsv(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in degrees, saturation and value in [0, 1], each (n, height, width)."""
    colour = pixels if pixels.shape[1] == 3 else pixels.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    red, green, blue = colour.unbind(1)
    value, low = colour.amax(1), colour.amin(1)
    spread = value - low
    safe = spread.clamp_min(1e-8)
    hue = torch.where(
        value == red,
        ((green - blue) / safe) % 6,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    return hue * 60, spread / value.clamp_min(1e-8), value


def _check(pixels: Tensor, grid: tuple[int, int] | Sequence[int] | Any) -> None:
    if pixels.ndim != 4 or min(pixels.shape) < 1:
        raise InputError(f"pixels of shape {tuple(pixels.shape)} given; (pictures, channels, height, width) are needed")
    if min(grid) < 1 or grid[0] > pixels.shape[2] or grid[1] > pixels.shape[3]:
        raise InputError(f"grid={tuple(grid)} given for pictures of {tuple(pixels.shape[2:])}; each cell needs a pixel")
