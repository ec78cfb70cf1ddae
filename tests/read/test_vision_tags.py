"""Tags of pictures: colours, edges and places by construction; concepts learned from labelled pictures; captions of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.read.planted_vision import COLOURS, Planted, squares
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.data.drawn_pictures import SHAPES, concept_pictures, drawn_pictures
from patchclamp.data.pictures import Pictures
from patchclamp.read.describe import describe
from patchclamp.read.exemplar_store import ExemplarStore
from patchclamp.read.vision import ConceptTagger, VisionModel, image_exemplars, picture_tags, record_images

GRID = (4, 4)


def plain(*colour: float) -> Tensor:
    return torch.tensor(colour)[None, :, None, None].expand(1, -1, 16, 16)


@pytest.mark.parametrize(
    ("colour", "name"),
    [
        ((0.9, 0.1, 0.1), "red"), ((0.9, 0.1, 0.2), "red"), ((0.9, 0.5, 0.1), "orange"), ((0.9, 0.9, 0.1), "yellow"),
        ((0.1, 0.8, 0.1), "green"), ((0.1, 0.8, 0.8), "cyan"), ((0.1, 0.1, 0.9), "blue"), ((0.6, 0.1, 0.8), "purple"),
        ((0.1, 0.1, 0.1), "black"), ((0.5, 0.5, 0.5), "grey"), ((0.95, 0.95, 0.95), "white"),
    ],
)  # fmt: skip
def test_a_plain_colour_is_one_colour_and_plain(colour: tuple[float, ...], name: str) -> None:
    tags = picture_tags(plain(*colour), GRID)
    colours = [
        tag
        for tag in ("orange", "yellow", "green", "cyan", "blue", "purple", "red", "black", "grey", "white")
        if tags[tag].any()
    ]
    assert colours == [name]
    assert tags[name].all()
    assert tags["plain"].all()
    assert not tags["edges"].any()


def test_bars_have_edges_across_them() -> None:
    columns = torch.arange(16) % 4 < 2
    upright = columns.float()[None, None, None].expand(1, 3, 16, 16)
    for pixels, yes, no in (
        (upright, "upright edges", "level edges"),
        (upright.transpose(2, 3), "level edges", "upright edges"),
    ):
        tags = picture_tags(pixels, GRID)
        assert tags[yes].all()
        assert tags["edges"].all()
        assert not tags[no].any()


def test_edges_between_colours_of_equal_brightness_count() -> None:
    pixels = plain(0.8, 0.2, 0.2).clone()
    pixels[:, :, :, 8:10] = torch.tensor([0.2, 0.8, 0.2])[None, :, None, None]
    assert picture_tags(pixels, GRID)["upright edges"][0].reshape(4, 4)[:, 2].all()


def test_places_are_halves_and_the_middle() -> None:
    tags = {name: where[0].reshape(4, 4) for name, where in picture_tags(plain(0.5, 0.5, 0.5), GRID).items()}
    assert tags["top"][:2].all()
    assert not tags["top"][2:].any()
    np.testing.assert_array_equal(tags["bottom"], ~tags["top"])
    np.testing.assert_array_equal(tags["left"], tags["top"].T)
    np.testing.assert_array_equal(tags["right"], ~tags["left"])
    assert np.flatnonzero(tags["middle"]).tolist() == [5, 6, 9, 10]


def test_grey_pictures_have_tags_too() -> None:
    tags = picture_tags(torch.full((2, 1, 8, 8), 0.9), (2, 2))
    assert tags["white"].shape == (2, 4)
    assert tags["white"].all()


def test_learned_concepts_tell_left_out_cells_and_new_pictures() -> None:
    tagger = ConceptTagger.of(concept_pictures(30, seed=1))
    assert tagger.accuracy > tagger.share_of_largest + 0.2
    assert "ground" in repr(tagger)
    new = drawn_pictures(60, marker="own", seed=77)
    pixels = new.batch(range(60))
    found = tagger(pixels, (8, 8))
    assert set(found) >= {*SHAPES, "text", "red", "top"}
    assert "ground" not in found
    where = torch.nn.functional.adaptive_avg_pool2d(new.regions["text"].float()[:, None], (8, 8)).flatten(1).numpy()
    assert found["text"][where > 0.7].mean() > 0.7  # it is where words are written
    assert found["text"][where == 0].mean() < 0.15
    np.testing.assert_allclose(tagger.probabilities(pixels, (8, 8)).sum(-1), 1)


def test_two_concepts_are_enough_and_one_is_not() -> None:
    made = {name: Pictures.of(plain(*colour).expand(6, -1, -1, -1) * torch.linspace(0.8, 1, 6)[:, None, None, None])
            for name, colour in list(COLOURS.items())[:2]}  # fmt: skip
    tagger = ConceptTagger.of(made, grid=GRID)
    tags = tagger(plain(1.0, 0.0, 0.0), GRID)
    assert tags["red"].all()
    assert not tags["blue"].any()
    with pytest.raises(InputError, match="at least two"):
        ConceptTagger.of({"red": made["red"]}, grid=GRID)
    with pytest.raises(InputError, match="learned on a grid"):
        tagger(plain(1.0, 0.0, 0.0), (2, 2))
    nowhere = Pictures(
        made["red"].pixels, made["red"].labels, ("0",), {"red": torch.zeros(6, 16, 16, dtype=torch.bool)}
    )
    with pytest.raises(InputError, match="no region"):
        ConceptTagger.of({"red": nowhere, "blue": made["blue"]}, grid=GRID)


@pytest.mark.parametrize("grid", [(0, 4), (17, 4)])
def test_grids_that_do_not_fit_are_refused(grid: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="grid"):
        picture_tags(plain(0.5, 0.5, 0.5), grid)


def test_drawn_pictures_carry_the_words_asked_for() -> None:
    own, wrong, none = (drawn_pictures(60, marker=marker, seed=4) for marker in ("own", "wrong", "none"))
    assert own.regions["text"].flatten(1).any(1).all()
    assert not none.regions["text"].any()
    half = drawn_pictures(400, marker="own", share=0.5, seed=4).regions["text"].flatten(1).any(1)
    assert 0.4 < half.float().mean() < 0.6
    assert torch.equal(own.labels, wrong.labels)
    strips = {}
    for pictures in (own, wrong):
        for number in range(60):
            where = pictures.regions["text"][number]
            strips.setdefault(pictures.name, []).append((pictures.batch([number])[0].mean(0)[where] > 0.5).tolist())
    words = {}
    for number, strip in enumerate(strips[own.name]):  # noise leaves letters readable: one word per class
        words.setdefault(int(own.labels[number]), strip)
        assert strip == words[int(own.labels[number])]
    assert all(strip != words[int(wrong.labels[number])] for number, strip in enumerate(strips[wrong.name]))
    assert all(strip in words.values() for strip in strips[wrong.name])
    assert drawn_pictures(3, seed=1).fingerprint == drawn_pictures(3, seed=1).fingerprint


@pytest.mark.parametrize("wrong", [{"marker": "x"}, {"n": 0}, {"shapes": ("star",)}, {"share": 2.0}, {"noise": -1.0},
                                   {"marker": "wrong", "shapes": ("disc",)}])  # fmt: skip
def test_pictures_that_cant_be_drawn_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        drawn_pictures(**{"n": 3, **wrong})


# --- captions of a model of the user's own ---


def store_of_squares() -> ExemplarStore:
    pictures = squares(120, white="own", seed=3)
    model = VisionModel(Planted(), pictures, layers=("units",))
    return image_exemplars(model, pictures, record_images(model, pictures, k=8, quantile=0.9), grid=GRID, probe=20)


def seen(pictures: NDArray[np.uint8], texts: Sequence[str]) -> NDArray[np.float64]:
    """A model that counts pixels of the colour that a text names; any other text fits everything a little."""
    scaled = pictures.astype(float) / 255
    columns = []
    for text in texts:
        near = [np.abs(scaled - np.array(rgb)).max(-1) < 0.2 for name, rgb in COLOURS.items() if name in text]
        columns.append(100 * near[0].mean((1, 2)) if near else np.full(len(pictures), 3.0))
    return np.stack(columns, 1)


def test_captions_are_chosen_by_a_model_and_weighed_by_a_prior() -> None:
    store = store_of_squares()
    captions = ["something", *[f"a {name} square" for name in COLOURS]]
    how = {"score": seen, "captions": captions, "full": 0.0}
    made = describe(store, describer="captions", options=how)
    assert [made[f"channel.0.{unit}"].text for unit in range(4)] == [
        "a red square", "a blue square", "a white square", "a green square",
    ]  # fmt: skip
    assert [made[f"channel.0.{unit}"].explains for unit in range(4)] == [
        False,
        True,
        True,
        True,
    ]  # all pictures are red
    assert made["channel.0.4"].text == "inactive"
    one = made["channel.0.1"]
    assert one.score == pytest.approx(one.log_probability - 0.2 * one.log_prior)


def test_captions_need_a_model_two_texts_and_pictures() -> None:
    store = store_of_squares()
    for how, said in (
        ({}, "needs score="),
        ({"score": seen, "captions": ["one"]}, "at least two"),
        ({"score": seen, "captions": ["a", "b"], "full": 2.0}, "full=2.0"),
        ({"score": lambda pictures, texts: np.zeros(3), "captions": ["a", "b"]}, "finite logits"),
    ):
        with pytest.raises(InputError, match=said):
            describe(store, describer="captions", options=how)
    with pytest.raises(InputError, match="none of the captions"):
        describe(store, describer="captions", options={"score": seen, "captions": ["a", "b"]}, candidates=["c"])
