"""Activation patching: everything is the other run bit for bit, nothing is no change, one part is as done by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from patchclamp.core.errors import DamagedError, InputError, ModelError
from patchclamp.data.generate.colored_objects import colored_objects
from patchclamp.data.generate.ioi import ioi
from patchclamp.data.paired import PairedItem, PairedTask, Pairs
from patchclamp.intervene.edge_attribution import attribute_parts
from patchclamp.intervene.patching import patch, patch_together
from patchclamp.intervene.patching_result import Patching
from patchclamp.models.hooks import Seen, change
from patchclamp.models.load import load
from patchclamp.models.tiny import tiny_model
from patchclamp.models.units import UnitSet

LENGTHS = (7, 5, 7, 6, 5)


def pairs_of(lengths: tuple[int, ...] = LENGTHS, vocabulary: int = 199, seed: int = 0, same: bool = False) -> Pairs:
    """Random prompts that differ in their third token, with answers; the spot "S" is that token, "late" only in some."""
    draw = torch.Generator().manual_seed(seed)
    n, width = len(lengths), max(lengths)
    end = torch.tensor(lengths) - 1
    mask = torch.arange(width)[None] <= end[:, None]
    clean = torch.randint(3, vocabulary, (n, width), generator=draw) * mask
    corrupt = clean.clone()
    if not same:
        corrupt[:, 2] = (clean[:, 2] - 3 + 7) % (vocabulary - 3) + 3
    answer = torch.randint(3, vocabulary, (n,), generator=draw)
    late = torch.where(end >= 5, 5, -1)
    spots = {"END": end, "S": torch.full((n,), 2), "late": late}
    lists = {"both": torch.stack([torch.full((n,), 2), late], 1)}
    wrong = (answer - 3 + 11) % (vocabulary - 3) + 3
    return Pairs(clean, corrupt, mask, answer, wrong, end, spots, lists, torch.arange(n))


def difference(model: Any, pairs: Pairs, ids: Tensor) -> np.ndarray[Any, Any]:
    """Logit difference from the whole logits, prompt by prompt without padding."""
    found = []
    for row in range(len(pairs)):
        length = int(pairs.end[row]) + 1
        logits = model.logits(ids[row : row + 1, :length])[0, -1].double()
        found.append(float(logits[pairs.answer[row]] - logits[pairs.wrong[row]]))
    return np.array(found)


@pytest.fixture(scope="module", params=["gpt2", "llama", "gpt_neox", "gemma2"])
def model(request: pytest.FixtureRequest) -> Any:
    return load(tiny_model(request.param, seed=1), check=False)


@pytest.mark.parametrize("way", ["noise", "denoise"])
def test_patching_everything_is_the_other_run_bit_for_bit_and_nothing_is_no_change(model: Any, way: str) -> None:
    pairs = pairs_of()
    alone: dict[str, Any] = {"way": way, "batch_tokens": 1}  # batches of one shape: not even rounding differs
    found = patch(model, pairs, "embed", **alone)
    assert np.array_equal(found.patched[0, 0], found.source)
    assert found.scores[0, 0] == pytest.approx(100, abs=1e-9)
    everywhere = patch(model, pairs, "resid", positions=["all", "S", "END"], **alone)
    assert np.array_equal(everywhere.patched[:, 0], np.broadcast_to(found.source, (2, 5)))
    assert np.array_equal(everywhere.patched[1, 2], found.source)  # after the last block only the last token speaks
    assert np.array_equal(everywhere.patched[1, 1], found.base)
    assert np.array_equal(patch_together(model, pairs, [], way=way), found.base)  # one row: the same shape
    assert np.array_equal(patch_together(model, pairs, ["embed", "head", "mlp_out"], way=way), found.source)


def test_the_plain_runs_are_those_of_the_model_without_padding(model: Any) -> None:
    pairs = pairs_of()
    found = patch(model, pairs, "embed")
    np.testing.assert_allclose(found.base, difference(model, pairs, pairs.clean), atol=1e-4)
    np.testing.assert_allclose(found.source, difference(model, pairs, pairs.corrupt), atol=1e-4)


def test_a_head_at_a_position_is_what_doing_it_by_hand_gives(model: Any) -> None:
    pairs = pairs_of((7, 7, 7))
    layer, head, size = 1, 2, model.layouts["attn"].widths[1] // model.anatomy.heads[1]
    columns, kept = slice(head * size, (head + 1) * size), {}

    def look(seen: Seen) -> Tensor:
        kept["values"] = seen.values.view(3, 7, -1).clone()
        return seen.values

    with change(model, {("attn", layer): look}):
        model.logits(pairs.corrupt)

    def put(seen: Seen) -> Tensor:
        new = seen.values.view(3, 7, -1).clone()
        new[:, 2, columns] = kept["values"][:, 2, columns]
        return new.view(seen.values.shape)

    with change(model, {("attn", layer): put}):
        logits = model.logits(pairs.clean)[:, -1].double()
    rows = torch.arange(3)
    expected = (logits[rows, pairs.answer] - logits[rows, pairs.wrong]).numpy()
    found = patch(model, pairs, positions=["S"], batch_tokens=100)
    np.testing.assert_allclose(found.patched[found.parts.index("head.1.2"), 0], expected, atol=1e-5)
    assert found.score("head.1.2") == found.scores[found.parts.index("head.1.2"), 0]


def test_denoising_is_noising_of_the_exchanged_pairs(tiny_llama: Any) -> None:
    pairs = pairs_of()
    turned = Pairs(**{**vars(pairs), "clean": pairs.corrupt, "corrupt": pairs.clean})
    one, other = patch(tiny_llama, pairs, way="denoise"), patch(tiny_llama, turned, way="noise")
    np.testing.assert_allclose(one.patched, other.patched, atol=1e-6)
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4)


def test_batches_change_nothing_but_rounding(tiny_gpt2: Any) -> None:
    pairs = pairs_of()
    whole = patch(tiny_gpt2, pairs, positions=["all", "S", "END"])
    for how in ({"batch_size": 1}, {"batch_size": 2, "batch_tokens": 1}, {"batch_tokens": 50}):
        np.testing.assert_allclose(
            patch(tiny_gpt2, pairs, positions=["all", "S", "END"], **how).patched, whole.patched, atol=1e-5
        )
    order = [3, 0, 4, 2, 1]
    np.testing.assert_allclose(patch(tiny_gpt2, pairs.rows(order)).base, whole.base[order], atol=1e-5)


def test_equal_prompts_have_no_effect_and_scores_that_say_so(tiny_gpt2: Any) -> None:
    found = patch(tiny_gpt2, pairs_of(same=True), batch_tokens=1)
    assert (found.effects == 0).all()
    assert not found.flips
    with pytest.warns(UserWarning, match="0/0"):
        assert np.isnan(found.scores).all()
    assert np.isnan(found.intervals()).all()


def test_pairs_without_the_position_do_not_count(tiny_gpt2: Any) -> None:
    pairs = pairs_of()
    found = patch(tiny_gpt2, pairs, "resid", positions=["late", "both", 5, "S"])
    lacking = [1, 4]
    assert np.isnan(found.patched[:, 0, lacking]).all()
    assert not np.isnan(found.patched[:, 1]).any()
    np.testing.assert_array_equal(found.patched[:, 0], found.patched[:, 2])
    kept = [0, 2, 3]
    alone = patch(tiny_gpt2, pairs.rows(kept), "resid", positions=["late"])
    np.testing.assert_allclose(found.scores[:, 0], alone.scores[:, 0], rtol=1e-4)
    np.testing.assert_allclose(found.patched[:, 1, lacking], found.patched[:, 3, lacking], atol=1e-5)
    assert [row["n"] for row in found.rows() if row["position"] == "late"] == [3, 3, 3]


def test_each_position_is_a_column_of_its_own(tiny_gpt2: Any) -> None:
    found = patch(tiny_gpt2, pairs_of(), "resid", layers=[0], positions="each", batch_tokens=1)
    assert found.positions == tuple("0123456")
    assert np.array_equal(found.patched[0, 0], found.base)  # the first tokens are the same in both runs
    assert np.isnan(found.patched[0, 6]).sum() == 3


def test_units_are_patched_one_by_one(tiny_llama: Any) -> None:
    pairs = pairs_of()
    every = patch(tiny_llama, pairs, "mlp", by="unit", layers=[1])
    assert len(every.parts) == tiny_llama.layouts["mlp"].widths[1]
    chosen = UnitSet.of(tiny_llama, ["mlp.1.5", "mlp.1.40", "head.2.3"])
    few = patch(tiny_llama, pairs, chosen)
    assert few.parts == ("mlp.1.5", "mlp.1.40", "head.2.3")
    np.testing.assert_allclose(few.patched[:2], every.patched[[5, 40]], atol=1e-6)
    heads = patch(tiny_llama, pairs)
    np.testing.assert_allclose(few.patched[2], heads.patched[heads.parts.index("head.2.3")], atol=1e-6)
    together = patch_together(tiny_llama, pairs, UnitSet.of(tiny_llama, [f"mlp.1.{unit}" for unit in range(48)]))
    np.testing.assert_allclose(together, patch(tiny_llama, pairs, "mlp", layers=[1]).patched[0, 0], atol=1e-6)


def test_keys_and_values_have_the_models_own_heads(tiny_llama: Any) -> None:
    found = patch(tiny_llama, pairs_of(), "v", by="head")
    assert found.parts == tuple(f"head.{layer}.{head}.v" for layer in range(3) for head in range(2))
    assert len(patch(tiny_llama, pairs_of(), "q", by="head").parts) == 12


def test_half_precision_patches_nothing_to_nothing(tiny_gpt2: Any) -> None:
    import copy

    half = load(copy.deepcopy(tiny_gpt2.hf), dtype="bfloat16", check=False)
    pairs = pairs_of()
    found = patch(half, pairs, positions=[0, "all"], batch_tokens=60)
    np.testing.assert_array_equal(found.patched[:, 0], np.broadcast_to(found.base, (12, 5)))
    embed = patch(half, pairs, "embed")
    np.testing.assert_allclose(embed.patched[0, 0], embed.source, atol=0.2)


def test_a_model_whose_values_move_with_batch_mates_runs_prompts_alone(tiny_gpt2: Any) -> None:
    class Report:
        warnings = ("moves",)

    whole, before = patch(tiny_gpt2, pairs_of()), tiny_gpt2.report
    tiny_gpt2.report = Report()
    try:
        sizes = []

        def look(seen: Seen) -> Tensor:
            sizes.append(seen.step.batch)
            return seen.values

        with change(tiny_gpt2, {("resid", 2): look}):
            alone = patch(tiny_gpt2, pairs_of())
    finally:
        tiny_gpt2.report = before
    assert set(sizes) <= {1, 2}  # two when the readout is checked
    np.testing.assert_allclose(alone.patched, whole.patched, atol=1e-5)


def test_the_model_is_unchanged_afterwards(tiny_gpt2: Any) -> None:
    pairs = pairs_of()
    before = tiny_gpt2.logits(pairs.clean, pairs.mask)
    patch(tiny_gpt2, pairs)
    with pytest.raises(InputError):
        patch(tiny_gpt2, pairs, positions=["nowhere"])
    assert torch.equal(tiny_gpt2.logits(pairs.clean, pairs.mask), before)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"what": "nose"}, "no site is called 'nose'"),
        ({"what": "resid", "by": "head"}, "has no heads"),
        ({"what": "head", "by": "column"}, "layer, head, unit"),
        ({"layers": [9]}, "layer 9 has no head"),
        ({"positions": ["S3"]}, "no spot is called 'S3'"),
        ({"positions": [9]}, "tokens 0 to 6"),
        ({"positions": []}, "no positions"),
        ({"positions": [True]}, "True is no position"),
        ({"way": "both"}, "noise, denoise"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_what_can_not_be_patched_is_refused(tiny_gpt2: Any, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        patch(tiny_gpt2, pairs_of(), **arguments)


def test_an_empty_set_a_wrong_task_and_experts_are_refused(tiny_gpt2: Any) -> None:
    with pytest.raises(InputError, match="empty"):
        patch(tiny_gpt2, pairs_of(), UnitSet.of(tiny_gpt2, []))
    with pytest.raises(InputError, match="PairedTask"):
        patch(tiny_gpt2, ["a prompt"])  # type: ignore[arg-type]
    experts = load(tiny_model("mixtral"), check=False)
    with pytest.raises(ModelError, match="mlp_out"):
        patch(experts, pairs_of(), "mlp")
    whole = patch(experts, pairs_of(), "mlp_out")
    assert np.isfinite(whole.patched).all()


def test_texts_are_encoded_and_a_model_without_tokenizer_says_what_to_do(tiny_gpt2: Any) -> None:
    task = PairedTask("t", [PairedItem("The cat sat", "The cat sit", "a", "b")])
    bare = load(tiny_gpt2.hf, check=False)
    with pytest.raises(InputError, match="tokenizer"):
        patch(bare, task)


# --- the result --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> Patching:
    """Three heads at two positions over four pairs, numbers chosen by hand."""
    base, source = np.array([4.0, 2.0, 3.0, 3.0]), np.array([-4.0, -2.0, -3.0, -3.0])
    patched = np.stack(
        [
            [base, base - 3.0],  # nothing; 3 of 6 on average
            [source, base + 0.6],  # everything; 10% against the flip
            [base - np.array([6.0, 0, 0, 0]), np.array([np.nan, np.nan, 0.0, 0.0])],  # one pair; two pairs that count
        ]
    )
    model = {"name": "m", "fingerprint": "f", "sites": {"head": {"widths": [2, 1], "experts": [0, 0]}}, "forms": []}
    return Patching(
        ("head.0.0", "head.0.1", "head.1.0"), ("S", "END"), patched, base, source, {"way": "noise"}, {}, model
    )


def test_scores_are_percent_of_the_flip(found: Patching) -> None:
    np.testing.assert_allclose(found.scores, [[0, 50], [100, -10], [25, 50]])
    assert found.gap == 6
    assert found.n == 4


def test_the_strongest_parts_come_first_whatever_their_sign(found: Patching) -> None:
    assert [(row["part"], row["position"]) for row in found.rows(3)] == [
        ("head.0.1", "S"), ("head.0.0", "END"), ("head.1.0", "END"),
    ]  # fmt: skip
    assert found.top(k=1) == ["head.0.1"]
    assert found.top(0.34) == ["head.0.1", "head.0.0"]
    for wrong in ({}, {"share": 0.1, "k": 1}, {"k": 4}, {"k": 0}):
        with pytest.raises(InputError):
            found.top(**wrong)
    assert found.units(found.top(k=2)).names() == ["head.0.0", "head.0.1"]


def test_intervals_are_those_of_pairs_drawn_again(found: Patching) -> None:
    rng = np.random.default_rng(0)
    draws = rng.multinomial(4, np.full(4, 0.25), size=400)
    gaps = draws @ (found.base - found.source)
    expected = np.quantile(100 * (draws @ np.array([6.0, 0, 0, 0])) / gaps, [0.05, 0.95])
    np.testing.assert_allclose(found.intervals(level=0.9, resamples=400)[2, 0], expected)
    np.testing.assert_allclose(found.intervals()[1, 0], [100, 100])
    for wrong in ({"level": 1.0}, {"resamples": 0}):
        with pytest.raises(InputError):
            found.intervals(**wrong)


def test_a_file_gives_the_same_numbers_back(found: Patching, tmp_path: Path) -> None:
    back = Patching.load(found.save(tmp_path / "found.json"))
    np.testing.assert_array_equal(back.patched, found.patched)
    assert (back.parts, back.positions, dict(back.settings)) == (found.parts, found.positions, {"way": "noise"})
    data = json.loads((tmp_path / "found.json").read_text())
    for broken in ({**data, "parts": ["one"]}, {k: v for k, v in data.items() if k != "base"}, {**data, "format": "x"}):
        (tmp_path / "broken.json").write_text(json.dumps(broken))
        with pytest.raises(DamagedError):
            Patching.load(tmp_path / "broken.json")


def test_a_result_says_what_it_was_made_from(tiny_gpt2: Any, tmp_path: Path) -> None:
    found = Patching.load(patch(tiny_gpt2, pairs_of(), "resid", positions=["S"]).save(tmp_path / "made.json"))
    assert found.provenance["call"] == "intervene.patch"
    assert found.provenance["arguments"]["positions"] == ["S"]
    assert found.provenance["inputs"]["model"]["fingerprint"] == tiny_gpt2.fingerprint


def test_it_shows_a_table_and_a_heat_map(found: Patching) -> None:
    from rich.console import Console

    console = Console(width=120)
    with console.capture() as shown:
        console.print(found.table())
    assert "head.0.1" in shown.get()
    assert "+100.0" in shown.get()
    assert "head.0.1" in found._repr_html_()
    cells = found.chart().to_dict()["data"]["values"]
    assert {(c["part"], c["position"]): c["score"] for c in cells}["head.0.1", "S"] == 100
    single = Patching(found.parts, ("S",), found.patched[:, :1], found.base, found.source)
    assert {"layer", "head"} <= set(single.chart().to_dict()["data"]["values"][0])


def test_shapes_and_names_that_do_not_fit_are_refused(found: Patching) -> None:
    with pytest.raises(InputError, match="shape"):
        Patching(("a",), ("S",), found.patched, found.base, found.source)
    with pytest.raises(InputError, match="was not asked"):
        found.score("head.0.0")
    with pytest.raises(InputError, match="was not asked"):
        found.score("head.9.9", "S")


# --- estimates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["noise", "denoise"])
def test_estimates_of_what_enters_the_last_norm_are_gradients_times_differences(model: Any, way: str) -> None:
    """One route is autograd through the whole model, the other a difference quotient of the exact patch."""
    pairs = pairs_of((6, 6))
    found = attribute_parts(model, pairs, "resid", layers=[1], positions=["END"], way=way, steps=1)
    ids, other = (pairs.clean, pairs.corrupt) if way == "noise" else (pairs.corrupt, pairs.clean)
    kept: dict[str, Tensor] = {}

    def look(seen: Seen) -> Tensor:
        kept["values"] = seen.values.clone()
        return seen.values

    with change(model, {("resid", 1): look}):
        model.logits(other)
    moved = []
    for step in (1e-2, -1e-2):

        def nudge(seen: Seen, step: float = step) -> Tensor:
            return seen.values + step * (kept["values"] - seen.values)

        with change(model, {("resid", 1): nudge}):
            logits = model.logits(ids)[:, -1].double()
        rows = torch.arange(2)
        moved.append((logits[rows, pairs.answer] - logits[rows, pairs.wrong]).numpy())
    slope = (moved[0] - moved[1]) / 2e-2
    np.testing.assert_allclose(found.patched[0, 0] - found.base, slope, rtol=0.05, atol=1e-3)
    assert found.settings["method"] == "attribution"


def test_integrated_gradients_of_the_embedding_add_up_to_the_flip(model: Any) -> None:
    """The fundamental theorem: the integral of the gradient along the straight line is the whole difference."""
    pairs = pairs_of()
    found = attribute_parts(model, pairs, "embed", steps=40)
    np.testing.assert_allclose(found.patched[0, 0], found.source, atol=0.02 * np.abs(found.gap) + 2e-3)


@pytest.mark.slow
def test_estimates_agree_with_exact_patches_on_the_bundled_model() -> None:
    demo = load("demo")
    task = ioi(12, demo.tokenizer, templates="demo")
    for what in ("head", "mlp_out"):
        exact, one = patch(demo, task, what), attribute_parts(demo, task, what, steps=1)
        five = attribute_parts(demo, task, what)
        assert np.corrcoef(exact.scores.ravel(), one.scores.ravel())[0, 1] > 0.95
        assert np.corrcoef(exact.scores.ravel(), five.scores.ravel())[0, 1] > 0.97
    assert exact.gap > 5
    assert exact.base.mean() > 3


def test_the_bundled_model_solves_the_sentences_it_was_taught_and_the_corruption_flips_them() -> None:
    demo = load("demo")
    for task, enough in (
        (ioi(100, demo.tokenizer, templates="demo"), 0.93),
        (colored_objects(60, demo.tokenizer, templates="demo"), 0.96),
        (colored_objects(60, demo.tokenizer, templates="demo", shots=0), 0.96),
    ):
        pairs = task.encode(demo.tokenizer)
        rows = torch.arange(len(pairs))
        for ids, right in ((pairs.clean, pairs.answer), (pairs.corrupt, pairs.wrong)):
            logits = demo.logits(ids, pairs.mask)[rows, pairs.end]
            assert (logits.argmax(1) == right).float().mean() >= enough


def test_estimates_refuse_no_steps(tiny_gpt2: Any) -> None:
    for wrong in ({"steps": 0}, {"way": "x"}, {"batch_size": 0}):
        with pytest.raises(InputError):
            attribute_parts(tiny_gpt2, pairs_of(), **wrong)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(4, 8), min_size=1, max_size=4), st.sampled_from(["noise", "denoise"]))
def test_everything_is_the_other_run_for_any_prompts(seed: int, lengths: list[int], way: str) -> None:
    shared = load(tiny_model("llama", seed=3), check=False)
    found = patch(shared, pairs_of(tuple(lengths), seed=seed), "embed", way=way, batch_size=2, batch_tokens=1)
    assert np.array_equal(found.patched[0, 0], found.source)
