"""Features are units: shown as encode says, changed as decode says, bit for bit untouched otherwise, and refused where wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.models import LinearDictionary, UnitSet, load, load_dictionary
from patchclamp.models.collect import collect
from patchclamp.models.features import Dictionary
from patchclamp.models.hooks import Seen, change, changed_layers, observe, run
from patchclamp.models.selfcheck import check_model
from patchclamp.models.tiny import tiny_model

WIDTH = 32
IDS = torch.randint(3, 300, (3, 8), generator=torch.Generator().manual_seed(0))
LEFT = torch.ones_like(IDS)
LEFT[0, :3] = 0
RIGHT = torch.ones_like(IDS)
RIGHT[0, 5:] = 0
SITES = ("resid", "mlp_out", "attn_out", "attn", "mlp", "q")


def dictionary(layer: int = 1, site: str = "resid", width: int = WIDTH, seed: int = 0, **more: Any) -> LinearDictionary:
    generator = torch.Generator().manual_seed(seed)
    rows, encoder = (torch.randn(shape, generator=generator) for shape in ((7, width), (width, 7)))
    bias, offset = torch.randn(7, generator=generator), torch.randn(width, generator=generator)
    more = {"activation": "relu", "encoder_bias": bias, "decoder_bias": offset, **more}
    return LinearDictionary(more.pop("name", "sae"), site, layer, rows, encoder=encoder, **more)


@pytest.fixture(params=["tiny_gpt2", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def width_of(model: Any, site: str) -> int:
    return model.layouts[site].widths[1]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("mask", [None, LEFT, RIGHT], ids=["plain", "left", "right"])
def test_what_is_seen_is_encode_of_what_is_there(model: Any, site: str, mask: Tensor | None) -> None:
    one = dictionary(site=site, width=width_of(model, site))
    found = collect(model.with_features(one), "sae", IDS, mask)
    there = collect(model, site, IDS, mask)[..., model.layouts[site].slice(1)]
    torch.testing.assert_close(found, (there @ one.encoder + one.encoder_bias).relu())


@pytest.mark.parametrize("site", SITES)
def test_a_change_moves_the_vector_by_decode_and_keeps_what_is_not_explained(model: Any, site: str) -> None:
    one = dictionary(site=site, width=width_of(model, site))
    featured, factor = model.with_features(one), torch.linspace(-1, 2, 7)

    def by_hand(seen: Seen) -> Tensor:
        f = one.encode(seen.values)
        return seen.values + one.decode(f * factor) - one.decode(f)

    with change(model, {(site, 1): by_hand}):
        expected = model.logits(IDS, LEFT)
    with change(featured, {("sae", 1): lambda seen: seen.values * factor}):
        found = featured.logits(IDS, LEFT)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.equal(found, model.logits(IDS, LEFT))


def test_equal_features_leave_the_model_bit_for_bit(model: Any) -> None:
    featured, plain = model.with_features(dictionary()), model.logits(IDS, LEFT)
    for function in (lambda seen: seen.values, lambda seen: seen.values.clone(), lambda seen: seen.values * 1.0):
        with change(featured, {("sae", 1): function}):
            assert torch.equal(featured.logits(IDS, LEFT), plain)
    with observe(featured, [("sae", 1)], lambda seen: None):
        assert torch.equal(featured.logits(IDS, LEFT), plain)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_rows_without_a_change_stay_bit_for_bit_whatever_happens_to_others(kind: torch.dtype) -> None:
    one, x = dictionary(), torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(1)).to(kind)
    x[3] = -0.0
    old = one.encode(x.float())
    new = old.clone()
    new[::4, 2] += 1
    moved = one.moved(x, old, new)
    still = torch.arange(20) % 4 != 0
    assert torch.equal(moved[still].view(torch.int16), x[still].view(torch.int16))
    torch.testing.assert_close(moved[::4].float(), (x[::4].float() + one.directions[2]), rtol=1e-2, atol=2e-2)
    assert moved.dtype is kind


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_moved_is_x_plus_decode_of_new_minus_decode_of_old(data: st.DataObject) -> None:
    one = dictionary(seed=data.draw(st.integers(0, 5)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    x = torch.randn(5, WIDTH, generator=generator, dtype=torch.float32)
    old = one.encode(x)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=35, max_size=35))).view(5, 7)
    new = torch.where(mask, torch.randn(5, 7, generator=generator), old)
    torch.testing.assert_close(one.moved(x, old, new), x + one.decode(new) - one.decode(old), rtol=1e-4, atol=1e-4)


def test_gradients_pass_through_features_even_where_they_are_set_to_what_they_are(model: Any) -> None:
    featured = model.with_features(dictionary())
    scale = torch.ones((), requires_grad=True)
    with change(featured, {("sae", 1): lambda seen: seen.values * scale}):
        value = featured.logits(IDS, grad=True)[..., 5].sum()
    (slope,) = torch.autograd.grad(value, scale)

    def at(factor: float) -> float:
        with change(featured, {("sae", 1): lambda seen: seen.values * factor}):
            return float(featured.logits(IDS)[..., 5].double().sum())

    expected = (at(1.005) - at(0.995)) / 0.01
    assert abs(float(slope) - expected) < 0.05 * max(abs(expected), 1.0)


def test_several_layers_make_one_site_and_several_dictionaries_nest(model: Any) -> None:
    low, high, other = dictionary(0), dictionary(2, seed=1), dictionary(1, "mlp_out", name="Topics_2")
    featured = model.with_features(low, high).with_features(other)
    assert featured.layouts["sae"].widths == (7, 0, 7)
    assert featured.layouts["Topics_2"].widths == (0, 7, 0)
    assert "sae" not in model.layouts
    plain = model.logits(IDS)
    taps = [("sae", 0), ("Topics_2", 1), ("resid", 0), ("sae", 2)]
    with change(featured, {("sae", 0): lambda seen: seen.values * 2}):
        assert changed_layers(featured) == [0]
        outer = featured.logits(IDS)
        with pytest.raises(KeyError), change(featured, dict.fromkeys(taps, lambda seen: seen.values + 1)):
            assert not torch.equal(featured.logits(IDS), outer)
            raise KeyError
        assert torch.equal(featured.logits(IDS), outer)
    assert torch.equal(model.logits(IDS), plain)
    assert changed_layers(model) == []


def test_two_models_with_dictionaries_of_one_name_do_not_mix(model: Any) -> None:
    first, second = dictionary(seed=0), dictionary(seed=1)
    a, b = model.with_features(first), model.with_features(second)
    seen: dict[str, Tensor] = {}
    with (
        observe(a, [("sae", 1)], lambda one: seen.update(a=one.values)),
        observe(b, [("sae", 1)], lambda one: seen.update(b=one.values)),
        observe(model, [("resid", 1)], lambda one: seen.update(x=one.values)),
    ):
        model.logits(IDS)
    torch.testing.assert_close(seen["a"], first.encode(seen["x"]))
    torch.testing.assert_close(seen["b"], second.encode(seen["x"]))


def test_a_run_stops_at_the_layer_that_a_dictionary_decomposes(model: Any) -> None:
    featured, seen = model.with_features(dictionary(0)), []
    with observe(featured, [("sae", 0), ("resid", 1)], lambda one: seen.append(one.site)):
        run(featured, IDS, stop_after=("sae", 0))
    assert seen == ["sae"]


def test_the_check_of_a_model_passes_with_features(model: Any) -> None:
    report = check_model(model.with_features(dictionary()))
    assert report.passed
    assert "sae 7" in next(check.said for check in report.checks if check.name == "sites")


def test_bfloat16_models_keep_features_in_float32() -> None:
    small = load(tiny_model("llama").to(torch.bfloat16), check=False)
    one = LinearDictionary("sae", "resid", 0, torch.eye(32) * 2, encoder=torch.eye(32) / 2)
    featured, ids, seen = small.with_features(one), IDS % 190, []
    plain = small.logits(ids)
    with observe(featured, [("sae", 0)], lambda one: seen.append(one.values)):
        featured.logits(ids)
    assert seen[0].dtype is torch.float32
    with change(featured, {("sae", 0): lambda seen: seen.values.to(torch.bfloat16)}):  # the halves are exact
        assert torch.equal(featured.logits(ids), plain)
    with change(featured, {("sae", 0): lambda seen: seen.values + 3}):
        assert featured.logits(ids).dtype is torch.bfloat16


def test_directions_become_unit_vectors_that_zero_projects_out(model: Any) -> None:
    rows = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(3))
    one = LinearDictionary.of_directions("dirs", "resid", 1, rows, labels=["a", "b", "c", "d"], model=model)
    torch.testing.assert_close(one.directions.norm(dim=1), torch.ones(4))
    featured = model.with_features(one)
    torch.testing.assert_close(
        collect(featured, "dirs", IDS),
        collect(model, "resid", IDS)[..., model.layouts["resid"].slice(1)] @ (rows / rows.norm(dim=1, keepdim=True)).T,
    )
    function = lambda seen: torch.cat([seen.values[:, :1] * 0, seen.values[:, 1:]], 1)  # noqa: E731
    with change(featured, {("dirs", 1): function}):
        left = collect(featured, "resid", IDS)[..., model.layouts["resid"].slice(1)] @ one.directions[0]
    assert float(left.abs().max()) < 1e-4


def test_identity_says_what_the_features_are(model: Any) -> None:
    a, b = model.with_features(dictionary(0)), model.with_features(dictionary(0, seed=1))
    assert "features" not in model.identity
    assert a.fingerprint == b.fingerprint == model.fingerprint
    assert a.identity["sites"]["sae"] == {"widths": [7, 0, 0], "experts": [0, 0, 0]}
    assert a.identity["features"]["sae"]["fingerprint"] != b.identity["features"]["sae"]["fingerprint"]
    mine = UnitSet.of(a, ["sae.0.3", "mlp.1.2"])
    with pytest.raises(MismatchError, match="under that name"):
        mine.check_model(b)
    with pytest.raises(MismatchError, match=r"with_features"):
        mine.check_model(model)
    UnitSet.of(a, ["mlp.1.2"]).check_model(b)
    with pytest.raises(InputError, match=r"no site 'sae'.*with_features"):
        UnitSet.of(model, ["sae.0.3"])


def test_sets_join_across_models_with_other_features(model: Any, tmp_path: Any) -> None:
    a = model.with_features(dictionary(0))
    b = model.with_features(dictionary(1, name="nmf"))
    base, first, second = UnitSet.of(model, ["mlp.1.2"]), UnitSet.of(a, ["sae.0.3"]), UnitSet.of(b, ["nmf.1.0"])
    joined = base | first | second
    assert sorted(joined.names()) == ["mlp.1.2", "nmf.1.0", "sae.0.3"]
    assert (joined - first).names() == ["mlp.1.2", "nmf.1.0"]
    joined.check_model(a.with_features(dictionary(1, name="nmf")))
    assert UnitSet.load(joined.save(tmp_path / "sets.json")) == joined
    with pytest.raises(MismatchError, match="sae"):
        first | UnitSet.of(model.with_features(dictionary(0, seed=4)), ["sae.0.1"])
    other = first.matched_random(1)
    assert other.sites == ("sae",)
    assert not len(other & first)


@given(seed=st.integers(0, 100), labels=st.booleans(), relu=st.booleans())
@settings(max_examples=10, deadline=None)
def test_folders_hold_everything(tmp_path_factory: pytest.TempPathFactory, seed: int, labels: bool, relu: bool) -> None:
    folder = tmp_path_factory.mktemp("features") / "one"
    one = dictionary(
        seed=seed,
        labels=list("abcdefg") if labels else None,
        activation="relu" if relu else "identity",
        model={"name": "m", "fingerprint": "f", "sites": {}},
        provenance={"seed": seed},
    )
    again = load_dictionary(one.save(folder))
    assert again.header == one.header
    assert again.fingerprint == one.fingerprint
    assert again.folder == folder.absolute()
    for name, values in one.tensors().items():
        assert torch.equal(again.tensors()[name], values)
    assert again.to(dtype=torch.bfloat16).fingerprint == one.fingerprint
    assert load_dictionary(folder, dtype=torch.bfloat16).dtype is torch.bfloat16


def test_fingerprints_tell_place_and_numbers_apart_but_not_labels() -> None:
    marks = [dictionary(), dictionary(seed=1), dictionary(2), dictionary(site="mlp_out"), dictionary(name="b")]
    marks.append(dictionary(activation="identity"))
    assert len({one.fingerprint for one in marks}) == len(marks)
    assert dictionary(labels=list("abcdefg")).fingerprint == dictionary().fingerprint


def test_damaged_folders_are_named(tmp_path: Any) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load_dictionary(tmp_path / "none")
    with pytest.raises(InputError, match=r"no features\.json"):
        load_dictionary(tmp_path)
    folder = dictionary().save(tmp_path / "one")
    with pytest.raises(InputError, match="exists already"):
        dictionary().save(folder)
    numbers, header = folder / "features.safetensors", folder / "features.json"
    whole, text = numbers.read_bytes(), header.read_text()
    numbers.write_bytes(whole[:-4])
    with pytest.raises(DamagedError, match="truncated or has been altered"):
        load_dictionary(folder)
    numbers.write_bytes(whole)
    header.write_text(text.replace('"layer": 1', '"layer": 2'))
    with pytest.raises(DamagedError, match="altered"):
        load_dictionary(folder)
    header.write_text(text.replace('"kind": "linear"', '"kind": "magic"'))
    with pytest.raises(InputError, match="no decomposition is called 'magic'"):
        load_dictionary(folder)
    header.write_text(text.replace('"settings"', '"set"'))
    with pytest.raises(DamagedError, match="no dictionary that can be used"):
        load_dictionary(folder)
    numbers.unlink()
    header.write_text(text)
    with pytest.raises(DamagedError, match="missing"):
        load_dictionary(folder)


class Bent(LinearDictionary):
    def decode(self, f: Tensor) -> Tensor:
        return super().decode(f).square()


class Short(LinearDictionary):
    def encode(self, x: Tensor) -> Tensor:
        return super().encode(x)[:, 1:]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: dictionary(name="mlp"), "a site of models"),
        (lambda: dictionary(name="a.b"), "letters, digits"),
        (lambda: dictionary(name=""), "letters, digits"),
        (lambda: dictionary(site="head"), "site 'head'"),
        (lambda: dictionary(site="sae"), "site 'sae'"),
        (lambda: dictionary(-1), "layer -1"),
        (lambda: dictionary(9), "layer 9"),
        (lambda: dictionary(site="mlp"), "takes vectors of 32"),
        (lambda: dictionary(activation="gelu"), "identity, relu"),
        (lambda: dictionary(labels=["a"]), "1 labels"),
        (lambda: dictionary(encoder_bias=torch.full((7,), torch.nan)), "NaN"),
        (lambda: dictionary(decoder_bias=torch.zeros(3)), r"decoder_bias has shape \(3,\)"),
        (lambda: LinearDictionary("a", "resid", 0, torch.zeros(3)), "shape"),
        (lambda: LinearDictionary.of_directions("a", "resid", 0, torch.zeros(2, WIDTH)), "zero or not finite"),
        (lambda: LinearDictionary.of_directions("a", "resid", 0, [["x"]]), "no array of numbers"),
        (lambda: Bent("a", "resid", 0, torch.randn(3, WIDTH)), "decode is not"),
        (lambda: Short("a", "resid", 0, torch.randn(3, WIDTH)), "encode of .* gives shape"),
        (lambda: "a folder", "load_dictionary"),
        (lambda: dictionary(site="embed"), "site 'embed'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(tiny_llama: Any, make: Any, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        tiny_llama.with_features(make())
    assert "\n" not in str(caught.value)


def test_dictionaries_that_clash_are_refused(tiny_llama: Any) -> None:
    with pytest.raises(InputError, match="two dictionaries called 'sae' of layer 1"):
        tiny_llama.with_features(dictionary(), dictionary(seed=1))
    with pytest.raises(InputError, match="decompose resid and mlp_out"):
        tiny_llama.with_features(dictionary(), dictionary(2, "mlp_out"))
    foreign = {"name": "other", "fingerprint": "0" * 64}
    with pytest.raises(MismatchError, match="made for model other"):
        tiny_llama.with_features(dictionary(model=foreign))
    with pytest.raises(InputError, match=r"layer 0 has no site 'sae'"):
        collect_tap(tiny_llama.with_features(dictionary()), ("sae", 0))
    shorter = {("sae", 1): lambda seen: seen.values[:1]}
    with (
        pytest.raises(InputError, match=r"change of sae\.1 returned \(1, 7\)"),
        change(tiny_llama.with_features(dictionary()), shorter),
    ):
        tiny_llama.logits(IDS)


def test_experts_can_not_be_decomposed_but_their_sum_can() -> None:
    mixed = load(tiny_model("mixtral"), check=False)
    width = mixed.layouts["mlp"].widths[0]
    with pytest.raises(InputError, match="split over experts"):
        mixed.with_features(dictionary(0, "mlp", width=width))
    assert collect(mixed.with_features(dictionary(0, "mlp_out")), "sae", IDS % 190).shape == (3, 8, 7)


def collect_tap(model: Any, tap: tuple[str, int]) -> None:
    with observe(model, [tap], lambda seen: None):
        model.logits(IDS)


def test_a_kind_of_ones_own_needs_only_its_parts() -> None:
    assert Dictionary.__abstractmethods__ == {"directions", "encode", "decode", "tensors", "of_parts"}
