"""Edges: a hand-wired network gives back its wires, runs by edges add up to plain runs, estimates agree with exact ones."""

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
from patchclamp.data.paired import Pairs
from patchclamp.intervene.circuit_curves import (
    completeness,
    faithfulness,
    faithfulness_curve,
    kept_runs,
    members_of,
    minimality,
    random_like,
)
from patchclamp.intervene.circuits import Circuit
from patchclamp.intervene.edge_attribution import attribute_edges
from patchclamp.intervene.edge_graph import edge_graph
from patchclamp.intervene.edge_runs import patch_edges, run_masks
from patchclamp.intervene.edge_scores import EdgeScores
from patchclamp.intervene.patching import patch
from patchclamp.models.hooks import Seen, change, observe
from patchclamp.models.load import LanguageModel, load
from patchclamp.models.tiny import tiny_model

BOS, A, B, X, Y, END = range(6)
WIRES = {("embed", "head.0.0.v"), ("head.0.0", "head.1.0.q"), ("head.1.0", "logits")}


def pairs_of(n: int = 4, length: int = 7, vocabulary: int = 199, seed: int = 0) -> Pairs:
    """Random prompts of two lengths that differ in their third token."""
    draw = torch.Generator().manual_seed(seed)
    end = torch.full((n,), length - 1) - torch.arange(n) % 2
    mask = torch.arange(length)[None] <= end[:, None]
    clean = torch.randint(3, vocabulary, (n, length), generator=draw) * mask
    corrupt = clean.clone()
    corrupt[:, 2] = (clean[:, 2] - 3 + 7) % (vocabulary - 3) + 3
    answer = torch.randint(3, vocabulary, (n,), generator=draw)
    wrong = (answer - 3 + 11) % (vocabulary - 3) + 3
    spots = {"END": end, "S": torch.full((n,), 2)}
    return Pairs(clean, corrupt, mask, answer, wrong, end, spots, {}, torch.arange(n))


def hand_wired(sharpness: float) -> Any:
    """A GPT-2 of 2 layers and 2 heads, wired by hand: which candidate (A or B) to name is told by a selector (X or Y).

    head.0.0 moves the selector to the end, head.1.0 asks with it for a candidate's key and copies the candidate; head.0.1
    moves the selector too, but to where nobody reads it; head.1.1 looks everywhere and writes nothing. MLPs write nothing.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=6, n_positions=16, n_embd=32, n_layer=2, n_head=2, tie_word_embeddings=False, bos_token_id=0,
        eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    hf = GPT2LMHeadModel(config)
    for name, weight in hf.named_parameters():
        if "ln_" not in name and "c_fc" not in name:
            torch.nn.init.zeros_(weight)
    hf.transformer.wte.weight.data[:, :6] = torch.eye(6)
    first, second = hf.transformer.h[0].attn, hf.transformer.h[1].attn
    q, k, v, size = 0, 32, 64, 16  # columns of c_attn, and of each head within
    for head in (0, 1):
        first.c_attn.weight.data[END, q + head * size] = 10.0
        first.c_attn.weight.data[[X, Y], k + head * size] = 10.0
        first.c_attn.weight.data[X, v + head * size] = 1.0
        first.c_attn.weight.data[Y, v + head * size + 1] = 1.0
    # little is written, so that norms hardly notice: head.0.0 for head.1.0, head.0.1 for nobody
    first.c_proj.weight.data[0, 10] = first.c_proj.weight.data[1, 11] = 0.02
    first.c_proj.weight.data[size, 20] = first.c_proj.weight.data[size + 1, 21] = 0.02
    second.c_attn.weight.data[10, q] = second.c_attn.weight.data[11, q + 1] = 10 * sharpness
    second.c_attn.weight.data[A, k] = second.c_attn.weight.data[B, k + 1] = 1.0
    second.c_attn.weight.data[A, v] = second.c_attn.weight.data[B, v + 1] = 1.0
    second.c_proj.weight.data[0, 12] = second.c_proj.weight.data[1, 13] = 0.02
    hf.lm_head.weight.data[A, 12] = hf.lm_head.weight.data[B, 13] = 10.0
    return load(hf, check=False)


@pytest.fixture(scope="module")
def wired() -> Any:
    """All attention on one token."""
    return hand_wired(sharpness=8.0)


@pytest.fixture(scope="module")
def questions() -> Pairs:
    """The selector changes, and with it which candidate is right; the order of the candidates varies."""
    clean = torch.tensor([[BOS, A, B, X, END], [BOS, B, A, X, END], [BOS, A, B, Y, END], [BOS, B, A, Y, END]])
    corrupt = torch.where(clean == X, Y, torch.where(clean == Y, X, clean))
    answer, wrong = torch.tensor([A, A, B, B]), torch.tensor([B, B, A, A])
    end, numbers = torch.full((4,), 4), torch.arange(4)
    return Pairs(
        clean, corrupt, torch.ones(4, 5, dtype=torch.bool), answer, wrong, end, {"END": end, "S": end - 1}, {}, numbers
    )


def exact(model: Any, pairs: Pairs) -> dict[tuple[str, str], float]:
    """Percent of the flip of every edge, exactly."""
    edges = list(edge_graph(model).edges())
    found = patch_edges(model, pairs, [[edge] for edge in edges])
    plain = patch(model, pairs, "embed")
    return {edge: float(100 * (plain.base - row).mean() / plain.gap) for edge, row in zip(edges, found, strict=True)}


def test_a_hand_wired_network_gives_back_its_wires_and_nothing_else(wired: Any, questions: Pairs) -> None:
    plain = patch(wired, questions, "embed")
    assert (plain.base > 0.3).all()
    assert (plain.source < -0.3).all()
    found = exact(wired, questions)
    assert len(found) == int(edge_graph(wired).valid.sum()) == 46  # 15 from the embedding, 9 + 9, 8, 2 + 2, 1
    for edge, percent in found.items():
        assert percent == pytest.approx(100 if edge in WIRES else 0, abs=0.5 if edge in WIRES else 1e-3)


@pytest.mark.parametrize("steps", [1, 10])
def test_estimates_rank_the_wires_first_where_attention_is_soft(questions: Pairs, steps: int) -> None:
    soft = hand_wired(sharpness=0.1)
    assert {edge for edge, percent in exact(soft, questions).items() if abs(percent) > 1e-2} == WIRES
    estimated = attribute_edges(soft, questions, steps=steps)
    assert set(estimated.top(k=3).edges) == WIRES
    for edge in WIRES:  # one gradient doesn't see that a norm brings another token to the same size
        expected = pytest.approx(100, abs=10)
        assert estimated.score(*edge) == (pytest.approx(36, abs=5) if steps == 1 and edge[0] == "embed" else expected)
    assert (np.sort(np.abs(estimated.scores[estimated.valid]))[:-3] < 5).all()


def test_one_gradient_misses_what_is_saturated(wired: Any, questions: Pairs) -> None:
    """Why the steps are there, and why estimates are for screening: all attention on one token has no slope."""
    assert exact(wired, questions)["head.0.0", "head.1.0.q"] == pytest.approx(100, abs=0.5)
    assert abs(attribute_edges(wired, questions, steps=1).score("head.0.0", "head.1.0.q")) < 10


def test_heads_of_the_wired_network_are_found_by_patching_heads(wired: Any, questions: Pairs) -> None:
    found = patch(wired, questions)
    np.testing.assert_allclose(found.scores[:, 0], [100, 0, 100, 0], atol=1e-3)
    assert patch(wired, questions, positions=["S"]).score("head.0.0") == pytest.approx(0, abs=1e-6)


def test_the_wired_circuit_is_faithful_complete_and_minimal(wired: Any, questions: Pairs) -> None:
    circuit = Circuit.of_edges([f"{a}->{b}" for a, b in sorted(WIRES)], model=wired, total=46)
    row = faithfulness(wired, questions, circuit, controls=5)
    assert row["percent"] == pytest.approx(100, abs=0.5)
    assert row["without"] == pytest.approx(0, abs=0.5)
    assert row["control_high"] < 1
    assert row["p"] == pytest.approx(1 / 6)
    assert all(entry["loss"] == pytest.approx(100, abs=0.5) for entry in minimality(wired, questions, circuit))
    for entry in completeness(wired, questions, circuit, subsets=3):
        assert entry["difference"] == pytest.approx(0, abs=0.5)
    with_idle = Circuit.of_edges([*circuit.members, "head.0.1->mlp.1"], model=wired, total=46)
    first = minimality(wired, questions, with_idle)[0]
    assert first["member"] == "head.0.1->mlp.1"
    assert first["loss"] == pytest.approx(0, abs=1e-3)


def test_the_wired_heads_are_faithful_and_complete(wired: Any, questions: Pairs) -> None:
    circuit = Circuit.of_heads(["head.0.0", "head.1.0"], model=wired)
    for ablation in ("corrupt", "mean"):
        row = faithfulness(wired, questions, circuit, controls=3, ablation=ablation)
        assert row["percent"] == pytest.approx(100, abs=3)
        assert row["without"] == pytest.approx(0, abs=3)
    curve = faithfulness_curve(wired, questions, circuit, sizes=[0, 1, 2], controls=3)
    assert [round(row["percent"]) for row in curve.rows] == [0, 0, 100]  # either head alone is no use
    assert curve.chart().to_dict()["layer"]
    assert curve.table().row_count == 3
    larger = Circuit.of_heads(["head.0.0", "head.1.0", "mlp.0"], model=wired)
    assert len(members_of(wired, larger)) == 6
    assert minimality(wired, questions, larger)[0]["member"] == "mlp.0"


# --- runs by edges -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox", "falcon", "granite", "qwen3", "opt", "phi3"])
@pytest.mark.parametrize("way", ["noise", "denoise"])
def test_no_edges_is_the_plain_run_and_all_edges_the_other(kind: str, way: str) -> None:
    model = load(tiny_model(kind, seed=2), check=False)
    pairs, graph = pairs_of(), edge_graph(model)
    found = run_masks(model, pairs, torch.stack([torch.zeros_like(graph.valid), graph.valid]), way=way)
    plain = patch(model, pairs, "embed", way=way)
    np.testing.assert_allclose(found[0], plain.base, atol=2e-5)
    np.testing.assert_allclose(found[1], plain.source, atol=2e-5)
    estimated = attribute_edges(model, pairs, way=way)
    np.testing.assert_allclose(estimated.base, plain.base, atol=1e-5)
    assert np.isfinite(estimated.effects).all()
    assert (estimated.effects[~estimated.valid] == 0).all()


def test_an_edge_is_what_giving_the_reader_another_stream_by_hand_gives(tiny_llama: Any) -> None:
    """head.0.3 -> the queries of head.2.1, with norm and projection taken from the model itself."""
    model, pairs = tiny_llama, pairs_of(2)
    pairs = pairs.rows([0])
    layer, block = 2, tiny_llama.hf.model.layers[2]
    streams, heads = [], []
    for ids in (pairs.clean, pairs.corrupt):
        with torch.no_grad():
            streams.append(model.hf(ids, output_hidden_states=True).hidden_states[layer])

        def see(seen: Seen) -> None:
            heads.append(seen.values.clone())

        with observe(model, [("attn", 0)], see):
            model.logits(ids)
    out = model.hf.model.layers[0].self_attn.o_proj.weight[:, 24:32]
    moved = (heads[1] - heads[0])[:, 24:32] @ out.T
    with torch.no_grad():
        queries = block.self_attn.q_proj(block.input_layernorm(streams[0] + moved))[0]

    def put(seen: Seen) -> Tensor:
        new = seen.values.clone()
        new[:, 8:16] = queries[:, 8:16]
        return new

    with change(model, {("q", layer): put}):
        logits = model.logits(pairs.clean)[0, -1]
    expected = float(logits[pairs.answer[0]] - logits[pairs.wrong[0]])
    found = patch_edges(model, pairs, [[("head.0.3", "head.2.1.q")]])
    assert found[0, 0] == pytest.approx(expected, abs=1e-5)
    assert found[0, 0] != pytest.approx(float(patch(model, pairs, "embed").base[0]), abs=1e-6)


def test_all_edges_out_of_a_head_are_the_head_patched(tiny_gpt2: Any) -> None:
    pairs, graph = pairs_of(), edge_graph(tiny_gpt2)
    heads = patch(tiny_gpt2, pairs)
    for name in ("head.0.1", "head.2.3"):
        outgoing = [edge for edge in graph.edges() if edge[0] == name]
        found = patch_edges(tiny_gpt2, pairs, [outgoing])
        np.testing.assert_allclose(found[0], heads.patched[heads.parts.index(name), 0], atol=2e-5)


def test_mean_ablation_gives_every_reader_the_mean_of_what_was_written(tiny_gpt2: Any) -> None:
    """With every edge out of every sender at its mean, all pairs see the same thing but for what they are asked."""
    pairs, graph = pairs_of(), edge_graph(tiny_gpt2)
    pairs = Pairs(**{**vars(pairs), "answer": pairs.answer[:1].expand(4), "wrong": pairs.wrong[:1].expand(4)})
    found = run_masks(tiny_gpt2, pairs, graph.valid[None], mean=True)
    np.testing.assert_allclose(found, found[0, 0], atol=1e-5)


# --- estimates ---------------------------------------------------------------------------------------------------


def test_estimates_into_the_logits_add_up_to_the_gradient_times_the_whole_difference(tiny_llama: Any) -> None:
    """With the last norm frozen where it is, everything that is written adds up: 100 % of what the last stream moves."""
    from patchclamp.intervene.edge_attribution import attribute_parts

    pairs = pairs_of()
    edges = attribute_edges(tiny_llama, pairs)
    into = edges.effects[:, edges.receivers.index("logits")].sum()
    whole = attribute_parts(tiny_llama, pairs, "resid", layers=[2])
    assert into == pytest.approx(float((whole.base - whole.patched[0, 0]).mean()), rel=1e-3, abs=1e-6)


def test_estimates_of_all_edges_into_a_layer_add_up_too(tiny_gpt2: Any) -> None:
    """What q, k, v of layer 1 and its MLP and all above read is the stream behind layer 0, patched whole."""
    from patchclamp.intervene.edge_attribution import attribute_parts

    pairs, graph = pairs_of(), edge_graph(tiny_gpt2)
    edges = attribute_edges(tiny_gpt2, pairs)
    above = [r for r, name in enumerate(graph.receivers) if name == "logits" or int(name.split(".")[1]) >= 1]
    senders = [s for s, name in enumerate(graph.senders) if name == "embed" or int(name.split(".")[1]) == 0]
    whole = attribute_parts(tiny_gpt2, pairs, "resid", layers=[0])
    expected = float((whole.base - whole.patched[0, 0]).mean())
    assert edges.effects[np.ix_(senders, above)].sum() == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_estimates_are_the_slope_of_the_exact_effect(tiny_llama: Any) -> None:
    """Where clean and corrupted embeddings hardly differ, first order is all there is."""
    import copy

    hf = copy.deepcopy(tiny_llama.hf)
    pairs = pairs_of(vocabulary=300)
    weight = hf.model.embed_tokens.weight.data
    for row in range(4):
        weight[pairs.corrupt[row, 2]] = weight[pairs.clean[row, 2]] + 1e-2 * weight[pairs.corrupt[row, 2]]
    near = LanguageModel(hf)
    estimated = attribute_edges(near, pairs, steps=1)
    edges = list(edge_graph(near).edges())
    found = patch_edges(near, pairs, [[edge] for edge in edges])
    plain = run_masks(near, pairs, torch.zeros(1, *estimated.valid.shape, dtype=torch.bool))
    exact_effects = (plain[0] - found).mean(1)
    mine = np.array([estimated.effects[estimated.senders.index(a), estimated.receivers.index(b)] for a, b in edges])
    assert np.corrcoef(mine, exact_effects)[0, 1] > 0.999
    large = np.abs(exact_effects) > 0.05 * np.abs(exact_effects).max()
    np.testing.assert_allclose(mine[large], exact_effects[large], rtol=0.1)


def test_edges_carry_only_what_changes_at_the_asked_position(tiny_gpt2: Any) -> None:
    pairs = pairs_of()
    everywhere = attribute_edges(tiny_gpt2, pairs)
    at = attribute_edges(tiny_gpt2, pairs, position="S")
    np.testing.assert_allclose(at.effects[0], everywhere.effects[0], atol=1e-7)  # the embeddings differ there alone
    assert not np.allclose(at.effects[1:], everywhere.effects[1:])
    before = attribute_edges(tiny_gpt2, pairs, position=0)
    assert (before.effects == 0).all()


@pytest.mark.slow
def test_estimates_agree_with_exact_edges_on_the_bundled_model() -> None:
    """One gradient serves where little is saturated (names) and not where much is (colours); five serve both."""
    demo = load("demo")
    names = ioi(6, demo.tokenizer, templates="demo")
    colors = colored_objects(6, demo.tokenizer, templates="demo")
    edges, rng = list(edge_graph(demo).edges()), np.random.default_rng(0)
    for task, steps, enough in ((names, 1, 0.75), (names, 5, 0.93), (colors, 5, 0.93)):
        estimated = attribute_edges(demo, task, steps=steps)
        some = [*estimated.top(k=20).edges, *(edges[i] for i in rng.choice(len(edges), 10, replace=False).tolist())]
        runs = patch_edges(demo, task, [[edge] for edge in some])
        exactly = 100 * (estimated.base - runs).mean(1) / estimated.gap
        mine = np.array([estimated.score(*edge) for edge in some])
        assert np.corrcoef(mine, exactly)[0, 1] > enough


def test_half_precision_gives_the_same_ranking(tiny_llama: Any) -> None:
    import copy

    half, pairs = load(copy.deepcopy(tiny_llama.hf), dtype="bfloat16", check=False), pairs_of()
    whole, found = attribute_edges(tiny_llama, pairs), attribute_edges(half, pairs)
    assert np.corrcoef(whole.effects[whole.valid], found.effects[whole.valid])[0, 1] > 0.95
    masks = torch.stack([torch.zeros_like(edge_graph(half).valid), edge_graph(half).valid])
    runs = run_masks(half, pairs, masks)
    np.testing.assert_allclose(runs[0], found.base, atol=0.1)
    np.testing.assert_allclose(runs[1], found.source, atol=0.3)


def test_no_edges_change_not_a_bit(tiny_llama: Any) -> None:
    pairs = pairs_of()
    assert np.array_equal(patch_edges(tiny_llama, pairs, [[]])[0], patch(tiny_llama, pairs, "embed").base)
    assert patch_edges(tiny_llama, pairs, []).shape == (0, 4)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 100), st.data())
def test_sets_of_edges_do_not_disturb_each_other(seed: int, data: st.DataObject) -> None:
    model = load(tiny_model("gpt2", seed=4), check=False)
    pairs, edges = pairs_of(3, seed=seed), list(edge_graph(model).edges())
    sets = data.draw(st.lists(st.lists(st.sampled_from(edges), max_size=5), min_size=1, max_size=4))
    together = patch_edges(model, pairs, sets)
    for number, chosen in enumerate(sets):
        np.testing.assert_allclose(together[number], patch_edges(model, pairs, [chosen])[0], atol=1e-5)


# --- what is refused, and files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "said"), [("gemma2", "not the sum"), ("mixtral", "'pre'"), ("mamba", "'attn'")])
def test_models_whose_edges_can_not_be_told_say_why(kind: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        edge_graph(load(tiny_model(kind), check=False))


def test_edges_that_there_are_not_are_refused(tiny_gpt2: Any) -> None:
    pairs = pairs_of()
    for edge in (("head.2.0", "head.1.0.q"), ("mlp.0", "mlp.0"), ("nose", "logits"), ("embed", "head.1.0")):
        with pytest.raises(InputError):
            patch_edges(tiny_gpt2, pairs, [[edge]])
    with pytest.raises(InputError, match="is no edge"):
        kept_runs(tiny_gpt2, pairs, [["head.0.0"]], edges=True)
    with pytest.raises(InputError, match="is no head"):
        kept_runs(tiny_gpt2, pairs, [["head.9.0"]], edges=False)
    with pytest.raises(InputError, match="corrupt, mean"):
        kept_runs(tiny_gpt2, pairs, [[]], edges=False, ablation="zero")
    with pytest.raises(InputError, match="noise, denoise"):
        run_masks(tiny_gpt2, pairs, torch.zeros(1, 1, 1), way="x")
    with pytest.raises(InputError, match="size 9"):
        faithfulness_curve(tiny_gpt2, pairs, Circuit.of_heads(["head.0.0"], model=tiny_gpt2), sizes=[9])


def test_names_follow_the_layers(tiny_llama: Any) -> None:
    graph = edge_graph(tiny_llama)
    assert graph.senders[:7] == ("embed", "head.0.0", "head.0.1", "head.0.2", "head.0.3", "mlp.0", "head.1.0")
    assert graph.receivers[:9] == (
        "head.0.0.q", "head.0.1.q", "head.0.2.q", "head.0.3.q", "head.0.0.k", "head.0.1.k", "head.0.0.v", "head.0.1.v", "mlp.0",
    )  # fmt: skip
    edges = set(graph.edges())
    assert ("head.0.0", "mlp.0") in edges
    assert ("mlp.0", "head.0.0.q") not in edges
    assert ("mlp.2", "logits") in edges
    parallel = edge_graph(load(tiny_model("gpt_neox"), check=False))
    assert ("head.0.0", "mlp.0") not in set(parallel.edges())


def test_scores_are_shown_saved_and_ranked(tiny_gpt2: Any, tmp_path: Path) -> None:
    found = attribute_edges(tiny_gpt2, pairs_of())
    back = EdgeScores.load(found.save(tmp_path / "edges.json"))
    np.testing.assert_array_equal(back.effects, found.effects)
    rows = found.rows(5)
    assert [abs(row["score"]) for row in rows] == sorted((abs(row["score"]) for row in found.rows()), reverse=True)[:5]
    assert rows[0]["low"] <= rows[0]["score"] <= rows[0]["high"]
    assert found.top(0.1).total == int(found.valid.sum())
    assert len(found.top(k=7)) == 7
    assert found.table(3).row_count == 3
    assert "110" not in repr(found)
    assert str(int(found.valid.sum())) in repr(found)
    assert list(found.nodes()) != list(found.senders)
    assert set(found.nodes()) == set(found.senders)
    for wrong in ({}, {"k": 0}, {"k": 10**6}):
        with pytest.raises(InputError):
            found.top(**wrong)
    with pytest.raises(InputError, match="doesn't lie above"):
        found.score("mlp.2", "mlp.0")
    data = json.loads((tmp_path / "edges.json").read_text())
    (tmp_path / "bad.json").write_text(json.dumps({**data, "senders": ["one"]}))
    with pytest.raises(DamagedError):
        EdgeScores.load(tmp_path / "bad.json")


def test_equal_prompts_give_scores_that_say_so(tiny_gpt2: Any) -> None:
    pairs = pairs_of()
    same = Pairs(**{**vars(pairs), "corrupt": pairs.clean})
    found = attribute_edges(tiny_gpt2, same)
    assert (found.effects == 0).all()
    with pytest.warns(UserWarning, match="0/0"):
        assert np.isnan(found.scores).all()


def test_random_circuits_keep_the_number_in_every_layer() -> None:
    universe = [f"head.{layer}.{head}" for layer in range(4) for head in range(6)] + [
        f"mlp.{layer}" for layer in range(4)
    ]
    part = ["head.1.0", "head.1.3", "head.3.5", "mlp.2"]
    drawn = random_like(part, universe, np.random.default_rng(0))
    assert sorted(name.split(".")[:2] for name in drawn) == sorted(name.split(".")[:2] for name in part)
    edges = [f"a{i}->b" for i in range(20)]
    assert len(set(random_like(edges[:5], edges, np.random.default_rng(1)))) == 5
