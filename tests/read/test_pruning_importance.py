"""What pruning leaves: the planted module, gradients by another route, masks that are undone exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.read.planted_modules import planted_model, planted_tasks
from torch.nn import functional as F

from patchclamp.core.errors import InputError, MismatchError, ModelError
from patchclamp.data.tasks import Task
from patchclamp.measure import score
from patchclamp.models.load import load
from patchclamp.read.pruning_importance import pruning_importance, removed_groups, scaled
from patchclamp.read.weight_modules import pruned, weight_change, weight_modules

TASK = Task.of([{"prompt": "The cat sat on", "answer": " the mat"}, {"prompt": "Two and two", "answer": " make four"}])


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.hf.named_parameters()}


@pytest.fixture(scope="module")
def planted() -> Any:
    return planted_model()


@pytest.mark.parametrize("kind", ["block", "projection"])
def test_the_module_that_serves_a_skill_is_the_one_that_pruning_for_it_keeps(planted: Any, kind: str) -> None:
    found = pruning_importance(planted, planted_tasks(), modules=kind, ratios=(0.85,), repeats=3, prompts=6, quiet=True)
    kept = dict(zip(found.modules, found.kept[0].mean(0).T, strict=True))
    names = ["mlp.{}"] if kind == "block" else ["gate.{}", "up.{}", "down.{}"]
    for name in names:
        own, other = kept[name.format(0)], kept[name.format(1)]
        assert own[0] >= 0.5, "the half of the neurons that is in use lives"
        assert own[0] > other[0]
        assert other[1] > own[1]
    np.testing.assert_array_equal(found.plain, [1.0, 1.0])
    np.testing.assert_array_equal(found.pruned, 1.0)
    for row, layer in zip(found.matrix(), (0, 1), strict=True):
        best = {found.modules[at] for at in np.argsort(-row)[: len(names)]}
        assert best == {name.format(layer) for name in names}


def test_random_pruning_keeps_no_skill(planted: Any) -> None:
    found = pruning_importance(
        planted, planted_tasks(), modules="block", importance="random", ratios=(0.7,), repeats=4, quiet=True
    )
    assert found.pruned.mean() < 0.8


def test_magnitude_knows_no_dataset(planted: Any) -> None:
    found = pruning_importance(planted, planted_tasks(), importance="magnitude", accuracy=False, repeats=1, quiet=True)
    np.testing.assert_array_equal(found.kept[:, :, 0], found.kept[:, :, 1])
    assert np.isnan(found.plain).all()


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("importance", ["first", "second", "mix"])
def test_saliency_equals_backward_by_hand(name: str, importance: str, request: pytest.FixtureRequest) -> None:
    """Plain backward passes over each prompt alone, without padding, and the weights cut by hand."""
    model = request.getfixturevalue(name)
    found = pruning_importance(
        model, {"text": TASK}, importance=importance, prompts=2, repeats=1, accuracy=False, quiet=True
    )
    hf = model.hf
    sums, squares, tokens = {}, {}, 0
    for item in TASK:
        ids = torch.tensor([model.tokenize(item.prompt + item.answers[0])])
        hf.requires_grad_(True)
        with torch.enable_grad():
            logits = hf(ids).logits
            loss = F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")
            loss.backward()
        n = ids.shape[1] - 1
        tokens += n
        for key, weight in hf.named_parameters():
            sums[key] = sums.get(key, 0) + weight.grad
            squares[key] = squares.get(key, 0) + (weight.grad / n).square() / len(TASK)
        hf.zero_grad()
        hf.requires_grad_(False)
    width, layer = 32, 1
    if name == "tiny_llama":
        key, cut = f"model.layers.{layer}.self_attn.k_proj.weight", (slice(None), slice(None))
    else:
        key, cut = f"transformer.h.{layer}.attn.c_attn.weight", (slice(None), slice(width, 2 * width))  # fused, turned
    weight, slope, square = (x[cut] for x in (dict(hf.named_parameters())[key], sums[key] / tokens, squares[key]))
    each = {
        "first": (weight * slope).abs(),
        "second": weight.square() * square,
        "mix": (weight * slope - 0.5 * weight.square() * square).abs(),
    }[importance]
    at = found.modules.index(f"k.{layer}")
    assert found.saliency[0, 0, at] == pytest.approx(float(each.mean()), rel=1e-3)


def test_modules_of_gated_plain_fused_and_shared_projections(tiny_llama: Any, tiny_gpt2: Any) -> None:
    llama = weight_modules(tiny_llama)
    assert [module.name for module in llama[:7]] == [f"{name}.0" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    assert [module.n_groups for module in llama[:7]] == [32, 16, 16, 32, 48, 48, 48]
    gpt2 = weight_modules(tiny_gpt2, layers=[2])
    assert [module.name for module in gpt2] == [f"{name}.2" for name in ("q", "k", "v", "o", "up", "down")]
    assert len({module.paths for module in gpt2[:3]}) == 1
    assert [module.parts[0].lines[0].item() for module in gpt2[:3]] == [0, 32, 64]
    attention, mlp = weight_modules(tiny_llama, "block", layers=[1])
    assert (attention.name, attention.n_groups) == ("attn.1", 2), "two key-value heads, each with two query heads"
    assert attention.group_sizes(tiny_llama).tolist() == [2 * 16 * 32 + 2 * 8 * 32] * 2
    assert (mlp.n_groups, mlp.group_sizes(tiny_llama)[0]) == (48, 3 * 32)
    total = sum(module.group_sizes(tiny_llama).sum() for module in weight_modules(tiny_llama, "block"))
    assert total == sum(w.numel() for name, w in tiny_llama.hf.named_parameters() if "layers" in name and w.dim() == 2)


def test_expert_maps_are_modules_of_their_own() -> None:
    from patchclamp.models.tiny import tiny_model

    names = [module.name for module in weight_modules(load(tiny_model("phimoe"), check=False))]
    assert {"q.0", "k.1", "v.0", "o.1"} <= set(names)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("kind", ["projection", "block"])
def test_pruning_is_zeros_inside_and_nothing_afterwards(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    modules, before, fingerprint = weight_modules(model, kind), weights_of(model), model.fingerprint
    everything = {module.name: np.ones(module.n_groups, bool) for module in modules}
    with pytest.raises(ZeroDivisionError), pruned(model, modules, everything):
        for module in modules:
            for part in module.parts:
                assert not part.weight(model).index_select(part.axis, part.lines).any()
        raise ZeroDivisionError
    for key, weight in model.hf.named_parameters():
        assert torch.equal(weight, before[key]), key
        assert not weight.requires_grad
    assert model.fingerprint == fingerprint


def test_a_removed_head_and_channel_are_as_clamped_to_zero(tiny_llama: Any) -> None:
    from patchclamp.intervene import clamp

    modules = weight_modules(tiny_llama, "block")
    gone = {module.name: np.zeros(module.n_groups, bool) for module in modules}
    gone["attn.1"][1] = gone["mlp.2"][5] = True
    ids = torch.tensor([tiny_llama.tokenize("The cat sat on the mat")])
    with pruned(tiny_llama, modules, gone):
        masked = tiny_llama.logits(ids)
    with clamp(tiny_llama, ["head.1.2", "head.1.3", "mlp.2.5"], to=0.0):
        clamped = tiny_llama.logits(ids)
    torch.testing.assert_close(masked, clamped)


def test_the_lowest_groups_go_until_the_ratio_is_reached() -> None:
    scores = [np.array([5.0, 1.0]), np.array([2.0, 3.0, 1.0])]
    sizes = [np.array([10, 10]), np.array([5, 5, 5])]
    assert [gone.tolist() for gone in removed_groups(scores, sizes, 0.45)] == [[False, True], [False, False, True]]
    assert [gone.tolist() for gone in removed_groups(scores, sizes, 0.6)] == [[False, True], [True, False, True]]


def test_ties_are_broken_evenly_and_alike_with_one_seed() -> None:
    scores, sizes = [np.zeros(40), np.zeros(40)], [np.ones(40, int), np.ones(40, int)]
    first = np.mean([removed_groups(scores, sizes, 0.5, seed=seed)[0].mean() for seed in range(50)])
    assert first == pytest.approx(0.5, abs=0.05)
    one, again = (removed_groups(scores, sizes, 0.5, seed=3)[0] for _ in range(2))
    np.testing.assert_array_equal(one, again)


def test_a_dataset_without_gradients_has_no_edges(planted: Any) -> None:
    head = planted.hf.lm_head.weight
    before = head.clone()
    with torch.no_grad():
        head *= 30  # certain of every token
    try:
        found = pruning_importance(planted, planted_tasks(), repeats=2, quiet=True)
    finally:
        with torch.no_grad():
            head.copy_(before)
    np.testing.assert_allclose(found.kept, 0.8)
    assert not found.matrix().any()


def test_constant_rows_scale_to_zero() -> None:
    np.testing.assert_array_equal(scaled(np.array([[0.2, 0.2], [0.2, 0.7]])), [[0, 0], [0, 1]])


def test_several_ratios_come_from_one_pass_and_datasets_can_be_added_later(planted: Any) -> None:
    tasks, how = planted_tasks(), {"modules": "block", "repeats": 2, "accuracy": False, "quiet": True}
    both = pruning_importance(planted, tasks, ratios=(0.2, 0.7), **how)
    single = pruning_importance(planted, tasks, ratios=(0.7,), **how)
    np.testing.assert_array_equal(both.matrix(ratio=0.7), single.matrix())
    assert both.repeated(ratio=0.7).shape == (2, 2, 4)
    with pytest.raises(InputError, match=r"ratio=0\.5 was not measured"):
        both.matrix(ratio=0.5)
    parts = [pruning_importance(planted, {name: task}, ratios=(0.7,), **how) for name, task in tasks.items()]
    merged = parts[0].merge(parts[1])
    assert merged.datasets == ("first", "second")
    np.testing.assert_allclose(merged.matrix(), single.matrix())
    with pytest.raises(MismatchError):
        parts[0].merge(parts[0])
    with pytest.raises(MismatchError):
        parts[0].merge(both)


def test_batches_do_not_change_the_scores(tiny_llama: Any) -> None:
    how = {"repeats": 1, "accuracy": False, "quiet": True}
    small, large = (pruning_importance(tiny_llama, {"text": TASK}, batch_tokens=n, **how) for n in (1, 4096))
    np.testing.assert_allclose(small.saliency, large.saliency, rtol=1e-4)


def test_weight_change_is_that_of_the_module_alone(tiny_llama: Any) -> None:
    import copy

    tuned = load(copy.deepcopy(tiny_llama.hf), tokenizer=tiny_llama.tokenizer, check=False)
    with torch.no_grad():
        tuned.hf.model.layers[1].mlp.down_proj.weight += 0.5
    change = weight_change(tiny_llama, tuned, weight_modules(tiny_llama))
    assert change["down.1"]["change"] == pytest.approx(0.5 * (32 * 48) ** 0.5, rel=1e-4)
    assert change["down.1"]["cosine"] < 0.99
    assert {name for name, row in change.items() if row["change"] > 0} == {"down.1"}
    assert change["q.0"]["cosine"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"importance": "third"}, "first, second"),
        ({"loss": "prompt"}, "text, answer"),
        ({"ratios": (1.0,)}, "between 0 and 1"),
        ({"ratios": ()}, "between 0 and 1"),
        ({"repeats": 0}, "at least 1"),
        ({"modules": "expert"}, "projection, block"),
        ({"layers": [9]}, "layer 9"),
    ],
)
def test_bad_arguments_are_refused(tiny_llama: Any, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        pruning_importance(tiny_llama, {"text": TASK}, quiet=True, **arguments)


def test_no_datasets_and_broken_gradients_are_refused(tiny_llama: Any) -> None:
    with pytest.raises(InputError, match="at least one"):
        pruning_importance(tiny_llama, {}, quiet=True)
    import copy

    broken = load(copy.deepcopy(tiny_llama.hf), tokenizer=tiny_llama.tokenizer, check=False)
    with torch.no_grad():
        broken.hf.model.norm.weight[0] = float("nan")
    with pytest.raises(ModelError, match="is not finite"):
        pruning_importance(broken, {"text": TASK}, accuracy=False, repeats=1, quiet=True)


def test_half_precision_gives_nearly_the_same_modules(tiny_llama: Any) -> None:
    import copy

    half = load(copy.deepcopy(tiny_llama.hf).bfloat16(), tokenizer=tiny_llama.tokenizer, check=False)
    how = {"repeats": 1, "accuracy": False, "quiet": True}
    one, other = (pruning_importance(model, {"text": TASK}, **how).saliency[0, 0] for model in (tiny_llama, half))
    assert np.corrcoef(one, other)[0, 1] > 0.98


def test_accuracy_loss_lowers_a_datasets_edges(planted: Any) -> None:
    found = pruning_importance(planted, planted_tasks(), importance="random", ratios=(0.9,), repeats=2, quiet=True)
    lost = 1 - found.pruned[0].mean(0)
    np.testing.assert_allclose(found.matrix(), found.matrix(weighted=False) * (1 - lost)[:, None])
    assert score(planted, planted_tasks()["first"], quiet=True).value == 1.0
