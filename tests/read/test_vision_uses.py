"""MILAN's three uses on networks whose answer is known: a shortcut channel is found by its description and removed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.read.planted_vision import Planted, squares

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.data.pictures import Pictures
from patchclamp.read.descriptions import Description, Descriptions
from patchclamp.read.vision import (
    VisionModel,
    ablation_curves,
    accuracy,
    audit,
    concepts_by_layer,
    criteria,
    edit_by_keywords,
    named_units,
    sensitivity,
)

TEXTS = {
    0: 'tagged "red" and tagged "top"',
    1: 'tagged "blue"',
    2: 'tagged "White" or tagged "texture"',
    3: "green things",
}


@pytest.fixture(scope="module")
def model() -> VisionModel:
    return VisionModel(Planted(), squares(4), layers=("units",))


@pytest.fixture(scope="module")
def told(model: VisionModel) -> Descriptions:
    found = [Description(f"channel.0.{unit}", text, 1.0, -0.1, -3.0, margin=5.0) for unit, text in TEXTS.items()]
    found += [Description("channel.0.4", "inactive", 0.0, 0.0, 0.0, 0.0)]
    found += [Description("channel.0.5", "white noise", -1.0, -9.0, -3.0, margin=-2.0)]
    return Descriptions(tuple(found), "words", 0.2, "image", model.identity)


@pytest.fixture(scope="module")
def clean() -> Pictures:
    return squares(80, seed=1)


def test_removing_the_shortcut_mends_the_network_and_random_units_do_not(
    model: VisionModel, told: Descriptions
) -> None:
    made = edit_by_keywords(
        model, told, ["white"], validate=squares(80, white="own", seed=1), choose=squares(40, white="wrong", seed=2),
        test=squares(80, white="wrong", seed=3), trials=4,
    )  # fmt: skip
    assert made.candidates.names() == ["channel.0.2"]  # the other one says no more than nothing does
    assert made.units == made.candidates
    assert made.plain == {"validation": 1.0, "choosing": 0.5, "test": 0.5}
    assert made.gain("keywords") == 0.5
    assert made.gain("random") <= 0
    assert made.row("keywords")["validation"] == 1.0  # the shortcut was not needed
    assert made.p is not None
    assert made.p < 0.001
    assert made.chosen["random"] == 1
    assert [row["units"] for row in made.curve if row["order"] == "keywords"] == [0, 1]
    assert made.to_dict()["units"] == ["channel.0.2"]
    with pytest.raises(InputError, match="no order"):
        made.row("nobody")


def test_without_pictures_to_choose_with_validation_decides(model: VisionModel, told: Descriptions) -> None:
    on = {"validate": squares(80, seed=1), "test": squares(80, white="wrong", seed=3), "all_units": False, "trials": 2}
    assert edit_by_keywords(model, told, ["white"], **on).chosen["keywords"] == 1  # costs nothing on clean pictures
    needed = edit_by_keywords(model, told, ["blue"], **on)
    assert needed.chosen["keywords"] == 0
    assert needed.p is None
    assert needed.gain() == 0
    assert needed.row("keywords")["choosing"] is None
    all_of_it = edit_by_keywords(model, told, ["blue", "white"], tolerance=0.9, **on)
    assert all_of_it.chosen["keywords"] == 2


def test_the_least_useful_unit_goes_first(model: VisionModel, told: Descriptions) -> None:
    on = {"validate": squares(80, seed=1), "test": squares(80, white="wrong", seed=3), "trials": 1}
    made = edit_by_keywords(model, told, ["blue", "white"], **on)
    assert [row["test"] for row in made.curve if row["order"] == "keywords"][:2] == [0.5, 1.0]
    assert made.chosen["all units"] == 5  # all but blue: what is not blue is green


def test_zeroing_by_hand_gives_the_curve(model: VisionModel, told: Descriptions, clean: Pictures) -> None:
    rows = ablation_curves(
        model, clean, {"blue": {"channel.0.1": 2.0, "channel.0.3": 1.0}}, fractions=(0, 1 / 6, 2 / 6), trials=3
    )
    assert [row["units"] for row in rows] == [0, 1, 2]
    assert rows[0]["accuracy"] == rows[0]["random"] == accuracy(model, clean) == 1.0
    for row, channels in zip(rows[1:], ([1], [1, 3]), strict=True):
        net = Planted()
        with torch.no_grad():
            net.head.weight[:, channels] = 0
        expected = (net(clean.batch(range(80))).argmax(1) == clean.labels).float()
        assert row["accuracy"] == pytest.approx(float(expected.mean()))
        assert row["classes"]["blue"] == pytest.approx(float(expected[clean.labels == 0].mean()))


def test_criteria_count_words(told: Descriptions) -> None:
    scores = criteria(told, {"colour": ["red", "white", "blue"], "texture": ["texture"]})
    assert scores["colour"] == {
        "channel.0.0": 1,
        "channel.0.1": 1,
        "channel.0.2": 1,
        "channel.0.3": 0,
        "channel.0.5": 1,
    }
    assert scores["texture"]["channel.0.2"] == 1
    assert scores["length"]["channel.0.0"] == 3  # "red" and "top"
    assert "channel.0.4" not in scores["length"]


def test_units_without_score_are_never_removed(model: VisionModel, clean: Pictures) -> None:
    (row,) = ablation_curves(
        model, clean, {"none": {"channel.0.1": 0.0, "channel.0.2": float("nan")}}, fractions=(1.0,)
    )
    assert (row["units"], row["accuracy"]) == (0, 1.0)


def test_concepts_are_counted_by_layer(model: VisionModel, told: Descriptions) -> None:
    (row,) = concepts_by_layer(model, told)
    assert {key: row[key] for key in ("layer", "units", "colour", "texture", "place", "nothing")} == {
        "layer": "units", "units": 6, "colour": 4, "texture": 0, "place": 1, "nothing": 2,
    }  # fmt: skip


def test_the_audit_ignores_case_and_may_ask_for_whole_words(model: VisionModel, told: Descriptions) -> None:
    assert audit(told, ["WHITE"]).found["network"] == ("channel.0.2",)
    assert audit(told, ["text"]).found["network"] == ()
    assert audit(told, ["text"], whole_words=False).found["network"] == ("channel.0.2",)
    assert audit(told, ["white"], explained=False).found["network"] == ("channel.0.2", "channel.0.5")
    assert audit(told, ["tagged"]).found["network"] == ()  # belongs to the form, not to what is said
    both = audit({"one": told, "other": told}, ["green things", "top"])
    assert [row["units"] for row in both.rows()] == [2, 2]
    assert both.rows()[0] == {"network": "one", "units": 2, "described": 6, "share": 2 / 6, "layers": {0: 2}}
    assert named_units(model, told, ["blue", "top"]).names() == ["channel.0.0", "channel.0.1"]


def test_sensitivity_is_1_for_what_only_the_thing_drives(model: VisionModel) -> None:
    found = sensitivity(model, squares(40, white="wrong", seed=1).subset(range(0, 40, 2)), squares(40, seed=2))
    assert found.shape == (6,)
    assert found[2] == 1.0
    assert found[4] == found[5] == 0.5  # dead and constant units
    values = [
        model.maps(pictures.batch(range(len(pictures))))[0].amax((2, 3)).numpy()[:, 0]
        for pictures in (squares(40, white="wrong", seed=1).subset(range(0, 40, 2)), squares(40, seed=2))
    ]
    pairs = values[0][:, None] - values[1][None]
    assert found[0] == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)))


def test_wrong_arguments_are_named(model: VisionModel, told: Descriptions, clean: Pictures) -> None:
    for keywords in ([], [" "]):
        with pytest.raises(InputError, match="keyword"):
            audit(told, keywords)
        with pytest.raises(InputError, match="keyword"):
            criteria(told, {"kind": keywords})
    on = {"validate": clean, "test": clean}
    with pytest.raises(InputError, match="nothing to remove"):
        edit_by_keywords(model, told, ["face"], **on)
    for wrong in ({"max_units": 0}, {"trials": 0}, {"tolerance": 1.0}):
        with pytest.raises(InputError, match="max_units"):
            edit_by_keywords(model, told, ["white"], **on, **wrong)
    for wrong in ({"fractions": ()}, {"fractions": (1.5,)}, {"trials": 0}):
        with pytest.raises(InputError):
            ablation_curves(model, clean, criteria(told), **wrong)
    other = VisionModel(Planted(), clean, layers=("conv",))
    for use in (lambda: named_units(other, told, ["white"]), lambda: concepts_by_layer(other, told)):
        with pytest.raises(MismatchError, match="another network"):
            use()
