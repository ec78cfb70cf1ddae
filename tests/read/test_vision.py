"""Channels of image networks: closed forms of thresholds, exemplars and masks; planted channels are described as planted."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.read.planted_vision import Planted, squares
from torch import Tensor, nn

from patchclamp.core.errors import InputError, MismatchError, ModelError
from patchclamp.data.pictures import Pictures
from patchclamp.read.describe import describe, describer_of
from patchclamp.read.description_scores import score_descriptions
from patchclamp.read.vision import (
    ImageRecording,
    VisionModel,
    accuracy,
    image_exemplars,
    record_images,
    segmentation,
)
from patchclamp.read.vision_record import Tail, TopImages

WORDS = {"terms": 3, "beam": 10}


class Ramp(nn.Module):
    """One channel: 999 times the first pixel value; what a layer of any network may be, as maps, patches or one vector."""

    def __init__(self, form: str = "map") -> None:
        super().__init__()
        self.form, self.same = form, nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        values = pixels[:, :1] * 999
        if self.form == "vector":
            values = values.mean((2, 3))
        if self.form == "patches":
            values = torch.cat([torch.full((len(pixels), 1, 1), 1e4), values.flatten(2).transpose(1, 2)], 1)
        return self.same(values).flatten(1)[:, :2].expand(-1, 2)


def ramp(n: int = 1000, size: int = 1) -> Pictures:
    levels = torch.arange(n, dtype=torch.float32) / 999
    return Pictures.of(levels[:, None, None, None].expand(n, 3, size, size))


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return squares(240, white="own", seed=3)


@pytest.fixture(scope="module")
def model(pictures: Pictures) -> VisionModel:
    return VisionModel(Planted(), pictures, layers=("units",))


@pytest.fixture(scope="module")
def recording(model: VisionModel, pictures: Pictures) -> ImageRecording:
    return record_images(model, pictures, k=10, quantile=0.9)


def test_a_unit_of_activations_0_to_999_has_the_closed_form_of_the_method() -> None:
    pictures = ramp()
    model = VisionModel(Ramp(), pictures, layers=["same"])
    made = record_images(model, pictures)
    assert made.top_ids[0, :15].tolist() == list(range(999, 984, -1))
    assert made.thresholds[0] == pytest.approx(989.01, abs=1e-3)  # linear interpolation
    assert made.positions == (1000,)


@pytest.mark.parametrize("size", [1, 7, 128])
def test_the_strongest_pictures_do_not_depend_on_order_or_batches(size: int) -> None:
    rng = np.random.default_rng(size)
    values = rng.integers(0, 40, (300, 5)).astype(np.float32)  # many ties
    tops = TopImages(5, 15)
    order = rng.permutation(300)
    for start in range(0, 300, size):
        tops.update(values[order[start : start + size]], order[start : start + size])
    for unit in range(5):
        expected = sorted(range(300), key=lambda n: (-values[n, unit], n))[:15]
        assert tops.ids[unit].tolist() == expected


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 40), positions=st.integers(1, 6), quantile=st.floats(0.01, 0.99), batch=st.integers(1, 9))
def test_the_streamed_quantile_is_numpys(n: int, positions: int, quantile: float, batch: int) -> None:
    values = torch.randn(n, 3, 1, positions, generator=torch.Generator().manual_seed(n))
    tail = Tail(3, n, positions, quantile)
    for start in range(0, n, batch):
        ids = torch.arange(start, min(start + batch, n))
        tail.update(values[ids], ids)
    expected = np.quantile(values.transpose(0, 1).flatten(1).double().numpy(), quantile, axis=1)
    np.testing.assert_allclose(tail.value(), expected, atol=1e-6)


def test_too_many_positions_are_thinned_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchclamp.read.vision_record.TAIL_BYTES", 400)
    tail = Tail(1, 1000, 1, 0.5)
    assert tail.step == 5
    tail.update(torch.arange(1000.0)[:, None, None, None], torch.arange(1000))
    assert tail.value()[0] == pytest.approx(np.quantile(np.arange(0, 1000, 5), 0.5))


def test_recording_does_not_depend_on_the_batch_size(model: VisionModel, pictures: Pictures) -> None:
    first, second = (record_images(model, pictures, k=10, quantile=0.9, batch=batch) for batch in (7, 240))
    np.testing.assert_array_equal(first.top_ids, second.top_ids)
    np.testing.assert_allclose(first.thresholds, second.thresholds, atol=1e-6)
    np.testing.assert_allclose(first.pooled, second.pooled, atol=1e-6)


def test_the_mask_of_one_hot_position_is_its_neighbourhood() -> None:
    class Hot(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same = nn.Identity()

        def forward(self, pixels: Tensor) -> Tensor:
            made = torch.zeros(len(pixels), 1, 4, 4)
            made[:, 0, 1, 2] = pixels[:, 0, 0, 0]
            return self.same(made).flatten(1)

    pictures = Pictures.of(torch.linspace(0.1, 1, 20)[:, None, None, None].expand(20, 3, 16, 16))
    model = VisionModel(Hot(), pictures, layers=["same"])
    made = segmentation(model, pictures, record_images(model, pictures, k=3, quantile=0.9), "channel.0.0")
    assert made.ids.tolist() == [19, 18, 17]
    assert made.masks.shape == (3, 1, 16, 16)
    rows, columns = torch.nonzero(made.masks[0, 0], as_tuple=True)
    assert len(rows)
    assert rows.min() >= 4 - 3  # cell 1 covers rows 4-7; bilinear weights reach less than one cell further
    assert rows.max() <= 7 + 3
    assert columns.min() >= 8 - 3
    assert columns.max() <= 11 + 3
    larger = segmentation(
        model, pictures, record_images(model, pictures, k=3, quantile=0.9), "channel.0.0", size=(224, 224)
    )
    assert larger.pixels.shape == (3, 3, 224, 224)
    assert larger.masks.shape == (3, 1, 224, 224)


@pytest.mark.parametrize(("form", "shape"), [("map", (2, 2)), ("patches", (2, 2)), ("vector", (1, 1))])
def test_maps_patches_and_vectors_are_read(form: str, shape: tuple[int, int]) -> None:
    pictures = ramp(20, size=2)
    model = VisionModel(Ramp(form), pictures, layers=["same"])
    (found,) = model.maps(pictures.batch([10]))
    assert found.shape == (1, 1, *shape)
    assert found.flatten().tolist() == pytest.approx([10.0] * shape[0] * shape[1], rel=1e-5)  # no class token


def test_planted_channels_are_described_as_planted(
    model: VisionModel, pictures: Pictures, recording: ImageRecording
) -> None:
    store = image_exemplars(model, pictures, recording, grid=(4, 4), probe=40)
    made = describe(store, options=WORDS)
    told = {unit: set(text.text.replace('tagged "', "").replace('"', "").split(" and ")) for unit, text in made.items()}
    assert told["channel.0.0"] == {"red", "top", "left"}
    assert told["channel.0.1"] == {"blue"}
    assert told["channel.0.2"] == {"white"}
    assert told["channel.0.3"] == {"green"}
    assert all(made[f"channel.0.{index}"].explains for index in range(4))
    assert [made[f"channel.0.{index}"].text for index in (4, 5)] == ["inactive", "inactive"]
    scores = score_descriptions(store, {f"channel.0.{i}": made[f"channel.0.{i}"].text for i in range(4)},
                                describer_of("words", store, WORDS), controls=3)  # fmt: skip
    assert all(row["part_auroc"] > 0.9 > row["control_part_auroc"] for row in scores.rows)


def test_the_order_of_exemplars_does_not_change_a_description(
    model: VisionModel, pictures: Pictures, recording: ImageRecording
) -> None:
    store = image_exemplars(model, pictures, recording, units=["channel.0.0"], grid=(4, 4), probe=20)
    shown = store["channel.0.0"]
    turned = type(store)([dataclasses.replace(shown, top=shown.top[::-1])], probe=store.probe, medium="image")
    assert describe(store, options=WORDS)["channel.0.0"].text == describe(turned, options=WORDS)["channel.0.0"].text


def test_exemplars_are_the_strongest_and_what_is_held_out_is_apart(
    model: VisionModel, pictures: Pictures, recording: ImageRecording
) -> None:
    store = image_exemplars(model, pictures, recording, grid=(4, 4), probe=20)
    assert len(store) == 6
    assert store.medium == "image"
    shown = store["channel.0.1"]
    (maps,) = model.maps(pictures.batch([one.document for one in shown.top]))
    strongest = maps[:, 1].amax((1, 2)).numpy()
    assert [one.value for one in shown.top] == pytest.approx(strongest.tolist(), rel=1e-5)
    assert sorted(strongest, reverse=True) == list(strongest)
    numbers = [{one.document for one in part} for part in (shown.top, shown.sample, shown.held_out)]
    assert not numbers[0] & numbers[1]
    assert not (numbers[0] | numbers[1]) & numbers[2]
    values = [one.value for one in shown.sample]
    assert values == sorted(values)
    probe = store.probe_of("channel.0.1")[3]
    expected = torch.nn.functional.max_pool2d(model.maps(pictures.batch([probe.document]))[0][:, 1], 4).flatten()
    assert probe.values.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert shown.top[0].picture is not None
    assert shown.top[0].label == ""  # describers don't see the class


def test_marked_regions_and_own_taggers_become_tags(
    model: VisionModel, pictures: Pictures, recording: ImageRecording
) -> None:
    where = torch.zeros(240, 16, 16, dtype=torch.bool)
    where[:, :4, :4] = True
    marked = dataclasses.replace(pictures, regions={"corner": where})

    def tagger(pixels: Tensor, grid: tuple[int, int]) -> dict[str, Any]:
        return {"all": np.ones((len(pixels), grid[0] * grid[1]), dtype=bool)}

    store = image_exemplars(model, marked, recording, units=["channel.0.1"], grid=(4, 4), tags=tagger, probe=5)
    tags = store["channel.0.1"].top[0].tags
    assert set(tags) == {"all", "corner"}
    assert np.flatnonzero(tags["corner"]).tolist() == [0]


def test_a_dead_and_a_constant_unit_have_empty_masks(
    model: VisionModel, pictures: Pictures, recording: ImageRecording
) -> None:
    assert recording.thresholds[4] == 0
    assert recording.thresholds[5] == 0.5
    assert recording.dead.tolist() == [False, False, False, False, True, True]
    assert recording.top_ids[4].tolist() == list(range(20))  # ties: the smaller number
    assert not segmentation(model, pictures, recording, "channel.0.4").masks.any()
    assert "dead" in repr(recording)


def test_ablating_equals_weights_of_0_and_is_undone(model: VisionModel, pictures: Pictures) -> None:
    pixels = pictures.batch(range(20))
    plain = model.logits(pixels)
    with model.ablated(model.units([])):
        assert torch.equal(model.logits(pixels), plain)
    with model.ablated(model.units([1, 3])):
        first = model.logits(pixels)
        with model.ablated(model.units([2])):
            both = model.logits(pixels)
    net = Planted()
    with torch.no_grad():
        net.head.weight[:, [1, 3]] = 0
    torch.testing.assert_close(first, net(pixels))
    with torch.no_grad():
        net.head.weight[:, 2] = 0
    torch.testing.assert_close(both, net(pixels))
    with pytest.raises(RuntimeError, match="stop"), model.ablated(model.units([1])):
        raise RuntimeError("stop")
    assert torch.equal(model.logits(pixels), plain)
    assert "forward" not in vars(model.net.units)


def test_a_network_without_units_is_the_ablated_one(pictures: Pictures) -> None:
    model = VisionModel(Planted(), pictures, layers=("conv",))
    units = model.units([1, 2])
    mended = model.removed(units)
    with model.ablated(units):
        expected = model.logits(pictures.batch(range(10)))
    torch.testing.assert_close(mended.logits(pictures.batch(range(10))), expected)
    assert mended.fingerprint != model.fingerprint
    with pytest.raises(MismatchError), mended.ablated(units):
        pass
    relu = VisionModel(Planted(), pictures, layers=("units",))
    with pytest.raises(InputError, match="no weights of it"):
        relu.removed(relu.units([0]))


def test_patch_units_are_ablated_at_all_tokens() -> None:
    pictures = ramp(20, size=2)
    model = VisionModel(Ramp("patches"), pictures, layers=["same"])
    with model.ablated(model.units([0])):
        assert not model.logits(pictures.batch([5, 6])).any()


def test_a_vision_transformer_of_transformers_is_read_at_its_patches() -> None:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=4
    )
    net = ViTForImageClassification(config).eval()
    layer = next(
        name for name, module in net.named_modules() if isinstance(module, nn.Linear) and module.out_features == 24
    )
    pictures = squares(30)
    model = VisionModel(net, pictures, layers=[layer])
    assert model.layout.widths == (24,)
    assert model.map_sizes == [(4, 4)]
    pixels = pictures.batch([0, 1])
    torch.testing.assert_close(model.logits(pixels), net(pixels).logits.detach())
    with model.ablated(model.units(range(24))):
        ablated = model.logits(pixels)
    torch.testing.assert_close(model.removed(model.units(range(24))).logits(pixels), ablated)
    assert not torch.equal(ablated, model.logits(pixels))
    made = record_images(model, pictures, k=3)
    assert len(image_exemplars(model, pictures, made, grid=(4, 4), probe=4)) == 24


def test_all_pictures_may_be_exemplars() -> None:
    pictures = squares(6)
    model = VisionModel(Planted(), pictures, layers=["units"])
    shown = image_exemplars(model, pictures, record_images(model, pictures, k=6), grid=(4, 4), probe=9)["channel.0.1"]
    assert sorted(one.document for one in shown.top) == list(range(6))
    assert (len(shown.sample), len(shown.held_out)) == (0, 0)


def test_reading_leaves_the_network_as_it_was(pictures: Pictures) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.LazyLinear(2))
    net(pictures.batch([0, 1]))
    net.train()
    net[3].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    record_images(VisionModel(net, pictures), pictures, k=3)
    assert [module.training for module in net] == [True, True, True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_units_have_names_and_networks_fingerprints(model: VisionModel, pictures: Pictures) -> None:
    assert model.units([0, 5]).names() == ["channel.0.0", "channel.0.5"]
    assert VisionModel(Planted(), pictures, layers=("units",)).fingerprint == model.fingerprint
    other = Planted()
    with torch.no_grad():
        other.head.bias[0] = 1
    assert VisionModel(other, pictures, layers=("units",)).fingerprint != model.fingerprint
    assert VisionModel(Planted(), pictures, layers=("conv",)).fingerprint != model.fingerprint
    assert accuracy(model, squares(40)) == 1.0
    assert accuracy(model, squares(40, white="wrong")) == 0.5  # all blue ones are called green


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"k": 0}, "k=0"),
        ({"k": 241}, "with 240 pictures it must be 1-240"),
        ({"quantile": 0.0}, "quantile=0.0"),
        ({"quantile": 1.0}, "quantile=1.0"),
        ({"batch": 0}, "at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(
    model: VisionModel, pictures: Pictures, how: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        record_images(model, pictures, **how)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ((), "no layers"),
        (("nothing",), "no layer 'nothing'"),
        (("conv", "conv"), "named twice"),
        (("place",), "no layer"),
    ],
)
def test_layers_that_are_not_there_are_refused(pictures: Pictures, layers: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        VisionModel(Planted(), pictures, layers=layers)


def test_networks_that_cant_be_read_are_refused(pictures: Pictures) -> None:
    with pytest.raises(InputError, match=r"no nn\.Conv2d"):
        VisionModel(nn.Flatten(), pictures)
    with pytest.raises(InputError, match="can't look at pixels"):
        VisionModel(nn.Sequential(nn.Conv2d(1, 2, 3)), pictures)
    with pytest.raises(InputError, match="class scores"):
        VisionModel(nn.Sequential(nn.Conv2d(3, 2, 3)), pictures).logits(pictures.batch([0]))
    five = nn.Sequential(nn.Unflatten(1, (3, 1)))
    with pytest.raises(InputError, match="a map, patches or one vector"):
        VisionModel(five, pictures, layers=["0"])
    tokens = nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (32, 8)), nn.Flatten(1, 2), nn.Identity())  # 96 tokens
    with pytest.raises(InputError, match=r"give grid=\(height, width\)"):
        VisionModel(tokens, pictures, layers=["3"])
    with pytest.raises(InputError, match="has 96 tokens"):
        VisionModel(tokens, pictures, layers=["3"], grid=(99, 99))
    assert VisionModel(tokens, pictures, layers=["3"], grid=(8, 12)).map_sizes == [(8, 12)]
    broken = Planted()
    with torch.no_grad():
        broken.conv.bias[0] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        VisionModel(broken, pictures, layers=["conv"])


def test_what_does_not_belong_together_is_refused(
    model: VisionModel, pictures: Pictures, recording: ImageRecording
) -> None:
    with pytest.raises(InputError, match="other pictures"):
        image_exemplars(model, squares(240, seed=9), recording)
    other = VisionModel(Planted(), pictures, layers=("conv",))
    with pytest.raises(InputError, match="another network"):
        image_exemplars(other, pictures, recording)
    with pytest.raises(MismatchError):
        image_exemplars(model, pictures, recording, units=other.units([0]))
    for units, said in (([], "no units"), (["mlp.0.1"], "no unit of an image"), (["channel.0.6"], "0-5")):
        with pytest.raises(InputError, match=said):
            image_exemplars(model, pictures, recording, units=units)
    with pytest.raises(InputError, match="grid"):
        image_exemplars(model, pictures, recording, grid=(17, 4))
    with pytest.raises(InputError, match="probe"):
        image_exemplars(model, pictures, recording, probe=0)


@pytest.mark.parametrize(
    ("pixels", "labels", "said"),
    [
        (torch.zeros(2, 3, 4), None, "pictures, channels, height, width"),
        (torch.zeros(0, 3, 4, 4), None, "are needed"),
        (torch.full((1, 3, 4, 4), float("nan")), None, "NaN"),
        (torch.full((1, 3, 4, 4), 2.0), None, "values between 0 and 1"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int32), None, "uint8"),
        (torch.zeros(2, 3, 4, 4), [0], "labels of shape"),
        (torch.zeros(2, 3, 4, 4), [-1, 0], "labels go from"),
    ],
)
def test_pictures_that_are_none_are_refused(pixels: Tensor, labels: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Pictures.of(pixels, labels)


def test_bytes_and_fractions_are_the_same_pictures() -> None:
    levels = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    fractions = Pictures.of(levels.float() / 255)
    assert torch.equal(Pictures.of(levels).batch([3, 1]), fractions.batch([3, 1]))
    assert len(fractions.subset([4, 0])) == 2
    assert fractions.fingerprint != Pictures.of(levels.flip(0)).fingerprint
    with pytest.raises(InputError, match="regions"):
        Pictures.of(levels, regions={"x": torch.zeros(5, 3, 3)})
    with pytest.raises(InputError, match="classes"):
        Pictures.of(levels, [0, 1, 2, 3, 4], classes=("a",))
