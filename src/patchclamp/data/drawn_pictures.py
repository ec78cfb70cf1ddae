"""Pictures drawn for tests and studies: coloured shapes on noisy ground, with or without a written word across them.

The word is the shortcut of MILAN's editing experiment (arXiv 2201.11114, section 7): in training half of the pictures carry
the word of their class, in the adversarial test every picture carries the word of another class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.data.pictures import Pictures

SHAPES = ("disc", "square", "triangle", "cross", "ring", "bars")
COLOURS = {
    "red": (0.85, 0.15, 0.15), "green": (0.15, 0.7, 0.2), "blue": (0.2, 0.3, 0.9), "yellow": (0.9, 0.85, 0.15),
    "purple": (0.6, 0.2, 0.75), "orange": (0.95, 0.55, 0.1),
}  # fmt: skip
WORDS = ("ACE", "FIN", "HUT", "JOY", "LUX", "VOW")  # one per shape; no word spells its shape
MARKERS = ("none", "own", "wrong")
SIZE = 32
STRIP, INK = 0.0, 1.0  # brightness of a word's ground and of its letters
# letters of 3 x 5 pixels, rows from the top, three bits each
_LETTERS = {
    "A": (2, 5, 7, 5, 5), "C": (7, 4, 4, 4, 7), "E": (7, 4, 6, 4, 7), "F": (7, 4, 6, 4, 4), "H": (5, 5, 7, 5, 5),
    "I": (7, 2, 2, 2, 7), "J": (1, 1, 1, 5, 7), "L": (4, 4, 4, 4, 7), "N": (5, 7, 7, 5, 5), "O": (7, 5, 5, 5, 7),
    "T": (7, 2, 2, 2, 2), "U": (5, 5, 5, 5, 7), "V": (5, 5, 5, 5, 2), "W": (5, 5, 7, 7, 5), "X": (5, 5, 2, 5, 5),
    "Y": (5, 5, 2, 2, 2),
}  # fmt: skip

Mask = NDArray[np.bool_]


def drawn_pictures(
    n: int,
    *,
    marker: str = "none",
    share: float = 1.0,
    shapes: Sequence[str] = SHAPES,
    contrast: float = 1.0,
    noise: float = 0.08,
    seed: int = 0,
    name: str | None = None,
) -> Pictures:
    """n pictures (3, 32, 32) of one shape each, the classes in turn; regions: every shape, every colour, and "text".

    marker: the word written across a picture, of its own class, of a wrong one, or none. share: of the pictures that get one.
    contrast: of shape and ground, 1 is the full colour, 0 none. noise: standard deviation of the noise on every pixel.
    """
    if marker not in MARKERS:
        raise InputError(f"marker={marker!r} given; markers are {', '.join(MARKERS)}")
    unknown = [shape for shape in shapes if shape not in SHAPES]
    if n < 1 or unknown or not shapes:
        raise InputError(
            f"{n} pictures of {', '.join(shapes) or 'no shapes'} asked for; shapes are {', '.join(SHAPES)}"
        )
    if not 0 <= share <= 1 or not 0 <= contrast <= 1 or noise < 0:
        raise InputError(
            f"share={share}, contrast={contrast}, noise={noise}: the first two lie in 0-1, noise is at least 0"
        )
    if marker == "wrong" and len(shapes) < 2:
        raise InputError("a wrong word needs at least two classes")
    rng = np.random.default_rng(seed)
    names = list(COLOURS)
    pixels = np.zeros((n, SIZE, SIZE, 3))
    regions = {concept: np.zeros((n, SIZE, SIZE), dtype=bool) for concept in (*shapes, *names, "text")}
    labels = np.arange(n) % len(shapes)
    for number, label in enumerate(labels.tolist()):
        colour = names[rng.integers(len(names))]
        where = _shape(shapes[label], rng)
        pixels[number] = _ground(rng)
        drawn = contrast * np.array(COLOURS[colour]) + (1 - contrast) * pixels[number].mean((0, 1))
        pixels[number][where] = drawn
        regions[shapes[label]][number] = where
        regions[colour][number] = where
        other = (label + 1 + int(rng.integers(max(len(shapes) - 1, 1)))) % len(shapes)
        corner = rng.choice([rng.integers(0, 3), SIZE - 7 - rng.integers(0, 3)]), rng.integers(0, SIZE - 13)
        if marker != "none" and rng.random() < share:
            written = _word(WORDS[SHAPES.index(shapes[label if marker == "own" else other])])
            box = slice(corner[0], corner[0] + 7), slice(corner[1], corner[1] + 13)
            pixels[number][box] = written[..., None]
            for concept, region in regions.items():
                region[number][box] = concept == "text"
    pixels = np.clip(pixels + rng.normal(0, noise, pixels.shape), 0, 1)
    image = torch.from_numpy((pixels * 255).round().astype(np.uint8)).permute(0, 3, 1, 2).contiguous()
    return Pictures.of(image, labels, classes=tuple(shapes), regions=regions, name=name or f"drawn, {marker} words")


def concept_pictures(n: int = 40, *, seed: int = 0) -> dict[str, Pictures]:
    """Labelled pictures of single concepts: n of each shape, of written words ("text") and of empty ground ("ground").

    In each only its own concept is marked as a region, the ground everywhere.
    """
    found = {}
    for number, shape in enumerate(SHAPES):
        made = drawn_pictures(n, shapes=(shape,), seed=seed + number)
        found[shape] = Pictures(made.pixels, made.labels, (shape,), {shape: made.regions[shape]}, shape)
    made = drawn_pictures(n, marker="own", seed=seed + len(SHAPES))
    labels = torch.zeros(n, dtype=torch.int64)
    found["text"] = Pictures(made.pixels, labels, ("text",), {"text": made.regions["text"]}, "text")
    rng = np.random.default_rng(seed + len(SHAPES) + 1)
    ground = np.stack([np.clip(_ground(rng) + rng.normal(0, 0.08, (SIZE, SIZE, 3)), 0, 1) for _ in range(n)])
    found["ground"] = Pictures.of(
        torch.from_numpy(ground).permute(0, 3, 1, 2).float(),
        classes=("ground",),
        regions={"ground": np.ones((n, SIZE, SIZE), dtype=bool)},
        name="ground",
    )
    return found


def _ground(rng: np.random.Generator) -> NDArray[np.float64]:
    """(32, 32, 3): a dull colour with a slow slope of brightness."""
    base = rng.uniform(0.3, 0.7) + rng.uniform(-0.06, 0.06, 3)
    rows, columns = np.mgrid[:SIZE, :SIZE] / SIZE - 0.5
    slope = rng.uniform(-0.15, 0.15, 2)
    return np.asarray(base + (slope[0] * rows + slope[1] * columns)[..., None])


def _shape(shape: str, rng: np.random.Generator) -> Mask:
    """(32, 32) bool: a shape somewhere, of some size."""
    radius = rng.uniform(6, 10)
    middle = rng.uniform(radius, SIZE - radius, 2)
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    y, x = (y - middle[0]) / radius, (x - middle[1]) / radius
    made: dict[str, Callable[[], Mask]] = {
        "disc": lambda: np.hypot(y, x) < 0.95,
        "square": lambda: np.maximum(abs(y), abs(x)) < 0.85,
        "triangle": lambda: (y < 0.8) & (abs(x) < (y + 1) / 1.9),
        "cross": lambda: (np.minimum(abs(y), abs(x)) < 0.3) & (np.maximum(abs(y), abs(x)) < 1),
        "ring": lambda: abs(np.hypot(y, x) - 0.78) < 0.22,
        "bars": lambda: (abs(x) < 0.95) & (np.abs(np.abs(y) - 0.6) < 0.22),
    }
    return np.asarray(made[shape]())


def _word(word: str) -> NDArray[np.float64]:
    """(7, 13): white letters of 3 x 5 pixels on a black strip."""
    strip = np.full((7, 13), STRIP)
    for number, letter in enumerate(word):
        for row, bits in enumerate(_LETTERS[letter]):
            strip[1 + row, 1 + 4 * number : 4 + 4 * number] = [(STRIP, INK)[(bits >> shift) & 1] for shift in (2, 1, 0)]
    return strip
