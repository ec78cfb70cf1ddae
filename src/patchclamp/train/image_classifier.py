"""A small convolutional network for labelled pictures, trained in seconds on a CPU: something for vision studies to read.

net = small_cnn(classes=6, seed=0)
train_classifier(net, pictures, epochs=12, seed=0)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from patchclamp.core.errors import InputError
from patchclamp.core.progress import progress
from patchclamp.data.pictures import Pictures


def small_cnn(*, classes: int, channels: int = 3, widths: Sequence[int] = (16, 24, 32), seed: int = 0) -> nn.Sequential:
    """Blocks of convolution, batch norm and ReLU, all but the last halving the map; then the mean over positions and a linear
    layer. The ReLUs, at which a channel of 0 is an absent one, are called relu1, relu2, ...
    """
    if classes < 2 or not widths:
        raise InputError(f"classes={classes}, widths={tuple(widths)}: at least two classes and one block are needed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential()
        before = channels
        for number, width in enumerate(widths, 1):
            net.add_module(f"conv{number}", _convolution(before, width, first=number == 1))
            net.add_module(f"norm{number}", nn.BatchNorm2d(width))
            net.add_module(f"relu{number}", nn.ReLU())
            if 1 < number < len(widths):
                net.add_module(f"pool{number}", nn.MaxPool2d(2))
            before = width
        net.add_module("mean", nn.AdaptiveAvgPool2d(1))
        net.add_module("flat", nn.Flatten())
        net.add_module("classes", nn.Linear(before, classes))
    return net


def train_classifier(
    net: nn.Module,
    pictures: Pictures,
    *,
    epochs: int = 10,
    batch: int = 64,
    rate: float = 3e-3,
    decay: float = 1e-3,
    seed: int = 0,
    quiet: bool = True,
) -> list[float]:
    """Train in place (AdamW, one-cycle rate, cross-entropy) and return the mean loss of every epoch, nats.

    The order of the pictures, and dropout on a CPU, depend on the seed alone. InputError for pictures of one class.
    """
    if len(pictures.labels.unique()) < 2:
        raise InputError(f"{pictures} are all of one class; nothing is learned from them")
    if epochs < 1 or batch < 1:
        raise InputError(f"epochs={epochs}, batch={batch}: both are at least 1")
    device = next(net.parameters()).device
    steps = epochs * -(-len(pictures) // batch)
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    net.train()
    with (
        torch.random.fork_rng(devices=[]),
        torch.enable_grad(),
        progress("train", steps, unit="steps", quiet=quiet) as advance,
    ):
        torch.manual_seed(seed)  # for dropout
        for _ in range(epochs):
            total = 0.0
            for ids in torch.randperm(len(pictures), generator=generator).split(batch):
                scores = net(pictures.batch(ids).to(device))
                loss = F.cross_entropy(scores, pictures.labels[ids].to(device))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                total += loss.item() * len(ids)
                advance(1)
            losses.append(total / len(pictures))
    net.eval()
    return losses


def _convolution(before: int, width: int, *, first: bool) -> nn.Conv2d:
    """The first one sees 5 x 5 pixels and halves the picture itself: most of the work would be at full size."""
    return nn.Conv2d(before, width, 5, stride=2, padding=2) if first else nn.Conv2d(before, width, 3, padding=1)
