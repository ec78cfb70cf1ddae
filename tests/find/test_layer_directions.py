"""Layer experts as an intervention: the planted layer and direction come first, and damping takes them away."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.find.pooled import ArrayRecording

from patchclamp.core.errors import InputError
from patchclamp.data.corpora import corpus
from patchclamp.find.layer_directions import layer_directions
from patchclamp.find.layer_experts import layer_experts
from patchclamp.intervene.interventions import Intervention
from patchclamp.intervene.targets import Direction
from patchclamp.models.hooks import observe
from patchclamp.record import record

ONE = ["The cat sat on the mat.", "The cat sat.", "The mat and the cat.", "The moon.", "the cat looked at the moon."]
TWO = ["猫はマットの上に", "座って月を見ている。", "猫は月を見ている。", "月を見ている。", "マットの上に座って"]


@pytest.fixture(scope="module")
def recording(tiny_llama: Any) -> Any:
    return record(tiny_llama, corpus(one=ONE, two=TWO), sites=("resid",), statistics=("pooled",), quiet=True)


def test_layers_are_ranked_as_layer_experts_scores_them(recording: Any) -> None:
    found = layer_directions(recording, positive="two")
    scores = {row["layer"]: row["auroc"] for row in layer_experts(recording, positive="two")}
    assert found.auroc.tolist() == pytest.approx([scores[layer] for layer in found.layers])
    assert list(found.auroc) == sorted(found.auroc, reverse=True)


def test_the_planted_layer_is_first_and_its_direction_points_to_the_concept() -> None:
    rng = np.random.default_rng(0)
    values = {}
    for label, side in (("a", -4.0), ("b", 4.0)):
        hidden = rng.normal(size=(40, 3, 6))
        hidden[:, 1, 2] += side
        hidden[:, 0, 0] += np.tile([-4.0, 4.0], 20)  # two blobs across the label
        values[label] = {"resid": hidden.reshape(40, 18)}
    found = layer_directions(ArrayRecording(values, width=6), positive="b")
    assert (found.layers[0], found.auroc[0], found.auroc[-1]) == (1, 1.0, 0.5)
    means = [values[label]["resid"].astype(np.float32).astype(float)[:, 6:12].mean(0) for label in "ba"]
    np.testing.assert_allclose(found.vectors[0], means[0] - means[1], atol=1e-5)
    v = found.vectors[0]
    assert found.rest[0] == pytest.approx(means[1] @ v / (v @ v), abs=1e-5)
    other = layer_directions(ArrayRecording(values, width=6), positive="a")
    np.testing.assert_allclose(other.vectors[0], -found.vectors[0], atol=1e-9)


def test_labels_serve_where_clusters_are_of_something_else() -> None:
    rng = np.random.default_rng(1)
    values, later = {}, {}
    for label, side in (("a", -1.0), ("b", 1.0)):
        for into in (values, later):
            hidden = rng.normal(size=(60, 6)) * 0.3
            hidden[:, 2] += side
            hidden[:, 0] += np.tile([-9.0, 9.0], 30)  # a stronger difference across the label
            into[label] = {"resid": hidden}
    recording = ArrayRecording(values, width=6)
    assert layer_directions(recording, positive="b").auroc[0] < 0.6
    found = layer_directions(recording, positive="b", by="labels")
    assert found.auroc[0] > 0.95
    assert found.tested(ArrayRecording(later, width=6), positive="b")[0] > 0.9
    assert found.tested(ArrayRecording(later, width=6), positive="a")[0] < 0.1
    with pytest.raises(InputError, match="by='means'"):
        layer_directions(recording, positive="b", by="means")


def test_removing_it_leaves_nothing_along_it(recording: Any, tiny_llama: Any) -> None:
    found = layer_directions(recording, positive="two")
    for scale in (0.0, 0.5):
        (item,) = found.damped(top=1, scale=scale)
        assert isinstance(item, Intervention)
        assert isinstance(item.target, Direction)
        kept: list[torch.Tensor] = []
        tap = ("resid", found.layers[0])
        ids = torch.tensor([tiny_llama.tokenize(TWO[0])])
        with observe(tiny_llama, [tap], lambda seen, k=kept: k.append(seen.values.double())):
            tiny_llama.logits(ids)
            with item.applied(tiny_llama):
                tiny_llama.logits(ids)
        v = torch.from_numpy(found.vectors[0])
        torch.testing.assert_close(kept[1] @ v, scale * (kept[0] @ v), atol=1e-4, rtol=1e-4)
    (item,) = found.moved(top=1)
    kept.clear()
    with item.applied(tiny_llama), observe(tiny_llama, [tap], lambda seen: kept.append(seen.values.double())):
        tiny_llama.logits(ids)
    coefficients = kept[0] @ v / (v @ v)
    torch.testing.assert_close(coefficients, torch.full_like(coefficients, found.rest[0]), atol=1e-4, rtol=1e-4)
    assert [one.target.layers for one in found.moved(top=3)] == [(0,), (1,), (2,)]  # type: ignore[attr-defined]
    assert sorted(found.damped(top=3)[0].target.layers) == [0, 1, 2]  # type: ignore[attr-defined]


def test_bad_input_is_one_clear_error(recording: Any, tiny_llama: Any) -> None:
    found = layer_directions(recording, positive="two")
    with pytest.raises(InputError, match="top=4 of 3"):
        found.damped(top=4)
    with pytest.raises(InputError, match="angry"):
        layer_directions(recording, positive="angry")
    with pytest.raises(InputError, match="both classes"):
        layer_directions(recording, positive=("one", "two"))
