"""Describers that ask a language model: one in this process, one behind a real HTTP server that speaks the protocol."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import torch
from tests.read.planted_exemplars import planted_store

from patchclamp.core.errors import Error, InputError
from patchclamp.read import describer_endpoint
from patchclamp.read.describe import describe, describer_of
from patchclamp.read.describer_endpoint import Endpoint
from patchclamp.read.describer_local import Local
from patchclamp.read.description_scores import score_description
from patchclamp.read.exemplar import Exemplar
from patchclamp.read.exemplar_store import ExemplarStore
from patchclamp.read.prompting import description_prompt, part_prompt, tidy

WORDS = {"animals": ("dog", "cat", "horse", "cow", "owl", "robin", "crow", "finch"), "numbers": ("7", "12", "405")}


@pytest.fixture(scope="module")
def store() -> ExemplarStore:
    return planted_store().subset(["mlp.0.0", "mlp.0.2"])


class Server:
    """A chat server that knows what animals and numbers are; `mode` makes it fail in the ways that servers do."""

    def __init__(self) -> None:
        self.mode, self.asked = "logprobs", [0]
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append(len(body["messages"]))
                if self.path != "/v1/chat/completions":
                    return self._send(404, {"error": {"message": "no such path"}})
                if outer.mode == "denied":
                    return self._send(401, {"error": {"message": "bad key"}})
                if outer.mode == "flaky":
                    outer.mode = "logprobs"
                    return self._send(503, {"error": {"message": "busy"}})
                return self._send(200, outer.answer(body))

            def _send(self, status: int, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt, logprobs = body["messages"][0]["content"], None
        if prompt.endswith("all the marked words are:"):
            text = f' "{self.meaning(prompt)}."\nBecause they are.'
        elif "JSON list" in prompt:
            tokens = json.loads(prompt.split("as a JSON list: ")[1].split("\nHow well")[0])
            concept = prompt.split("Description: ")[1].split("\n")[0]
            text = json.dumps([10 if token.strip() in WORDS.get(concept, ()) else 0 for token in tokens])
            text = "no idea" if self.mode == "garbage" else f"Here: {text}"
        else:
            yes = 0.9 if self.meaning(prompt) == prompt.split("Description: ")[1].split("\n")[0] else 0.2
            text = "Yes" if yes > 0.5 else "No"
            entries = [{"token": " Yes", "logprob": math.log(yes)}, {"token": "No", "logprob": math.log(1 - yes)}]
            if self.mode == "logprobs":
                logprobs = {"content": [{"token": text, "logprob": math.log(yes), "top_logprobs": entries}]}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        body = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"],
                "choices": [{**choice, "logprobs": logprobs}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}  # fmt: skip
        return {"choices": []} if self.mode == "empty" else body

    @staticmethod
    def meaning(prompt: str) -> str:
        found = [word for part in prompt.split("[[")[1:] for word in part.split("]]")[0].split()]
        counts = {concept: sum(word in words for word in found) for concept, words in WORDS.items()}
        return max(counts, key=lambda concept: counts[concept])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(describer_endpoint, "_WAIT", 0.0)
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.mark.parametrize("client", ["http", "litellm"])
def test_an_endpoint_describes_units(store: ExemplarStore, server: Server, client: str) -> None:
    if client == "litellm":
        pytest.importorskip("litellm")
    options = {"client": client, "words": False, "samples": 2, "api_key": "k", "others": 2}
    found = describe(store, describer="endpoint", writer="m", base_url=server.url, options=options, quiet=True)
    assert {unit: found[unit].text for unit in found} == {"mlp.0.0": "numbers", "mlp.0.2": "animals"}
    assert all(one.explains for one in found.found)
    assert found.provenance["arguments"]["options"] == {k: v for k, v in options.items() if k != "api_key"} | {
        "model": "m", "base_url": server.url,
    }  # fmt: skip


def test_the_probability_is_that_of_yes_and_the_prior_that_of_other_units(store: ExemplarStore, server: Server) -> None:
    made = Endpoint(store, model="m", base_url=server.url, client="http", words=False, others=2)
    likely, prior = made.log_probability(["animals"], store["mlp.0.2"]), made.log_prior(["animals"])
    assert likely[0] == pytest.approx(math.log(0.9))
    assert prior[0] == pytest.approx(math.log((0.9 + 0.2) / 2))


def test_without_log_probabilities_several_answers_are_counted(store: ExemplarStore, server: Server) -> None:
    server.mode = "plain"
    made = Endpoint(store, model="m", base_url=server.url, client="http", words=False, samples=3)
    assert made.log_probability(["animals"], store["mlp.0.2"])[0] == pytest.approx(math.log(3.5 / 4))
    assert made.log_probability(["animals"], store["mlp.0.0"])[0] == pytest.approx(math.log(0.5 / 4))


def test_an_endpoint_simulates_free_text(store: ExemplarStore, server: Server) -> None:
    made = Endpoint(store, model="m", base_url=server.url, client="http", words=True)
    found = score_description(made, "animals", store["mlp.0.2"])
    assert found["part_auroc"] == 1.0
    np.testing.assert_array_equal(
        made.predict('the word "dog"', store.probe[0]), [text.strip() == "dog" for text in store.probe[0].parts]
    )


def test_a_server_that_recovers_is_asked_again(store: ExemplarStore, server: Server) -> None:
    server.mode = "flaky"
    made = Endpoint(store, model="m", base_url=server.url, client="http", words=False)
    assert made.log_probability(["animals"], store["mlp.0.2"])[0] == pytest.approx(math.log(0.9))
    assert len(server.asked) == 3  # the list begins with one entry


@pytest.mark.parametrize(
    ("mode", "said"), [("denied", "401"), ("garbage", "did not grade"), ("empty", "no chat completion")]
)
def test_a_server_that_fails_is_one_error(store: ExemplarStore, server: Server, mode: str, said: str) -> None:
    server.mode = mode
    made = Endpoint(store, model="m", base_url=server.url, client="http", words=False)
    with pytest.raises(Error, match=said):
        made.predict("animals", store.probe[0])


def test_no_server_is_one_error(store: ExemplarStore, server: Server) -> None:
    server.http.shutdown()
    server.http.server_close()
    made = Endpoint(store, model="m", base_url=server.url, client="http", words=False, timeout=2)
    with pytest.raises(Error, match="no answer from"):
        made.candidates(store["mlp.0.2"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"client": "http"}, "needs base_url"),
        ({"client": "carrier pigeon", "base_url": "http://x"}, "carrier pigeon"),
        ({"client": "http", "base_url": "ftp://x"}, "http://"),
        ({"client": "http", "base_url": "http://x", "samples": 0}, "samples=0"),
    ],
)
def test_endpoints_that_can_not_be_are_refused(store: ExemplarStore, options: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        describer_of("endpoint", store, {"model": "m", **options})


def test_images_are_not_sent_to_language_models(store: ExemplarStore, tiny_gpt2: Any) -> None:
    images = ExemplarStore([store["mlp.0.2"]], probe=store.probe, medium="image")
    for name, options in (("local", {"model": tiny_gpt2}), ("endpoint", {"model": "m", "base_url": "http://x"})):
        with pytest.raises(InputError, match="image"):
            describer_of(name, images, options)


def by_hand(model: Any, prompt: str, text: str) -> float:
    """Log-probability of a continuation, one forward pass, token by token."""
    left, right = model.tokenize(prompt), model.tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
    ids = [*left[-(model.max_length - len(right)) :], *right]
    likely = model.logits(torch.tensor([ids]))[0].log_softmax(-1)
    return sum(float(likely[at - 1, ids[at]]) for at in range(len(ids) - len(right), len(ids)))


def test_a_local_model_weighs_descriptions_by_teacher_forcing(store: ExemplarStore, tiny_gpt2: Any) -> None:
    made = Local(store, model=tiny_gpt2, passages=1, others=2, batch=3)
    texts = ["animals", "numbers of things", "x"]
    for unit in store:
        prompt = description_prompt(store[unit], count=1)
        expected = [by_hand(tiny_gpt2, prompt, text) for text in texts]
        np.testing.assert_allclose(made.log_probability(texts, store[unit]), expected, rtol=1e-4)
    others = [np.exp(made.log_probability(texts, store[unit])) for unit in store]
    np.testing.assert_allclose(made.log_prior(texts), np.log(np.mean(others, axis=0)), rtol=1e-6)


def test_a_local_model_writes_and_simulates(store: ExemplarStore, tiny_gpt2: Any) -> None:
    options = {"passages": 1, "beam": 2, "new_tokens": 3, "others": 2}
    found = describe(store, describer="local", options={"model": tiny_gpt2, **options}, quiet=True)
    assert set(found) == set(store.units)
    assert found.provenance["arguments"]["options"] == {"model": tiny_gpt2.name, **options}
    made = Local(store, model=tiny_gpt2, others=1)
    one = Exemplar(("a", " dog"), np.zeros(2, dtype=np.float32))
    yes, no = (by_hand(tiny_gpt2, part_prompt("animals", one, 1), answer) for answer in ("Yes", "No"))
    guess = made.predict("animals", one)
    assert guess.shape == (2,)
    assert guess[1] == pytest.approx(1 / (1 + math.exp(no - yes)), rel=1e-3)


def test_answers_are_tidied() -> None:
    assert tidy([' "animals."\nBecause', "animals", "", "\n", "a 'b' c."]) == ["animals", "a 'b' c"]
