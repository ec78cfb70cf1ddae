"""Sparse decoding: exact, per sequence, through generate() in all its forms, undone afterwards, and refused where it can't be."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tests.generate.planted_topics import TOPICS, WORDS, group, planted_model, text_of, token
from torch import Tensor

from patchclamp.core.errors import InputError, MismatchError, ModelError
from patchclamp.generate import core_sparse
from patchclamp.intervene import clamp
from patchclamp.models.hooks import prompt_scope
from patchclamp.models.load import load
from patchclamp.models.tiny import tiny_model
from patchclamp.models.units import UnitSet

KINDS = ("llama", "opt", "gpt2", "phi3", "gptj", "falcon", "gemma2", "gemma3")
FAMILIES = pytest.mark.parametrize("kind", KINDS)
FORMS = pytest.mark.parametrize("form", ["union", "grouped", "auto"])
QUIET = {"min_tokens": 0, "layers": (0.0, 1.0)}
KEPT: dict[str, Any] = {}


def tiny(kind: str) -> Any:
    """A tiny model of a family; with random biases, so that a lost one shows."""
    if kind not in KEPT:
        hf = tiny_model(kind)
        with torch.no_grad():
            for name, weight in hf.named_parameters():
                if name.endswith("bias"):
                    weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(len(name)))
                elif weight.dim() == 2:
                    weight.mul_(4)  # random models say the same after any text otherwise
        hf.generation_config.eos_token_id = None
        KEPT[kind] = load(hf)
    return KEPT[kind]


@pytest.fixture(scope="module")
def planted() -> Any:
    return planted_model()


def prompt(batch: int, seq: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 190, (batch, seq), generator=torch.Generator().manual_seed(seed))


def padded() -> tuple[Tensor, Tensor, list[Tensor]]:
    """Three prompts of different length, padded on the left, their mask, and each by itself."""
    alone = [prompt(1, n, seed=n) for n in (9, 4, 1)]
    ids, mask = torch.zeros(3, 9, dtype=torch.int64), torch.zeros(3, 9, dtype=torch.int64)
    for row, one in enumerate(alone):
        ids[row, 9 - one.shape[1] :], mask[row, 9 - one.shape[1] :] = one[0], 1
    return ids, mask, alone


def continued(model: Any, ids: Tensor, mask: Tensor | None = None, **arguments: Any) -> Tensor:
    mask = torch.ones_like(ids) if mask is None else mask
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, **arguments}
    return model.hf.generate(ids, attention_mask=mask, **settings)[:, ids.shape[1] :]


def step_by_step(model: Any, ids: Tensor, new: Tensor) -> Tensor:
    """Logits after a prompt and after each of some new tokens, with a KV cache."""
    found = []
    with torch.no_grad():
        out = model.hf(input_ids=ids, use_cache=True)
        for column in new.T:
            found.append(out.logits[:, -1])
            out = model.hf(input_ids=column[:, None], past_key_values=out.past_key_values, use_cache=True)
    return torch.stack([*found, out.logits[:, -1]], 1)


def untouched(model: Any) -> bool:
    return not any("forward" in vars(module) for module in model.hf.modules()) and "generate" not in vars(model.hf)


@FAMILIES
def test_all_neurons_give_the_plain_model_bit_for_bit(kind: str) -> None:
    model = tiny(kind)
    ids, mask, _ = padded()
    new = prompt(3, 4, seed=7)
    plain, logits = continued(model, ids, mask), step_by_step(model, ids, new)
    with core_sparse(model, share=1.0, **QUIET) as sparse:
        assert torch.equal(continued(model, ids, mask), plain)
        assert set(sparse.forms.values()) == {"whole"}
        assert torch.equal(step_by_step(model, ids, new), logits)
    assert untouched(model)


@FAMILIES
def test_sub_matrices_equal_the_whole_model_with_other_neurons_at_zero(kind: str) -> None:
    model, ids, new = tiny(kind), prompt(1, 11), prompt(1, 5, seed=3)
    with core_sparse(model, share=0.3, **QUIET) as sparse:
        found = step_by_step(model, ids, new)
        (core,) = sparse.cores()
        assert set(sparse.forms.values()) == {"sliced"}
        assert sparse.bytes["read"] < 0.4 * sparse.bytes["whole"]
    layout = model.layouts["mlp"]
    rest = UnitSet.at(model, "mlp", np.setdiff1d(np.arange(layout.total), core.positions["mlp"]))
    plain = step_by_step(model, ids, new)
    with clamp(model, rest, to=0.0, scope="generated"), prompt_scope(model, ids.shape[1]):
        masked = step_by_step(model, ids, new)
    torch.testing.assert_close(found, masked, atol=1e-5, rtol=1e-5)
    assert torch.equal(found[:, 0], plain[:, 0])  # the whole model says the first new token
    assert not torch.allclose(found[:, 1:], plain[:, 1:], atol=1e-3)


@FORMS
@pytest.mark.parametrize("kind", ["llama", "opt", "gpt2", "phi3"])
def test_a_padded_batch_gives_each_prompt_what_it_gets_alone(kind: str, form: str) -> None:
    model = tiny(kind)
    ids, mask, alone = padded()
    with core_sparse(model, share=0.3, form=form, **QUIET) as sparse:
        together = continued(model, ids, mask)
        cores = sparse.cores()
        assert sparse.tokens == [9, 4, 1]
        assert set(sparse.forms.values()) <= ({form} if form != "auto" else {"union", "grouped"})
    for row, one in enumerate(alone):
        with core_sparse(model, share=0.3, **QUIET) as sparse:
            assert torch.equal(continued(model, one)[0], together[row])
            assert sparse.cores() == [cores[row]]


def test_a_core_smaller_than_asked_for_is_computed_exactly_in_every_form() -> None:
    model = tiny("opt")  # after one token fewer neurons are positive than 90%
    ids, mask, _ = padded()
    found = {}
    for form in ("masked", "union", "grouped"):
        with core_sparse(model, share=0.9, token_share=1.0, form=form, **QUIET) as sparse:
            found[form] = continued(model, ids, mask)
            sizes = [len(core) for core in sparse.cores()]
    assert sizes[2] < sizes[0]
    assert torch.equal(found["union"], found["masked"])
    assert torch.equal(found["grouped"], found["masked"])


@FORMS
@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_beams_and_samples_of_a_prompt_share_its_core(kind: str, form: str) -> None:
    model = tiny(kind)
    ids, mask, _ = padded()
    for arguments in ({"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}):
        with core_sparse(model, share=0.3, form="masked", **QUIET) as sparse:
            expected = continued(model, ids, mask, **arguments)
            cores = sparse.cores()
        with core_sparse(model, share=0.3, form=form, **QUIET) as sparse:
            assert torch.equal(continued(model, ids, mask, **arguments), expected)
            assert sparse.tokens == [9, 4, 1]
            assert sparse.cores() == cores
    found = []
    for how in ("masked", form):
        torch.manual_seed(5)
        with core_sparse(model, share=0.3, form=how, **QUIET) as sparse:
            found.append(continued(model, ids, mask, do_sample=True, num_return_sequences=2))
            assert len(sparse.tokens) == 3
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", ["llama", "opt", "gpt2"])
def test_without_a_cache_and_in_pieces_a_prompt_gives_the_same(kind: str) -> None:
    model = tiny(kind)
    ids, mask, _ = padded()
    with core_sparse(model, share=0.3, **QUIET) as sparse:
        expected, cores = continued(model, ids, mask), sparse.cores()
    with core_sparse(model, share=0.3, **QUIET):
        assert torch.equal(continued(model, ids, mask, use_cache=False), expected)
    with core_sparse(model, share=0.3, **QUIET) as sparse:
        whole = prompt(2, 9)
        plain, first = continued(model, whole), sparse.cores()
        assert torch.equal(continued(model, whole, prefill_chunk_size=4), plain)
        assert sparse.cores() == first
    assert len(cores) == 3


def test_prompt_and_answer_in_one_pass_mean_the_same_as_step_by_step() -> None:
    model, ids, new = tiny("llama"), prompt(2, 8), prompt(2, 4, seed=2)
    with core_sparse(model, share=0.3, **QUIET):
        expected = step_by_step(model, ids, new)
    with core_sparse(model, share=0.3, **QUIET), prompt_scope(model, 8), torch.no_grad():
        found = model.hf(input_ids=torch.cat([ids, new], 1), use_cache=False).logits[:, 7:]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_second_turn_on_the_same_cache_counts_both_prompts() -> None:
    model, ids, more = tiny("llama"), prompt(1, 8), prompt(1, 6, seed=9)
    with core_sparse(model, share=0.3, **QUIET) as sparse:
        first = model.hf.generate(ids, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        counted = [layer.counts.counts.clone() for layer in sparse._layers.values()]
        longer = torch.cat([first.sequences, more], 1)
        model.hf.generate(longer, past_key_values=first.past_key_values, max_new_tokens=2, do_sample=False)
        assert sparse.tokens == [8 + 1 + 6]  # the last new token of the first turn had not been fed back
        assert all(
            bool((layer.counts.counts >= before).all())
            for layer, before in zip(sparse._layers.values(), counted, strict=True)
        )


def test_permuting_neurons_permutes_the_core_and_changes_nothing_else() -> None:
    model, ids = load(tiny_model("llama")), prompt(1, 10)
    with core_sparse(model, share=0.3, **QUIET) as sparse:
        before = step_by_step(model, ids, prompt(1, 3))
        (core,) = sparse.cores()
    order = torch.randperm(48, generator=torch.Generator().manual_seed(1))
    moved = load(tiny_model("llama"))
    mlp = moved.hf.model.layers[1].mlp
    with torch.no_grad():
        for up in (mlp.gate_proj, mlp.up_proj):
            up.weight.copy_(up.weight[order].clone())
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, order].clone())
    with core_sparse(moved, share=0.3, **QUIET) as sparse:
        torch.testing.assert_close(step_by_step(moved, ids, prompt(1, 3)), before, atol=1e-5, rtol=1e-5)
        (now,) = sparse.cores()
    mine, theirs = ({unit.index for unit in units.layers([1])} for units in (core, now))
    assert {int(order[index]) for index in theirs} == mine


def test_the_core_of_a_planted_topic_is_its_group_and_no_other_topic_shares_it(planted: Any) -> None:
    prompts = [text_of(topic, 1)[0] for topic in range(len(TOPICS))]
    with core_sparse(planted, share=0.25, token_share=1.0, layers=[1], min_tokens=0) as sparse:
        written = planted.generate(prompts, max_new_tokens=3)
        cores = sparse.cores()
    assert [[unit.index for unit in core] for core in cores] == [group(topic) for topic in range(len(TOPICS))]
    assert written == [" ".join([f"{TOPICS[topic]}{WORDS - 1}"] * 3) for topic in range(len(TOPICS))]


def test_a_prompt_decoded_with_another_topics_core_loses_its_planted_answer(planted: Any) -> None:
    for topic, right in ((0, True), (1, False)):
        units = UnitSet.of(planted, [f"mlp.1.{index}" for index in group(topic)])
        with core_sparse(planted, guide=units, layers=[1], min_tokens=0):
            written = planted.generate(text_of(0, 4), max_new_tokens=4)
        assert all((text.split()[1:] == [f"a{WORDS - 1}"] * 3) is right for text in written)


def test_after_a_change_of_topic_a_refresh_finds_the_new_core(planted: Any) -> None:
    ids = torch.tensor([[token(0, n % 5) for n in range(8)]])
    new = torch.tensor([[token(2, n % 5) for n in range(9)]])
    arguments: dict[str, Any] = {"share": 0.25, "token_share": 1.0, "layers": [1], "min_tokens": 0}
    answer = token(2, WORDS - 1)
    with core_sparse(planted, **arguments) as sparse:
        assert not (step_by_step(planted, ids, new).argmax(-1)[0, 1:] == answer).any()
        assert sparse.refreshed == 0
    with core_sparse(planted, refresh=3, keep=0.0, **arguments) as sparse:
        said = step_by_step(planted, ids, new).argmax(-1)[0]
        assert [unit.index for unit in sparse.cores()[0]] == group(2)
        assert sparse.refreshed == 2
    assert (said[4:] == answer).all()  # the fourth new token is the first one computed after a refresh
    with core_sparse(planted, refresh=3, keep=1.0, **arguments) as sparse:
        step_by_step(planted, ids, new)
        assert [unit.index for unit in sparse.cores()[0]] == group(
            0
        )  # 8 tokens of the old topic, 8 of the new, one left


@pytest.mark.parametrize("kind", ["llama", "opt", "gpt2", "phi3"])
def test_a_refresh_counts_what_the_new_tokens_would_have_used(kind: str) -> None:
    model = tiny(kind)
    ids, mask, _ = padded()
    found = {}
    for form in ("masked", "union", "grouped"):
        with core_sparse(model, share=0.4, refresh=2, keep=0.5, form=form, **QUIET) as sparse:
            found[form] = continued(model, ids, mask, max_new_tokens=9)
            assert sparse.refreshed == 3
            cores = sparse.cores()
    assert torch.equal(found["union"], found["masked"])
    assert torch.equal(found["grouped"], found["masked"])
    with core_sparse(model, share=1.0, refresh=2, **QUIET):
        whole = continued(model, ids, mask)
    assert torch.equal(whole, continued(model, ids, mask))
    assert len(cores) == 3


def test_counts_after_a_refresh_are_those_of_prompt_and_new_tokens_read_whole() -> None:
    model, ids, new = tiny("llama"), prompt(1, 7), prompt(1, 4, seed=4)
    with core_sparse(model, share=0.3, refresh=3, keep=1.0, layers=[0], min_tokens=0) as sparse:
        step_by_step(model, ids, new)  # layer 0 alone is cut: what enters it doesn't depend on the cut
        counts = sparse._layers[0].counts.counts
    with core_sparse(model, share=0.3, layers=[0], min_tokens=0) as sparse:
        step_by_step(model, torch.cat([ids, new], 1), new[:, :0])
        assert torch.equal(sparse._layers[0].counts.counts, counts)


def test_bfloat16_decodes_like_the_masked_model() -> None:
    model = load(tiny_model("llama").to(torch.bfloat16))
    ids, new = prompt(2, 8), prompt(2, 4, seed=2)
    found = {}
    for form in ("masked", "union", "grouped"):
        with core_sparse(model, share=0.3, form=form, **QUIET) as sparse:
            found[form] = step_by_step(model, ids, new).float()
            assert sparse.cores()
    torch.testing.assert_close(found["union"], found["masked"], atol=0.05, rtol=0.05)
    torch.testing.assert_close(found["grouped"], found["masked"], atol=0.05, rtol=0.05)


def test_clamps_elsewhere_compose_and_clamps_of_neurons_do_in_the_masked_form() -> None:
    model, ids = tiny("llama"), prompt(1, 8)
    stream, neuron = UnitSet.of(model, ["resid.0.3"]), UnitSet.of(model, ["mlp.1.5"])
    with core_sparse(model, share=0.3, **QUIET):
        plain = step_by_step(model, ids, ids[:, :3])
        with clamp(model, stream, add=30.0):
            assert not torch.allclose(step_by_step(model, ids, ids[:, :3]), plain)
        with clamp(model, neuron, add=30.0), pytest.raises(ModelError, match="positions"):
            step_by_step(model, ids, ids[:, :3])
    with core_sparse(model, share=0.3, form="masked", **QUIET), clamp(model, neuron, add=30.0):
        assert not torch.allclose(step_by_step(model, ids, ids[:, :3]), plain)
    assert untouched(model)


def test_embeddings_assisted_decoding_and_a_static_cache_give_the_same() -> None:
    model, ids = tiny("llama"), prompt(1, 12)
    embedded = model.hf.get_input_embeddings()(ids)
    with core_sparse(model, share=0.3, **QUIET) as sparse:
        expected, cores = continued(model, ids), sparse.cores()
        found = model.hf.generate(inputs_embeds=embedded, max_new_tokens=8, do_sample=False, pad_token_id=0)
        assert torch.equal(found, expected)
        assert sparse.cores() == cores
        assert torch.equal(continued(model, ids, prompt_lookup_num_tokens=2), expected)
        assert torch.equal(continued(model, ids, cache_implementation="static"), expected)


def test_a_second_use_on_the_same_model_is_refused(llama: Any) -> None:
    with core_sparse(llama, **QUIET), pytest.raises(InputError, match="active on this model already"):  # noqa: SIM117
        with core_sparse(llama, **QUIET):
            pass
    with core_sparse(llama, **QUIET):
        pass


def test_everything_is_undone_on_any_exception() -> None:
    model, ids = tiny("llama"), prompt(1, 8)
    before = continued(model, ids)
    with pytest.raises(RuntimeError, match="in between"), core_sparse(model, share=0.3, **QUIET):
        continued(model, ids)
        raise RuntimeError("in between")
    assert untouched(model)
    assert torch.equal(continued(model, ids), before)


def test_what_was_chosen_outlives_the_context_but_the_parts_of_weights_do_not() -> None:
    model, ids = tiny("llama"), prompt(2, 8)
    with core_sparse(model, share=0.3, **QUIET) as sparse:
        continued(model, ids)
        read, cores = sparse.bytes, sparse.cores()
    assert sparse.bytes == read
    assert sparse.cores() == cores
    assert all(layer.cut.calls == () and layer.calls is layer.plain for layer in sparse._layers.values())


def test_random_neurons_are_as_many_as_a_core_and_the_same_for_one_seed() -> None:
    model, ids = tiny("llama"), prompt(2, 8)
    found = []
    for seed in (0, 0, 1):
        with core_sparse(model, share=0.3, guide="random", seed=seed, **QUIET) as sparse:
            continued(model, ids)
            found.append(sparse.cores()[0])
    assert found[0] == found[1]
    assert found[0] != found[2]
    assert found[0].per_layer().tolist() == [14, 14]  # floor(0.3 * 48)


def test_the_oracle_keeps_the_strongest_neurons_of_every_token() -> None:
    model, ids = tiny("llama"), prompt(2, 6)
    seen: list[Tensor] = []
    with core_sparse(model, share=0.25, guide="oracle", layers=[1], min_tokens=0) as sparse:
        call = sparse._layers[1].plain[-1]
        sparse._layers[1].plain = (*sparse._layers[1].plain[:-1], lambda h: (seen.append(h), call(h))[1])
        step_by_step(model, ids, ids[:, :2])
    assert [(h != 0).sum(-1).unique().tolist() for h in seen[1:]] == [[12], [12]]
    with core_sparse(model, share=1.0, guide="oracle", **QUIET):
        everything = step_by_step(model, ids, ids[:, :2])
    assert torch.equal(everything, step_by_step(model, ids, ids[:, :2]))


@pytest.fixture
def llama() -> Iterator[Any]:
    model = tiny("llama")
    yield model
    assert untouched(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": 0.0}, "share=0.0"),
        ({"share": 1.5}, "share=1.5"),
        ({"share": 0.001}, "keeps none"),
        ({"token_share": 0.0}, "token_share"),
        ({"by": "size"}, "ranked by"),
        ({"form": "thin"}, "form='thin'"),
        ({"refresh": 0}, "refresh=0"),
        ({"refresh": 4, "guide": "random"}, "only guide='prompt'"),
        ({"keep": 2.0}, "keep=2.0"),
        ({"guide": "nobody"}, "guide='nobody'"),
        ({"layers": (0.9, 0.1)}, "rising"),
        ({"layers": [0, 7]}, "the model has 2"),
        ({"layers": (0.1, 0.2)}, "leaves no layer"),
        ({"offload": "nowhere"}, "offload='nowhere'"),
    ],
)
def test_arguments_out_of_range_are_refused(llama: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message), core_sparse(llama, **arguments):
        pass


def test_a_unit_set_of_another_model_or_without_a_layer_is_refused(llama: Any) -> None:
    with pytest.raises(MismatchError), core_sparse(llama, guide=UnitSet.of(tiny("opt"), ["mlp.0.1", "mlp.1.1"])):
        pass
    with pytest.raises(InputError, match="of layer 1; add some"):  # noqa: SIM117
        with core_sparse(llama, guide=UnitSet.of(llama, ["mlp.0.1"]), layers=(0.0, 1.0)):
            pass


@pytest.mark.parametrize(
    ("kind", "message"),
    [("mixtral", "has experts"), ("mamba", "no MLP|can't be cut"), ("bitnet", "can't be cut")],
)
def test_blocks_that_cannot_be_cut_are_refused(kind: str, message: str) -> None:
    model = load(tiny_model(kind), check=False)
    with pytest.raises(ModelError, match=message), core_sparse(model, share=0.5, layers=(0.0, 1.0)):
        pass
    assert untouched(model)


def test_a_projection_that_is_no_plain_linear_map_is_refused() -> None:
    class Adapted(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    hf = tiny_model("llama")
    hf.model.layers[1].mlp.up_proj = Adapted(32, 48, bias=False)
    model = load(hf)
    with pytest.raises(ModelError, match="up_proj is a Adapted"), core_sparse(model, **QUIET):
        pass


def test_prompts_that_cannot_say_what_they_need_are_refused(llama: Any) -> None:
    ids, mask, _ = padded()
    with core_sparse(llama, share=0.3, **QUIET):
        empty = mask.clone()
        empty[1] = 0
        with pytest.raises(InputError, match="prompt 1 of the batch is empty"):
            continued(llama, ids, empty)
    with torch.no_grad():
        cache = llama.hf(input_ids=ids, use_cache=True).past_key_values
        with core_sparse(llama, share=0.3, **QUIET), pytest.raises(InputError, match="read outside"):
            llama.hf(input_ids=ids[:, :1], past_key_values=cache)
        with core_sparse(llama, share=0.3, **QUIET):
            cache = llama.hf(input_ids=ids, use_cache=True).past_key_values
            with pytest.raises(InputError, match="batch of 3, but 2 rows follow"):
                llama.hf(input_ids=ids[:2, :1], past_key_values=cache)


def test_a_layer_without_an_active_neuron_is_named() -> None:
    hf = tiny_model("opt")
    with torch.no_grad():
        hf.model.decoder.layers[1].fc1.weight.zero_()
        hf.model.decoder.layers[1].fc1.bias.fill_(-1.0)
    with core_sparse(load(hf), share=0.3, **QUIET), pytest.raises(ModelError, match="no neuron of layer 1"):
        continued(load(hf), prompt(1, 4))


def test_short_prompts_are_warned_of_once(llama: Any) -> None:
    with core_sparse(llama, share=0.3, layers=(0.0, 1.0)):
        with pytest.warns(UserWarning, match="unstable core"):
            continued(llama, prompt(1, 5))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            continued(llama, prompt(1, 5))


def test_the_default_leaves_the_first_tenth_of_the_layers_whole() -> None:
    from patchclamp.generate.maps import layers_of

    assert layers_of(32, (0.1, 1.0)) == list(range(3, 32))
    assert layers_of(6, (0.1, 1.0)) == [1, 2, 3, 4, 5]
    assert layers_of(2, (0.0, 1.0)) == [0, 1]
    assert layers_of(4, [3, 1, 1]) == [1, 3]
