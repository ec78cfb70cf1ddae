"""The small image classifier learns, is the same for the same seed, and refuses what it can't learn from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from patchclamp.core.errors import InputError
from patchclamp.data.pictures import Pictures
from patchclamp.train.image_classifier import small_cnn, train_classifier


def halves(n: int = 64) -> Pictures:
    """Bright above or bright below."""
    pixels = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.5
    labels = torch.arange(n) % 2
    pixels[labels == 0, :, :8] += 0.5
    pixels[labels == 1, :, 8:] += 0.5
    return Pictures.of(pixels, labels, classes=("above", "below"))


def test_it_learns_and_the_same_seed_gives_the_same_weights() -> None:
    nets = [small_cnn(classes=2, widths=(8, 8), seed=seed) for seed in (3, 3, 4)]
    state = torch.get_rng_state()
    losses = [train_classifier(net, halves(), epochs=6, batch=16, seed=1) for net in nets]
    assert torch.equal(torch.get_rng_state(), state)
    assert losses[0][-1] < losses[0][0]
    assert losses[0] == losses[1] != losses[2]
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    assert not nets[0].training


def test_the_last_layer_keeps_half_the_size_twice_pooled() -> None:
    net = small_cnn(classes=3, widths=(4, 5, 6))
    sizes = {}
    values = torch.zeros(1, 3, 32, 32)
    for name, module in net.named_children():
        values = module(values) if name != "norm1" else module.eval()(values)
        sizes[name] = tuple(values.shape[1:])
    assert [sizes[f"relu{number}"] for number in (1, 2, 3)] == [(4, 16, 16), (5, 16, 16), (6, 8, 8)]
    assert sizes["classes"] == (3,)


@pytest.mark.parametrize("wrong", [{"classes": 1}, {"classes": 2, "widths": ()}])
def test_networks_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="at least two classes"):
        small_cnn(**wrong)


def test_what_nothing_is_learned_from_is_refused() -> None:
    net = small_cnn(classes=2, widths=(4,))
    with pytest.raises(InputError, match="all of one class"):
        train_classifier(net, halves().subset([0, 2, 4]))
    with pytest.raises(InputError, match="epochs=0"):
        train_classifier(net, halves(), epochs=0)
