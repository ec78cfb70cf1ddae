"""A hand-wired image network whose channels answer to known things, and pictures of coloured squares to show it.

Channels of "units": 0 red in the top left quarter, 1 blue, 2 white, 3 green, 4 dead, 5 constant. The class is the colour of the
square, blue (0) or green (1), but white outweighs both and says green: a shortcut.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from patchclamp.data.pictures import Pictures

SIZE, BLOCK = 16, 4
COLOURS = {"red": (1.0, 0.0, 0.0), "blue": (0.0, 0.0, 1.0), "green": (0.0, 1.0, 0.0), "white": (1.0, 1.0, 1.0)}


class Planted(nn.Module):
    """1 x 1 convolution, a mask of places for channel 0, ReLU, mean over positions, two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)
        self.units = nn.ReLU()
        self.head = nn.Linear(6, 2)
        weight = torch.tensor(
            [[1.0, -1, -1], [-1, -1, 1], [1, 1, 1], [-1, 1, -1], [0, 0, 0], [0, 0, 0]],
        )
        bias = torch.tensor([0.0, 0.0, -2.5, 0.0, -1.0, 0.5])
        place = torch.ones(6, SIZE, SIZE)
        place[0] = 0
        place[0, : SIZE // 2, : SIZE // 2] = 1
        self.register_buffer("place", place)
        with torch.no_grad():
            self.conv.weight.copy_(weight[:, :, None, None])
            self.conv.bias.copy_(bias)
            self.head.weight.copy_(torch.tensor([[0.0, 1, 0, 0, 0, 0], [0, 0, 5, 1, 0, 0]]))
            self.head.bias.copy_(torch.tensor([0.0, 0.02]))  # green unless blue says otherwise

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.units(self.conv(pixels) * self.place).mean((2, 3)))


def squares(n: int, *, white: str = "none", seed: int = 0) -> Pictures:
    """n pictures of a blue or green square and two red ones.

    white: one more square, on no picture ("none"), on half of the green ("own"), on all blue ones ("wrong").
    """
    rng = np.random.default_rng(seed)
    pixels = np.full((n, 3, SIZE, SIZE), 0.3) + rng.uniform(-0.02, 0.02, (n, 3, SIZE, SIZE))
    labels = np.arange(n) % 2
    per_side = SIZE // BLOCK
    for number, label in enumerate(labels.tolist()):
        places = rng.permutation(per_side**2)[:4]
        marked = {"none": False, "own": label == 1 and number % 4 == 1, "wrong": label == 0}[white]
        for what, place in zip(["green" if label else "blue", "red", "red", "white"], places.tolist(), strict=True):
            if what == "white" and not marked:
                continue
            row, column = divmod(place, per_side)
            box = slice(row * BLOCK, (row + 1) * BLOCK), slice(column * BLOCK, (column + 1) * BLOCK)
            shade = rng.uniform(0.85, 1.0) if what != "white" else rng.uniform(0.95, 1.0)
            pixels[(number, slice(None), *box)] = shade * np.array(COLOURS[what])[:, None, None]
    return Pictures.of(pixels.astype(np.float32), labels, classes=("blue", "green"), name=f"squares, {white} white")
