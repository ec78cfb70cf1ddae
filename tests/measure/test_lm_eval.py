"""The lm-evaluation-harness on a clamped model gives what plain loops over the model's own logits give."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from patchclamp.core.errors import InputError
from patchclamp.intervene import clamp
from patchclamp.measure import lm_eval

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed (pip install 'patchclamp[eval]')"
)
UNITS = [f"mlp.{layer}.{unit}" for layer in range(3) for unit in range(0, 48, 2)]
DOCS = [
    {"question": f"The {animal} sat on the", "choices": ["mat.", "moon and looked.", "four"], "gold": number % 3}
    for number, animal in enumerate(["cat", "dog", "bird", "cow", "fox", "mouse"])
]


def test_without_the_harness_the_way_to_install_it_is_said(tiny_llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"pip install 'patchclamp\[eval\]'"):
        lm_eval.evaluate(tiny_llama, ["arc_easy"])


def config(kind: str) -> dict[str, Any]:
    """A task of the harness, made here: nothing is downloaded."""
    from datasets import Dataset, DatasetDict

    found: dict[str, Any] = {
        "task": f"tiny_{kind}",
        "custom_dataset": lambda **_: DatasetDict({"test": Dataset.from_list(DOCS)}),
        "test_split": "test",
        "output_type": kind,
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[gold]}}",
    }
    if kind == "multiple_choice":
        found |= {"doc_to_choice": "{{choices}}", "doc_to_target": "gold", "metric_list": [{"metric": "acc"}]}
    if kind == "loglikelihood_rolling":
        found |= {"doc_to_text": "", "doc_to_target": "{{question}} {{choices[gold]}}"}
        found |= {"metric_list": [{"metric": "word_perplexity"}]}
    if kind == "generate_until":
        found |= {"generation_kwargs": {"until": ["o"], "max_gen_toks": 5}, "metric_list": [{"metric": "exact_match"}]}
    return found


def run(model: Any, kind: str) -> tuple[dict[str, Any], list[Any]]:
    """Metrics, and what the model answered to each document."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)  # indexing the harness's thousands of tasks takes half a minute
    results = lm_eval.evaluate(model, [config(kind)], task_manager=manager, bootstrap_iters=0, batch_tokens=48)
    samples = results["samples"][f"tiny_{kind}"]
    answers = [sample["resps"] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
    return results["results"][f"tiny_{kind}"], answers


def log_p(model: Any, context: str, continuation: str) -> tuple[float, bool]:
    """Log-probability of the continuation, and whether greedy decoding writes it, by a loop over full logits."""
    tokenizer = model.tokenizer
    before = tokenizer(context)["input_ids"] if context else [tokenizer.bos_token_id]
    whole = tokenizer(context + continuation)["input_ids"]
    table = torch.log_softmax(model.hf(torch.tensor([whole])).logits[0].double(), -1)
    places = range(len(before), len(whole))
    greedy = all(int(table[place - 1].argmax()) == whole[place] for place in places)
    return sum(float(table[place - 1, whole[place]]) for place in places), greedy


@needs_harness
def test_multiple_choice_equals_a_loop_over_logits_plain_and_clamped(tiny_llama: Any) -> None:
    seen = []
    for units in ([], UNITS):
        with clamp(tiny_llama, units, to=1.0):
            metrics, answers = run(tiny_llama, "multiple_choice")
            right = 0
            for doc, answer in zip(DOCS, answers, strict=True):
                expected = [log_p(tiny_llama, doc["question"], f" {choice}") for choice in doc["choices"]]
                assert [one[0][0] for one in answer] == pytest.approx([value for value, _ in expected], rel=1e-4)
                assert [one[0][1] for one in answer] == [greedy for _, greedy in expected]
                right += max(range(3), key=lambda number: expected[number][0]) == doc["gold"]
        assert metrics["acc,none"] == pytest.approx(right / len(DOCS))
        seen.append([one[0][0] for answer in answers for one in answer])
    assert seen[0] != pytest.approx(seen[1], rel=1e-3)


@needs_harness
def test_rolling_perplexity_predicts_every_token_once(tiny_llama: Any) -> None:
    metrics, answers = run(tiny_llama, "loglikelihood_rolling")
    total, words = 0.0, 0
    for doc, answer in zip(DOCS, answers, strict=True):
        text = f"{doc['question']} {doc['choices'][doc['gold']]}"
        ids = tiny_llama.tokenizer(text)["input_ids"]
        bos = [tiny_llama.tokenizer.bos_token_id]
        table = torch.log_softmax(tiny_llama.hf(torch.tensor([bos + ids])).logits[0].double(), -1)
        expected = sum(float(table[place, token]) for place, token in enumerate(ids))
        assert answer[0][0] == pytest.approx(expected, rel=1e-4)
        total, words = total + expected, words + len(text.split())
    assert metrics["word_perplexity,none"] == pytest.approx(torch.tensor(-total / words).exp().item(), rel=1e-3)


@needs_harness
def test_a_text_longer_than_the_model_is_read_in_windows(tiny_llama: Any) -> None:
    from lm_eval.api.instance import Instance

    text = "The cat sat on the mat and looked at the moon. " * 12
    adapter = lm_eval.adapted(tiny_llama)
    ids = adapter.tok_encode(text)
    assert len(ids) > 2 * tiny_llama.max_length
    request = Instance("loglikelihood_rolling", {}, (text,), 0)
    expected, place, size = 0.0, 0, tiny_llama.max_length
    while place < len(ids):
        stop = min(place + size, len(ids))
        start = max(0, stop - size)
        window = ([tiny_llama.tokenizer.bos_token_id] if start == 0 else [ids[start - 1]]) + ids[start:stop]
        table = torch.log_softmax(tiny_llama.hf(torch.tensor([window[:-1]])).logits[0].double(), -1)
        expected += sum(float(table[at - start, ids[at]]) for at in range(place, stop))
        place = stop
    assert adapter.loglikelihood_rolling([request]) == pytest.approx([expected], rel=1e-4)


@needs_harness
def test_generation_stops_where_the_task_says_and_is_clamped(tiny_llama: Any) -> None:
    seen = []
    for units in ([], UNITS):
        with clamp(tiny_llama, units, to=1.0):
            _, answers = run(tiny_llama, "generate_until")
            expected = [tiny_llama.generate(doc["question"], max_new_tokens=5)[0].split("o")[0] for doc in DOCS]
        assert [answer[0][0] for answer in answers] == expected
        seen.append(expected)
    assert seen[0] != seen[1]


@needs_harness
def test_continuations_that_cannot_fit_are_refused(tiny_llama: Any) -> None:
    adapter = lm_eval.adapted(tiny_llama)
    with pytest.raises(InputError, match="takes 64"):
        adapter._loglikelihood_tokens([(None, [1], list(range(3, 103)))])
    assert adapter._loglikelihood_tokens([]) == []
