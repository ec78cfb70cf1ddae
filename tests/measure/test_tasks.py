"""Scores of tasks equal plain loops over the model's own logits, whatever the batches, and follow active clamps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp import measure
from patchclamp.core.errors import InputError, ModelError
from patchclamp.data import Task, generated
from patchclamp.data.batches import Budget
from patchclamp.data.generate import GENERATORS
from patchclamp.intervene import clamp
from patchclamp.measure import Measurements, metrics
from patchclamp.measure.checkers import CHECKERS
from patchclamp.measure.columns import Columns
from patchclamp.measure.continuation_rows import Rows
from patchclamp.measure.continuations import Continuation, continuations
from patchclamp.measure.effect_runs import PLAIN, over_runs
from patchclamp.models.load import load
from patchclamp.models.tiny import tiny_model

UNITS = [f"mlp.{layer}.{unit}" for layer in range(3) for unit in range(0, 48, 2)]
ROWS: list[dict[str, Any]] = [
    {"prompt": "The cat sat on the", "answers": [" mat.", " tapis"], "choices": [" moon", " mat.", " four and three"],
     "alternatives": ["Le chat est assis sur le"], "labels": {"language": "en"}},
    {"prompt": "Two and two make", "answers": [" four"], "choices": [" four", " three", " moon and looked"],
     "labels": {"language": "en"}},
    {"prompt": "Die Katze sitzt auf der", "answers": [" Matte"], "choices": [" Mond", " Matte"],
     "labels": {"language": "de"}, "id": "de-1"},
    {"prompt": "猫はマットの上に", "answers": ["座って"], "choices": ["座って", "月を", "見ている"],
     "labels": {"language": "ja"}},
    {"prompt": "", "answers": ["The cat sat."], "choices": ["The cat sat.", "Cat the sat."], "labels": {"language": "en"}},
]  # fmt: skip


@pytest.fixture(scope="module")
def questions() -> Task:
    return Task.of(ROWS, name="questions")


def log_p(model: Any, prompt: str, text: str) -> tuple[list[float], list[int], list[int]]:
    """Log-probability and rank-1 token at each token of the text, and its ids; all logits, one text at a time."""
    tokenizer = model.tokenizer
    before = tokenizer(prompt)["input_ids"]
    whole = tokenizer(prompt + text)["input_ids"]
    if whole[: len(before)] != before:
        whole = before + tokenizer(text, add_special_tokens=False)["input_ids"]
    table = torch.log_softmax(model.hf(torch.tensor([whole])).logits[0].double(), -1)
    places = range(len(before), len(whole))
    return (
        [float(table[p - 1, whole[p]]) for p in places],
        [int(table[p - 1].argmax()) for p in places],
        whole[len(before) :],
    )


# --- likelihoods -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [[], UNITS])
@pytest.mark.parametrize("normalise", ["none", "tokens", "characters"])
def test_choices_are_ranked_by_their_likelihood(
    tiny_llama: Any, questions: Task, units: list[str], normalise: str
) -> None:
    with clamp(tiny_llama, units, to=1.0):
        found = measure.choice(tiny_llama, questions, normalise=normalise, quiet=True)
        right, scores = [], []
        for item in questions:
            values = []
            for choice in item.choices:
                total, ids = sum(log_p(tiny_llama, item.prompt, choice)[0]), log_p(tiny_llama, item.prompt, choice)[2]
                values.append(total / {"none": 1, "tokens": len(ids), "characters": len(choice.strip())}[normalise])
            scores.append(values)
            right.append(item.choices[int(np.argmax(values))] in item.answers)
    assert found.totals.tolist() == [float(one) for one in right]
    assert found.value == np.mean(right)
    for item, expected in zip(found.items, scores, strict=True):
        assert item["scores"] == pytest.approx(expected, rel=1e-4)
    assert found.chance == pytest.approx(np.mean([1 / 3, 1 / 3, 1 / 2, 1 / 3, 1 / 2]))
    assert (found.metric, found.n, found.label, found.text) == (
        "choice accuracy",
        5,
        "questions",
        questions.fingerprint,
    )


@pytest.mark.parametrize("normalise", ["none", "tokens", "characters"])
def test_the_answer_loss_is_the_surprise_at_the_canonical_answer(
    tiny_gpt2: Any, questions: Task, normalise: str
) -> None:
    found = measure.answer_loss(tiny_gpt2, questions, normalise=normalise, quiet=True)
    expected = []
    for item in questions:
        values = log_p(tiny_gpt2, item.prompt, item.answers[0])[0]
        by = {"none": 1, "tokens": len(values), "characters": len(item.answers[0].strip())}[normalise]
        expected.append(-sum(values) / by)
    assert found.totals == pytest.approx(np.array(expected), rel=1e-4)
    assert found.n_tokens == sum(len(log_p(tiny_gpt2, item.prompt, item.answers[0])[0]) for item in questions)


def test_other_wordings_are_averaged_per_item_on_request(tiny_llama: Any, questions: Task) -> None:
    plain = measure.answer_loss(tiny_llama, questions, quiet=True)
    both = measure.answer_loss(tiny_llama, questions, alternatives=True, quiet=True)
    other = -sum(log_p(tiny_llama, ROWS[0]["alternatives"][0], ROWS[0]["answers"][0])[0])
    assert both.totals[0] == pytest.approx((plain.totals[0] + other) / 2, rel=1e-5)
    assert both.totals[1:] == pytest.approx(plain.totals[1:], rel=1e-5)
    assert both.items[0]["values"] == pytest.approx([plain.totals[0], other], rel=1e-5)


@pytest.mark.parametrize("tokens", [1, 2, None])
def test_a_completion_is_right_where_greedy_decoding_writes_an_answer(tiny_llama: Any, tokens: int | None) -> None:
    written = {prompt: tiny_llama.generate(prompt, max_new_tokens=3)[0] for prompt in ("The cat", "Two and", "Le chat")}
    rows = [
        {"prompt": "The cat", "answers": [written["The cat"]]},
        {"prompt": "Two and", "answers": [" quite another", written["Two and"]]},
        {"prompt": "Le chat", "answers": [written["Le chat"][:1] + "x"]},
        {"prompt": "Le chat", "answers": ["QQ"]},
    ]
    found = measure.completion(tiny_llama, Task.of(rows), tokens=tokens, quiet=True)
    expected = []
    for row in rows:
        ids = tiny_llama.tokenizer(row["prompt"])["input_ids"]
        out = tiny_llama.hf.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, pad_token_id=0)[
            0
        ].tolist()
        answers = [log_p(tiny_llama, str(row["prompt"]), answer)[2][:tokens] for answer in row["answers"]]
        expected.append(float(any(out[len(ids) : len(ids) + len(answer)] == answer for answer in answers)))
    assert found.totals.tolist() == expected
    assert found.items[3]["matched_tokens"] == 0


def test_pairs_count_where_the_good_text_is_strictly_likelier(tiny_llama: Any) -> None:
    texts = ["The cat sat on the mat.", "Mat the on sat cat the.", "Le chat est assis.", "Assis est chat le."]
    rows = [{"good": good, "bad": bad} for good in texts for bad in texts if good != bad]
    found = measure.pairs(tiny_llama, Task.of(rows), quiet=True)
    totals = {text: sum(log_p(tiny_llama, "", text)[0]) for text in texts}
    assert found.totals.tolist() == [float(totals[row["good"]] > totals[row["bad"]]) for row in rows]
    assert found.value == 0.5
    margins = [item["margin"] for item in found.items]
    assert margins == pytest.approx([totals[row["good"]] - totals[row["bad"]] for row in rows], rel=1e-3, abs=1e-4)


def test_ties_go_to_the_first_choice_and_to_no_pair(tiny_llama: Any) -> None:
    choice, pairs = metrics["choice"](), metrics["pairs"]()
    item = Task.of([{"prompt": "x", "answers": ["a"], "choices": ["a", "b"]}])[0]
    swapped = Task.of([{"prompt": "x", "answers": ["a"], "choices": ["b", "a"]}])[0]
    from patchclamp.measure.task_scores import Candidates

    tie = Candidates(("a", "b"), np.array([-1.0, -1.0]), np.array([1, 1]), np.array([0, 0]), lambda number: [])
    assert (choice.value(item, tie), choice.value(swapped, tie), pairs.value(item, tie)) == (1.0, 0.0, 0.0)


@settings(max_examples=20, deadline=None)
@given(batch_tokens=st.integers(1, 400), order=st.permutations(range(len(ROWS))))
def test_neither_batch_size_nor_order_changes_an_items_scores(
    tiny_llama: Any, batch_tokens: int, order: list[int]
) -> None:
    wanted = measure.choice(tiny_llama, Task.of(ROWS), quiet=True).items
    found = measure.choice(tiny_llama, Task.of([ROWS[i] for i in order]), batch_tokens=batch_tokens, quiet=True).items
    for place, number in enumerate(order):
        assert found[place]["prompt"] == ROWS[number]["prompt"]
        assert found[place]["scores"] == pytest.approx(wanted[number]["scores"], rel=1e-4)


def test_memory_running_out_cuts_the_batches_and_changes_nothing(
    tiny_llama: Any, questions: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = measure.answer_loss(tiny_llama, questions, quiet=True)
    original = Rows.evaluate

    def tight(self: Rows, part: Any, logits: torch.Tensor) -> torch.Tensor:
        if len(part) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return original(self, part, logits)

    monkeypatch.setattr(Rows, "evaluate", tight)
    assert measure.answer_loss(tiny_llama, questions, quiet=True).totals == pytest.approx(wanted.totals, rel=1e-4)


# --- rows: what is shared ----------------------------------------------------------------------------------------


def test_choices_that_share_what_is_read_are_run_once(tiny_llama: Any) -> None:
    one = Continuation((1, 5, 6), (7,))
    asked = [one, Continuation((1, 5, 6), (8,)), Continuation((1, 5, 6), (8, 9)), Continuation((1, 5, 6), (8, 9, 10))]
    rows = Rows(tiny_llama, [*asked, Continuation((1, 5), (6, 7)), one], "shared")
    assert [list(row.ids) for row in rows.rows] == [[1, 5, 6, 8, 9], [1, 5, 6]]  # the same ids, but another prompt
    over_runs(tiny_llama, rows, [], budget=Budget(4096), scope="generated", reuse=False, quiet=True)
    scores = rows.scores(PLAIN)
    for number, (context, tokens) in enumerate((one.context, one.tokens) for one in rows.asked):
        table = torch.log_softmax(tiny_llama.hf(torch.tensor([[*context, *tokens]])).logits[0].double(), -1)
        places = range(len(context) - 1, len(context) + len(tokens) - 1)
        expected = [float(table[place, token]) for place, token in zip(places, tokens, strict=True)]
        assert scores.totals[number] == pytest.approx(sum(expected), rel=1e-4)
        best = [int(table[place].argmax()) for place in places]
        matched = next((at for at, (a, b) in enumerate(zip(best, tokens, strict=True)) if a != b), len(tokens))
        assert (scores.matched[number], scores.lengths[number]) == (matched, len(tokens))
        assert scores.said(number) == best[: matched + 1]


@settings(max_examples=25, deadline=None)
@given(
    asked=st.lists(
        st.builds(
            Continuation,
            st.lists(st.integers(3, 5), min_size=1, max_size=3).map(tuple),
            st.lists(st.integers(3, 5), min_size=1, max_size=4).map(tuple),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_rows_hold_every_continuation_and_none_is_a_beginning_of_another(
    tiny_llama: Any, asked: list[Continuation]
) -> None:
    rows = Rows(tiny_llama, asked, "any")
    for number, one in enumerate(asked):
        row = rows.rows[int(rows.row[rows.first[number]])]
        fed = [*one.context, *one.tokens[:-1]]
        assert list(row.ids[: len(fed)]) == fed
        assert sum(not kept for kept in row.keep) == len(one.context)
    kept = [(sum(not one for one in row.keep), list(row.ids)) for row in rows.rows]
    for a in kept:
        assert [b for b in kept if b[0] == a[0] and b[1][: len(a[1])] == a[1]] == [a]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "cohere", "granite", "mixtral", "mamba"])
def test_chosen_columns_of_logits_are_those_of_all_logits(kind: str) -> None:
    torch.manual_seed(0)
    model = load(tiny_model(kind), check=False)
    ids, columns = torch.randint(5, 30, (2, 9)), torch.tensor([1, 4, 8])
    mask = torch.ones_like(ids)
    some, full = Columns(model, columns).logits(ids, mask), model.logits(ids, mask)
    assert some.shape == (2, 3, full.shape[-1])
    torch.testing.assert_close(some, full[:, columns], rtol=1e-5, atol=1e-5)


# --- where an answer begins --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_generated_items_are_cut_as_the_demo_model_was_trained(demo: Any, name: str) -> None:
    """Prompt and answer together give the tokens that they give apart, for every answer and choice."""
    items = list(generated(name, count=300))
    pairs = [(item.prompt, text) for item in items for text in (*item.answers, *item.choices)]

    def apart(text: str) -> list[int]:
        return list(demo.tokenizer(text, add_special_tokens=False)["input_ids"])

    for (prompt, text), found in zip(pairs, continuations(demo.tokenizer, pairs, max_length=512), strict=True):
        assert list(found.context) == [demo.tokenizer.bos_token_id, *apart(prompt)]
        assert list(found.tokens) == apart(text)


@pytest.fixture(scope="module")
def demo() -> Any:
    return load("demo")


def test_special_tokens_stand_before_a_prompt_once(tiny_llama: Any) -> None:
    tokenizer = tiny_llama.tokenizer
    plain, framed, empty = continuations(tokenizer, [("The", " cat"), ("<s>The", " cat"), ("", "The")], max_length=64)
    assert plain == framed
    assert plain.context[0] == tokenizer.bos_token_id
    assert empty.context == (tokenizer.bos_token_id,)


def test_a_text_that_merges_with_its_prompt_is_cut_apart(tiny_llama: Any) -> None:
    tokenizer = tiny_llama.tokenizer
    whole = tokenizer("and", add_special_tokens=False)["input_ids"]
    left = tokenizer("an", add_special_tokens=False)["input_ids"]
    assert whole[: len(left)] != left
    (found,) = continuations(tokenizer, [("an", "d")], max_length=64)
    assert found.context[1:] == tuple(left)
    assert found.tokens == tuple(tokenizer("d", add_special_tokens=False)["input_ids"])


def test_an_empty_prompt_needs_a_token_to_begin_with() -> None:
    from tests.measure.planted import planted

    model = planted()
    with pytest.raises(InputError, match="neither BOS nor EOS"):
        measure.answer_loss(model, Task.of([{"prompt": "", "answer": "a0"}]), quiet=True)
    assert measure.answer_loss(model, Task.of([{"prompt": "a1", "answer": "a0"}]), quiet=True).n == 1


# --- generation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_generation_is_judged_by_what_the_model_writes(tiny_llama: Any, batch_tokens: int) -> None:
    prompts = ["The cat", "Two and two make", "Le chat est assis", "The", "猫は"]
    texts = [tiny_llama.generate(prompt, max_new_tokens=6)[0] for prompt in prompts]
    rows = [
        {"prompt": prompt, "answer": text if number % 2 else "no"}
        for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    ]
    found = measure.generation(
        tiny_llama, Task.of(rows), max_new_tokens=6, stop=(), batch_tokens=batch_tokens, quiet=True
    )
    assert [item["written"] for item in found.items] == [text.lstrip() for text in texts]
    assert found.totals.tolist() == [float(number % 2) for number in range(5)]


def test_a_text_ends_at_the_first_stop_whoever_shares_its_batch(tiny_llama: Any) -> None:
    prompts = ["The cat", "Two and two make", "Le chat est assis"]
    texts = [tiny_llama.generate(prompt, max_new_tokens=8)[0].lstrip() for prompt in prompts]
    stop = texts[0][2]
    task = Task.of([{"prompt": prompt, "answer": "x"} for prompt in prompts])
    together = measure.generation(tiny_llama, task, max_new_tokens=8, stop=[stop], quiet=True)
    alone = measure.generation(tiny_llama, task, max_new_tokens=8, stop=[stop], batch_tokens=1, quiet=True)
    assert [item["written"] for item in together.items] == [text.split(stop)[0] for text in texts]
    assert together.items == alone.items
    assert together.scored is not None
    assert alone.scored is not None
    assert together.scored.tolist() == alone.scored.tolist()
    assert together.scored[0] < 8


@pytest.mark.parametrize(
    ("checker", "text", "right"),
    [
        ("exact", " Paris.", True), ("exact", "Paris, of course", False), ("exact", "« Paris »", True),
        ("contains", "It is PARIS.", True), ("contains", "Rome", False),
        ("number", "about 1,000 km", False), ("number", "It is 75.0!", True), ("number", "none", False),
    ],
)  # fmt: skip
def test_checkers(checker: str, text: str, right: bool) -> None:
    answers = [" 75"] if checker == "number" else [" Paris"]
    item = Task.of([{"prompt": "x", "answers": answers, "tail": "."}])[0]
    assert CHECKERS[checker](text, item) is right


def test_a_tail_is_no_part_of_an_exact_answer() -> None:
    item = Task.of([{"prompt": "x", "answer": "テヘラン", "tail": "です。"}])[0]
    assert CHECKERS["exact"]("テヘランです。", item)
    assert CHECKERS["exact"]("テヘラン", item)
    assert not CHECKERS["exact"]("東京です。", item)


def test_a_function_can_check_and_must_answer(tiny_llama: Any) -> None:
    task = Task.of([{"prompt": "The cat", "answer": "x"}, {"prompt": "Two", "answer": "y"}])
    found = measure.generation(tiny_llama, task, checker=lambda text, item: item.prompt == "Two", quiet=True)
    assert found.totals.tolist() == [0, 1]
    with pytest.raises(InputError, match="said None"):
        measure.generation(tiny_llama, task, checker=lambda text, item: None, quiet=True)
    with pytest.raises(InputError, match="exact, contains, number"):
        measure.generation(tiny_llama, task, checker="fuzzy", quiet=True)
    with pytest.raises(InputError, match="holds no number"):
        measure.generation(tiny_llama, task, checker="number", quiet=True)


# --- scopes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["prompt", "generated"])
def test_the_tokens_of_an_answer_count_as_generated(tiny_llama: Any, questions: Task, scope: str) -> None:
    with clamp(tiny_llama, UNITS, to=1.0, scope=scope):
        found = measure.answer_loss(tiny_llama, questions, quiet=True)
    for item, total in zip(questions, found.totals, strict=True):
        (one,) = continuations(tiny_llama.tokenizer, [(item.prompt, item.answers[0])], max_length=64)
        generated = np.arange(len(one.context) + len(one.tokens)) >= len(one.context)
        mask = generated if scope == "generated" else ~generated
        with clamp(tiny_llama, UNITS, to=1.0, mask=mask[None, :]):
            logits = tiny_llama.logits(torch.tensor([[*one.context, *one.tokens]]))[0].double()
        table = torch.log_softmax(logits, -1)
        expected = -sum(float(table[len(one.context) + at - 1, token]) for at, token in enumerate(one.tokens))
        assert total == pytest.approx(expected, rel=1e-4)


# --- measurements and refusals -----------------------------------------------------------------------------------


def test_results_are_kept_per_item_grouped_saved_and_subtracted(
    tiny_llama: Any, questions: Task, tmp_path: Any
) -> None:
    plain = measure.score_all(tiny_llama, {"questions": questions}, "loss", quiet=True)
    with clamp(tiny_llama, UNITS, to=1.0):
        clamped = measure.score_all(tiny_llama, {"questions": questions}, "loss", quiet=True)
    change = (clamped - plain)["questions"]
    assert change.value == pytest.approx((clamped["questions"].totals - plain["questions"].totals).mean())
    again = Measurements.load(plain.save(tmp_path / "loss.json"))
    assert again.rows == plain.rows
    assert again["questions"].items == plain["questions"].items
    by = again["questions"].by("language")
    assert {label: one.n for label, one in by.items()} == {"de": 1, "en": 3, "ja": 1}
    assert by["de"].value == plain["questions"].totals[2]
    assert by["de"].items[0]["id"] == "de-1"
    with pytest.raises(InputError, match="label 'country'; labels are language"):
        again["questions"].by("country")
    assert plain.provenance["inputs"]["tasks"]["questions"]["fingerprint"] == questions.fingerprint
    single = measure.score(tiny_llama, questions, "loss", quiet=True)
    assert single.totals == pytest.approx(plain["questions"].totals)
    assert single.provenance["inputs"]["task"] == questions.identity


@pytest.mark.parametrize("how", [entry.name for entry in metrics])
def test_every_metric_scores_a_generated_task(demo: Any, how: str) -> None:
    task = generated("manners", languages="en", count=4)
    found = measure.score(demo, task, how, quiet=True)
    assert found.n == len(found.items) == 4
    assert found.n_tokens > 0
    assert all({"prompt", "labels", "value"} <= set(item) for item in found.items)
    assert [item["value"] for item in found.items] == found.totals.tolist()


@pytest.mark.parametrize(
    ("how", "options", "message"),
    [
        ("mood", {}, "no metric is called 'mood'; there are: choice, completion, generation, loss, pairs"),
        ("choice", {"tokens": 2}, "no option 'tokens'; it has alternatives, normalise"),
        ("choice", {"normalise": "words"}, "normalise='words'"),
        ("completion", {"tokens": 0}, "at least 1"),
        ("generation", {"max_new_tokens": 0}, "at least 1"),
        ("generation", {"max_new_tokens": 64}, "more than the 64"),
        ("generation", {"stop": "x"}, "list of texts"),
        ("loss", {"batch_tokens": 0}, "batch_tokens=0"),
        ("pairs", {}, r"item 0 .*3 choices; a minimal pair has two"),
    ],
)  # fmt: skip
def test_bad_requests_say_what_to_do(
    tiny_llama: Any, questions: Task, how: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        measure.score(tiny_llama, questions, how, quiet=True, **options)


def test_items_that_cannot_be_scored_are_named(tiny_llama: Any, tiny_gpt2: Any) -> None:
    with pytest.raises(InputError, match=r"item 0 .*no choices; give choices"):
        measure.choice(tiny_llama, Task.of([{"prompt": "x", "answer": "y"}]))
    with pytest.raises(InputError, match="tokens; this model takes 64"):
        measure.answer_loss(tiny_llama, Task.of([{"prompt": "cat " * 70, "answer": "y"}]))
    with pytest.raises(InputError, match="a Task is needed"):
        measure.choice(tiny_llama, [{"prompt": "x"}])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no task was given"):
        measure.score_all(tiny_llama, {})
    bare = load(tiny_llama.hf, check=False)
    with pytest.raises(InputError, match="without a tokenizer"):
        measure.answer_loss(bare, Task.of([{"prompt": "x", "answer": "y"}]))
    units = [f"mlp.{layer}.{unit}" for layer in range(3) for unit in range(128)]
    with clamp(tiny_gpt2, units, to=3e38), pytest.raises(ModelError, match="not finite"):
        measure.answer_loss(tiny_gpt2, Task.of([{"prompt": "The cat", "answer": " sat"}]), quiet=True)
