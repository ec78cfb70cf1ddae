"""Token maps: closed forms, planted neurons, invariants, every site by brute force, files, and what is refused."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import patchclamp as pc
from patchclamp.core.errors import DamagedError, InputError, MismatchError, ModelError
from patchclamp.models.collect import collect
from patchclamp.models.directions import head_directions, output_directions
from patchclamp.models.features import LinearDictionary
from patchclamp.models.head import Head, head_of
from patchclamp.models.norms import linear_part, of_blocks
from patchclamp.models.tiny import tiny_model
from patchclamp.read.agreement import agreement
from patchclamp.read.lm_head import Readout, tokens, tokens_of
from patchclamp.read.token_map import TokenMap, visible


def read(rows: Tensor, matrix: Tensor, k: int = 1, **given: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The ends of rows under a bare head, without a model."""
    head = Head(matrix, given.get("bias"), given.get("scale", 1.0), given.get("cap"), given.get("norm"))
    readout = Readout(head, k, given.get("mode", "none"), given.get("score", "dot"), True, "bias" in given, True)
    parts = [part for part, _ in readout(rows, given.get("reads", False))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_closed_form_of_the_identity_head() -> None:
    found = read(torch.stack([torch.eye(8)[3], 4 * torch.eye(8)[3]]), torch.eye(8))
    p = np.exp(found["top_values"][:, 0] - found["log_sum"])
    assert found["top_ids"].tolist() == [[3], [3]]
    np.testing.assert_allclose(p, [math.e / (math.e + 7), math.e**4 / (math.e**4 + 7)], rtol=1e-6)
    np.testing.assert_allclose(p, [0.27971, 0.88636], atol=5e-6)
    assert found["entropy"][1] < found["entropy"][0] < math.log(8)


def test_scaling_keeps_the_order_negation_turns_it_and_a_common_vector_changes_no_probability() -> None:
    torch.manual_seed(0)
    w, u = torch.randn(6, 12), torch.randn(90, 12)
    plain = read(w, u, 5)
    assert np.array_equal(read(3.5 * w, u, 5)["top_ids"], plain["top_ids"])
    assert np.array_equal(read(-w, u, 5)["top_ids"], plain["bottom_ids"])
    shifted = read(w, u + torch.randn(12), 5)
    np.testing.assert_allclose(
        shifted["top_values"] - shifted["log_sum"][:, None], plain["top_values"] - plain["log_sum"][:, None], atol=1e-4
    )
    turned, _ = torch.linalg.qr(torch.randn(12, 12))
    np.testing.assert_allclose(read(w @ turned, u @ turned, 5)["top_values"], plain["top_values"], atol=1e-4)


def test_mean_deviation_entropy_and_log_sum_are_those_of_the_whole_row() -> None:
    torch.manual_seed(1)
    w, u = torch.randn(70, 12), torch.randn(300, 12) + 0.3
    for score in ("dot", "cosine"):
        whole = (w @ u.T).double()
        whole = whole / (w.norm(dim=1)[:, None] * u.norm(dim=1)) if score == "cosine" else whole
        found = read(w, u, 3, score=score)
        np.testing.assert_allclose(found["top_values"], whole.topk(3).values, rtol=1e-4)
        np.testing.assert_allclose(found["mean"], whole.mean(1), atol=1e-4)
        np.testing.assert_allclose(found["sd"], whole.std(1, correction=0), rtol=1e-4)
        np.testing.assert_allclose(found["log_sum"], whole.logsumexp(1), rtol=1e-5)
        np.testing.assert_allclose(found["entropy"], -(whole.softmax(1) * whole.log_softmax(1)).sum(1), atol=1e-4)


def test_zero_rows_ties_and_duplicated_tokens_are_deterministic() -> None:
    u = torch.randn(200, 8)
    u[150] = u[20]
    found = read(torch.stack([torch.zeros(8), u[20] * 5]), u, 3)
    assert found["top_ids"][0].tolist() == [0, 1, 2]
    assert found["length"][0] == 0
    assert found["entropy"][0] == pytest.approx(math.log(200), abs=1e-4)
    assert [one for one in found["top_ids"][1].tolist() if one in (20, 150)] == [20, 150]


def test_a_soft_cap_keeps_every_ranking_and_a_negative_scale_turns_it() -> None:
    torch.manual_seed(2)
    w, u = torch.randn(5, 8), torch.randn(100, 8)
    plain, capped = read(w, u, 6, mode="final"), read(w, u, 6, mode="final", cap=3.0)
    assert np.array_equal(plain["top_ids"], capped["top_ids"])
    np.testing.assert_allclose(capped["top_values"], 3 * np.tanh(plain["top_values"] / 3), rtol=1e-4)
    np.testing.assert_allclose(read(w, u, 6, cap=3.0)["top_values"], plain["top_values"], rtol=1e-5)
    assert np.array_equal(read(w, u, 6, scale=-0.5)["top_ids"], plain["bottom_ids"])
    np.testing.assert_allclose(read(w, u, 6, scale=0.25)["top_values"], plain["top_values"] / 4, rtol=1e-4)
    assert np.array_equal(
        read(w, u, 6, scale=-2.0, score="cosine")["top_ids"], read(-w, u, 6, score="cosine")["top_ids"]
    )


def test_the_heads_bias_counts_when_asked_for() -> None:
    w, u, bias = torch.randn(3, 8), torch.randn(50, 8), torch.randn(50) * 5
    found = read(w, u, 2, bias=bias)
    np.testing.assert_allclose(found["top_values"], (w @ u.T + bias).topk(2).values, rtol=1e-4)
    np.testing.assert_allclose(found["sd"], (w @ u.T + bias).std(1, correction=0), rtol=1e-4)


class OnePlus(nn.Module):
    """Gemma's form: x / rms(x) * (1 + g)."""

    def __init__(self, gain: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(gain)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


@pytest.mark.parametrize("width", [16, 17])
def test_gains_of_norms_are_measured_from_outside(width: int) -> None:
    torch.manual_seed(0)
    layer = nn.LayerNorm(width)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    one_plus = OnePlus(torch.randn(width))
    w = torch.randn(4, width)
    found = linear_part(layer, width)
    assert found.centres
    torch.testing.assert_close(found(w), layer.weight.detach() * (w - w.mean(1, keepdim=True)), rtol=1e-3, atol=1e-3)
    found = linear_part(one_plus, width)
    assert not found.centres
    torch.testing.assert_close(found(w), (1 + one_plus.weight.detach()) * w, rtol=1e-3, atol=1e-3)
    pulled = linear_part(layer, width).pulled_back(w)
    x = torch.randn(width)
    torch.testing.assert_close(pulled @ x, w @ (layer.weight.detach() * (x - x.mean())), rtol=1e-3, atol=1e-3)


def test_what_is_no_norm_is_refused() -> None:
    with pytest.raises(ModelError, match="no norm of the kind"):
        linear_part(nn.Sequential(nn.Linear(8, 8), nn.Tanh()), 8)


@pytest.mark.parametrize(("kind", "before", "after"), [("gpt2", "ln_2", None), ("gemma2", "pre_feed", "post_feed"),
                                                       ("gpt_neox", "post_attention", None)])  # fmt: skip
def test_the_norms_around_the_mlp_are_found(kind: str, before: str, after: str | None) -> None:
    hf = tiny_model(kind)
    for name, weight in hf.named_parameters():
        if "norm" in name or "ln_" in name:
            nn.init.normal_(weight, 0.3, 0.5)
    names = {module: name for name, module in hf.named_modules()}
    for norms in of_blocks(pc.load(hf)):
        assert before in names[norms.before["mlp"]]
        assert (norms.after["mlp"] is None) == (after is None)
        assert after is None or after in names[norms.after["mlp"]]


@pytest.fixture(scope="module")
def planted(tiny_llama: Any) -> Any:
    """A Llama whose neuron mlp.1.17 listens for token 77 and writes it; its gate is closed."""
    hf = copy.deepcopy(tiny_llama.hf)
    row = hf.lm_head.weight[77]
    with torch.no_grad():
        mlp = hf.model.layers[1].mlp
        mlp.up_proj.weight[17] = 2 * row / row.norm()
        mlp.gate_proj.weight[17] = 0.0
        mlp.down_proj.weight[:, 17] = 0.7 * row
    return pc.load(hf, tokenizer=tiny_llama.tokenizer)


def test_a_planted_neuron_is_labelled_and_found_by_its_token(planted: Any) -> None:
    for site in ("mlp", "up"):
        found = tokens(planted, sites=site, k=3, norm="none")
        assert found.top_ids[found.index(f"{site}.1.17"), 0] == 77
        assert found.holding([77])[0][0] == f"{site}.1.17" or found.holding([77])[0][1] == 0
        cosine = tokens(planted, sites=site, k=1, norm="none", score="cosine")
        assert cosine.holding([77])[0][0] == f"{site}.1.17"
        assert cosine.top_values[cosine.index(f"{site}.1.17"), 0] == pytest.approx(1.0, abs=1e-5)


def test_clamping_a_planted_neuron_moves_its_score_by_the_predicted_amount(planted: Any) -> None:
    ids = torch.tensor([[1, 9, 30, 44, 5]])
    row = planted.hf.lm_head.weight[77].double()
    plain = collect(planted, "resid", ids)[0, :, 32:64].double() @ row
    m = collect(planted, "mlp", ids)[0, :, 48 + 17].double()
    for value in (-2.0, 3.0):
        with pc.clamp(planted, ["mlp.1.17"], to=value):
            moved = collect(planted, "resid", ids)[0, :, 32:64].double() @ row
        torch.testing.assert_close(moved - plain, (value - m) * 0.7 * (row @ row), rtol=1e-5, atol=1e-5)
    before = planted.logits(ids)
    with pc.clamp(planted, ["up.1.17"], to=50.0):
        assert torch.equal(planted.logits(ids), before)  # the gate is closed


def brute(model: Any, rows: Tensor, folded: bool) -> Tensor:
    """Logits of directions by the plain formula, with the final norm's gain where folded."""
    norm = model.anatomy.module(model.anatomy.final_norm)
    if folded:
        rows = rows - rows.mean(1, keepdim=True) if isinstance(norm, nn.LayerNorm) else rows
        rows = rows * norm.weight
    return rows @ model.hf.get_output_embeddings().weight.T


@pytest.mark.parametrize("folded", [True, False])
def test_every_written_site_is_its_weights_times_the_head(tiny_gpt2: Any, folded: bool) -> None:
    model = pc.load(copy.deepcopy(tiny_gpt2.hf), tokenizer=tiny_gpt2.tokenizer)
    nn.init.uniform_(model.hf.transformer.ln_f.weight, -1, 2)
    blocks = model.hf.transformer.h
    expected = {
        "mlp": torch.cat([block.mlp.c_proj.weight for block in blocks]),
        "attn": torch.cat([block.attn.c_proj.weight for block in blocks]),
        "resid": torch.eye(32).repeat(3, 1),
        "embed": torch.eye(32),
    }
    for site, rows in expected.items():
        found = tokens(model, sites=site, k=4, norm="fold" if folded else "none")
        values = brute(model, rows, folded)
        np.testing.assert_allclose(found.top_values, values.topk(4).values, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found.bottom_values, values.topk(4, largest=False).values, rtol=1e-3, atol=1e-4)
        assert len(found) == model.layouts[site].total


def test_read_sites_are_rows_behind_the_gain_of_their_norm(tiny_llama: Any) -> None:
    model = pc.load(copy.deepcopy(tiny_llama.hf), tokenizer=tiny_llama.tokenizer)
    layers, head = model.hf.model.layers, model.hf.lm_head.weight
    for layer in layers:
        nn.init.uniform_(layer.post_attention_layernorm.weight, 0.2, 3)
        nn.init.uniform_(layer.input_layernorm.weight, 0.2, 3)
    for site, name, norm in (("up", "mlp.up_proj", "post_attention_layernorm"),
                             ("gate", "mlp.gate_proj", "post_attention_layernorm"),
                             ("v", "self_attn.v_proj", "input_layernorm")):  # fmt: skip
        rows = [layer.get_submodule(name).weight for layer in layers]
        gains = [layer.get_submodule(norm).weight for layer in layers]
        bare, folded = (torch.cat([r * (g if on else 1) for r, g in zip(rows, gains, strict=True)]) for on in (0, 1))
        for mode, given in (("none", bare), ("fold", folded)):
            found = tokens(model, sites=site, k=3, norm=mode)
            np.testing.assert_allclose(found.top_values, (given @ head.T).topk(3).values, rtol=1e-3, atol=1e-4)


def test_final_takes_each_direction_for_a_state(tiny_gpt2: Any) -> None:
    found = tokens(tiny_gpt2, k=2, norm="final")
    rows = torch.cat([block.mlp.c_proj.weight for block in tiny_gpt2.hf.transformer.h])
    with torch.no_grad():
        values = tiny_gpt2.hf.lm_head(tiny_gpt2.hf.transformer.ln_f(rows))
    np.testing.assert_allclose(found.top_values, values.topk(2).values, rtol=1e-4, atol=1e-4)


def test_a_head_is_its_strongest_path_through_ov(tiny_llama: Any) -> None:
    found = head_directions(tiny_llama, 1)
    attention = tiny_llama.hf.model.layers[1].self_attn
    for head in range(4):
        writes = attention.o_proj.weight[:, head * 8 : head * 8 + 8]
        reads = attention.v_proj.weight[head // 2 * 8 : head // 2 * 8 + 8]  # two key-value heads serve four
        u, s, _ = torch.linalg.svd(writes @ reads)
        assert abs(float(found[head] @ u[:, 0])) == pytest.approx(float(s[0]), rel=1e-4)
        assert found[head].norm() == pytest.approx(float(s[0]), rel=1e-4)
    assert len(tokens(tiny_llama, sites="head", k=2)) == 12


def test_experts_are_read_one_by_one() -> None:
    model = pc.load(tiny_model("mixtral"))
    found = tokens(model, k=2, norm="none")
    weight = model.hf.get_output_embeddings().weight
    for layer, expert, unit in ((0, 0, 3), (1, 3, 7)):
        down = model.hf.model.layers[layer].mlp.experts.down_proj[expert]  # (d_model, width)
        expected = (weight @ down[:, unit]).topk(2)
        row = found.index(f"mlp.{layer}.e{expert}.{unit}")
        np.testing.assert_allclose(found.top_values[row], expected.values, rtol=1e-4)
        assert found.top_ids[row].tolist() == expected.indices.tolist()
    assert found.strings(f"mlp.0.e0.{3}")["promotes"][0].startswith("#")  # no tokenizer: ids


def test_features_are_read_through_their_decoder(tiny_llama: Any) -> None:
    torch.manual_seed(0)
    in_stream, in_mlp = torch.randn(5, 32), torch.randn(4, 48)
    model = tiny_llama.with_features(
        LinearDictionary.of_directions("flow", "resid", 1, in_stream),
        LinearDictionary.of_directions("parts", "mlp", 2, in_mlp),
    )
    head, down = model.hf.lm_head.weight, model.hf.model.layers[2].mlp.down_proj.weight
    for site, dictionary_rows in (("flow", None), ("parts", down.T)):
        rows = next(iter(model.anatomy.features[site].values())).directions
        expected = (rows if dictionary_rows is None else rows @ dictionary_rows) @ head.T
        found = tokens(model, sites=site, k=2, norm="none")
        np.testing.assert_allclose(found.top_values, expected.topk(2).values, rtol=1e-3, atol=1e-4)
        assert found.names[0].startswith(f"{site}.")


def test_raw_directions_are_read_and_named(tiny_gpt2: Any, tmp_path: Path) -> None:
    rows = torch.randn(3, 32)
    found = tokens_of(tiny_gpt2, rows, ["a", "b", "c"], k=2, norm="none")
    np.testing.assert_allclose(found.top_values, brute(tiny_gpt2, rows, False).topk(2).values, rtol=1e-4, atol=1e-4)
    assert found.strings("b")["promotes"] == [found.token(int(one)) for one in found.top_ids[1]]
    assert TokenMap.load(found.save(tmp_path / "raw.json")).names == ("a", "b", "c")
    for bad, what in ((torch.randn(3, 31), "is needed"), (torch.full((1, 32), math.nan), "NaN")):
        with pytest.raises(InputError, match=what):
            tokens_of(tiny_gpt2, bad)
    with pytest.raises(InputError, match="different names"):
        tokens_of(tiny_gpt2, rows, ["a", "a", "c"])


def test_chosen_units_have_the_rows_of_the_whole_map(tiny_llama: Any) -> None:
    whole = tokens(tiny_llama, sites=("mlp", "attn"), k=3)
    some = tokens(tiny_llama, units=["mlp.2.7", "attn.0.5", "mlp.0.1"], k=3)
    assert some.names == ("attn.0.5", "mlp.0.1", "mlp.2.7")
    for name in some.names:
        assert np.array_equal(some.top_ids[some.index(name)], whole.top_ids[whole.index(name)])
    assert some.units.names() == list(some.names)


def test_tied_and_untied_heads_of_equal_weights_agree(tiny_gpt2: Any) -> None:
    untied = copy.deepcopy(tiny_gpt2.hf)
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.detach().clone())
    found = agreement(tokens(tiny_gpt2, k=3), tokens(pc.load(untied, tokenizer=tiny_gpt2.tokenizer), k=3))
    assert (found.overall, found.jaccard) == (1.0, 1.0)


def test_bfloat16_models_are_read_in_float32(tiny_llama: Any) -> None:
    half = pc.load(copy.deepcopy(tiny_llama.hf).bfloat16(), tokenizer=tiny_llama.tokenizer)
    wide = pc.load(copy.deepcopy(half.hf).float(), tokenizer=tiny_llama.tokenizer)
    a, b = tokens(half, k=3, norm="none"), tokens(wide, k=3, norm="none")
    assert np.array_equal(a.top_ids, b.top_ids)
    np.testing.assert_allclose(a.top_values, b.top_values, rtol=1e-6)


def test_a_map_is_saved_loaded_and_tied_to_its_model(tiny_gpt2: Any, tiny_llama: Any, tmp_path: Path) -> None:
    found = tokens(tiny_gpt2, sites=("mlp", "attn"), k=4, probabilities=True)
    path = found.save(tmp_path / "map.json")
    again = TokenMap.load(path, model=tiny_gpt2)
    assert again.names == found.names
    assert again.strings("attn.1.3") == found.strings("attn.1.3")
    assert again.rows() == found.rows()
    assert np.array_equal(again.softmax["entropy"], found.softmax["entropy"])
    assert again.provenance["call"] == "read.tokens"
    with pytest.raises(MismatchError, match="was read from"):
        TokenMap.load(path, model=tiny_llama)
    (tmp_path / "map.safetensors").write_bytes(b"other")
    with pytest.raises(DamagedError, match="not the file"):
        TokenMap.load(path)
    (tmp_path / "map.safetensors").unlink()
    with pytest.raises(DamagedError, match="beside it"):
        TokenMap.load(path)
    with pytest.raises(InputError, match=r"ends in \.json"):
        found.save(tmp_path / "map.safetensors")


def test_a_map_prints_and_lists_specialised_units(tiny_gpt2: Any) -> None:
    found = tokens(tiny_gpt2, k=4)
    best = found.specialised(0.05)
    assert len(best) == round(0.05 * 384)
    assert min(found.z[found.index(name)] for name in best.names()) >= np.sort(found.z)[-round(0.05 * 384)]
    assert "384 units" in repr(found)
    assert "mlp.0.0" in found._repr_html_()
    assert [row["layer"] for row in found.by_layer()] == [0, 1, 2]
    assert visible(" cat\n") == "_cat\\n"


def test_agreement_is_one_with_itself_and_drops_where_neurons_were_permuted(tiny_gpt2: Any) -> None:
    other = copy.deepcopy(tiny_gpt2.hf)
    mlp = other.transformer.h[1].mlp
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mlp.c_proj.weight[:] = mlp.c_proj.weight[order]
        mlp.c_fc.weight[:], mlp.c_fc.bias[:] = mlp.c_fc.weight[:, order], mlp.c_fc.bias[order]
    moved = pc.load(other, tokenizer=tiny_gpt2.tokenizer)
    a, b = tokens(tiny_gpt2, k=5), tokens(moved, k=5)
    same = agreement(a, a, models=(tiny_gpt2, tiny_gpt2))
    assert (same.overall, same.jaccard, same.compared) == (1.0, 1.0, 384)
    assert all(row["cosine"] == pytest.approx(1.0, abs=1e-5) for row in same.rows())
    by_layer = agreement(a, b).rows()
    assert [row["same"] == 1.0 for row in by_layer] == [True, False, True]
    labels = a.top_ids[128:256, 0]
    share = np.bincount(labels) / 128
    assert by_layer[1]["chance"] == pytest.approx(float(share @ share))
    assert abs(by_layer[1]["same"] - by_layer[1]["chance"]) < 0.15


def test_maps_of_other_shapes_tokenizers_or_settings_are_not_compared(tiny_gpt2: Any, tiny_llama: Any) -> None:
    a = tokens(tiny_gpt2, k=3)
    for b, what in ((tokens(tiny_llama, k=3), "different units"), (tokens(tiny_gpt2, k=2), "same k"),
                    (tokens(tiny_gpt2, k=3, norm="none"), "norm")):  # fmt: skip
        with pytest.raises(MismatchError, match=what):
            agreement(a, b)
    renamed = copy.copy(a)
    object.__setattr__(renamed, "vocabulary", {one: f"{text}!" for one, text in a.vocabulary.items()})
    with pytest.raises(MismatchError, match="tokenizers"):
        agreement(a, renamed)


def test_another_models_head_can_read(tiny_gpt2: Any, tiny_llama: Any) -> None:
    found = tokens(tiny_llama, k=2, norm="none", head=tiny_gpt2)
    rows = torch.cat([layer.mlp.down_proj.weight.T for layer in tiny_llama.hf.model.layers])
    np.testing.assert_allclose(
        found.top_values, (rows @ tiny_gpt2.hf.lm_head.weight.T).topk(2).values, rtol=1e-3, atol=1e-4
    )
    assert "head" in found.provenance["inputs"]


def test_what_cant_be_read_is_refused_in_one_line(tiny_gpt2: Any, tiny_llama: Any) -> None:
    for given, what in (
        ({"sites": "nothing"}, "no site"),
        ({"sites": ()}, "no sites given"),
        ({"k": 0}, "k=0"),
        ({"k": 10_000}, "320 tokens"),
        ({"norm": "half"}, "choose"),
        ({"score": "angle"}, "choose"),
        ({"ends": "left"}, "choose"),
        ({"score": "cosine", "bias": True}, "no meaning"),
        ({"units": ["mlp.9.9"]}, "layer 9"),
    ):
        with pytest.raises(InputError, match=what):
            tokens(tiny_gpt2, **given)
    with pytest.raises(MismatchError, match="belong to model"):
        tokens(tiny_gpt2, units=pc.UnitSet.of(tiny_llama, ["mlp.0.1"]))
    found = tokens(tiny_gpt2, units=["mlp.0.1"], k=2)
    for unit, what in (("mlp.0.2", "was not read"), ("attn.0.2", "no units of")):
        with pytest.raises(InputError, match=what):
            found.strings(unit)


def test_models_without_a_usable_head_are_refused(tiny_gpt2: Any) -> None:
    model = pc.load(copy.deepcopy(tiny_gpt2.hf))
    model.anatomy.lm_head = None
    with pytest.raises(InputError, match="no LM head"):
        tokens(model)
    model = pc.load(copy.deepcopy(tiny_gpt2.hf))
    model.hf.lm_head.weight = nn.Parameter(torch.zeros(320, 31))
    with pytest.raises(InputError, match="stands between"):
        head_of(model)


def test_nan_weights_are_named_by_layer_and_row(tiny_gpt2: Any) -> None:
    model = pc.load(copy.deepcopy(tiny_gpt2.hf))
    model.hf.transformer.h[2].mlp.c_proj.weight[11, 3] = math.nan
    with pytest.raises(ModelError, match=r"mlp\.2\.11 \(layer 2, row 11\)"):
        list(output_directions(model, "mlp"))
    model.hf.lm_head.weight = nn.Parameter(model.hf.lm_head.weight.clone())
    model.hf.lm_head.weight.data[5, 0] = math.inf
    with pytest.raises(ModelError, match="token 5"):
        head_of(model)


def test_an_undefined_unit_lists_nothing(tiny_gpt2: Any) -> None:
    model = pc.load(copy.deepcopy(tiny_gpt2.hf), tokenizer=tiny_gpt2.tokenizer)
    model.hf.transformer.h[0].mlp.c_proj.weight[4] = 0.0
    found = tokens(model, k=3)
    assert found.undefined.nonzero()[0].tolist() == [4]
    assert found.strings("mlp.0.4") == {"promotes": [], "suppresses": []}
    assert found.rows()[4]["z"] is None
    assert all(unit != "mlp.0.4" for unit, _, _ in found.holding(range(320)))
