"""A describer behind an OpenAI-compatible endpoint: a hosted model, or a server of one's own (vLLM, llama.cpp, Ollama).

Requests go through litellm if it is installed (the extra `describe`), which knows the providers; else straight to `base_url`.
Such endpoints give no probability of a given text, so both sides of the mutual information are those of a question: does the
description fit this unit's marked passages (p(d | E)), does it fit other units' (p(d))? P(yes) is read from the log-probabilities
of the answer, or, where the endpoint gives none, from the share of yes in several answers.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from patchclamp.core.errors import Error, InputError
from patchclamp.read.describer_words import Words
from patchclamp.read.descriptions import describers
from patchclamp.read.exemplar import Exemplar
from patchclamp.read.exemplar_store import Exemplars, ExemplarStore
from patchclamp.read.predicates import parse
from patchclamp.read.prompting import SHOWN, description_prompt, fit_prompt, tidy

_TRIES, _WAIT = 3, 0.5  # of a request that the server could not answer, and seconds before the second one
_LEAST = 1e-6  # probability of yes below which answers aren't told apart


@describers.add("endpoint")
class Endpoint:
    """A chat model that is asked over HTTP."""

    def __init__(
        self,
        store: ExemplarStore,
        *,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        samples: int = 5,
        passages: int = SHOWN,
        others: int = 4,
        words: bool = True,
        client: str = "auto",
        timeout: float = 60.0,
        seed: int = 0,
    ) -> None:
        """model: as the endpoint calls it (for litellm with the provider in front, such as ollama/llama3). base_url: such as
        http://localhost:8000/v1. api_key: by default that of the environment (OPENAI_API_KEY). samples: descriptions that it
        writes, and answers where it gives no log-probabilities. passages: in a prompt. others: units in the prior. words: weigh
        candidates of the describer "words" too. client: litellm, http, or auto: litellm if it is installed. timeout: seconds."""
        if store.medium != "text":
            raise InputError("this describer sends text; describe images with words or dissect")
        if samples < 1 or others < 1:
            raise InputError(f"samples={samples}, others={others}; both are at least 1")
        self._ask = _client(client, model, base_url, api_key, timeout)
        self._samples, self._passages = samples, passages
        self._words = Words(store) if words else None
        rng = np.random.default_rng(seed)
        units = [unit for unit in store if not store[unit].silent]
        if not units:
            raise InputError("all units of the store are silent; there is nothing to describe them by")
        self._others = [store[units[at]] for at in np.sort(rng.permutation(len(units))[:others]).tolist()]
        self._priors: dict[str, float] = {}

    def candidates(self, exemplars: Exemplars) -> list[str]:
        prompt = description_prompt(exemplars, count=self._passages)
        written = [_text(self._ask(prompt, max_tokens=40, temperature=1.0)) for _ in range(self._samples)]
        known = self._words.candidates(exemplars)[: self._samples] if self._words else []
        return list(dict.fromkeys([*tidy(written), *known]))

    def log_probability(self, descriptions: Sequence[str], exemplars: Exemplars) -> NDArray[np.float64]:
        return np.array([self._yes(text, exemplars) for text in descriptions], dtype=np.float64)

    def log_prior(self, descriptions: Sequence[str]) -> NDArray[np.float64]:
        for text in descriptions:
            if text not in self._priors:
                found = [self._yes(text, other) for other in self._others]
                self._priors[text] = float(logsumexp(found) - math.log(len(found)))
        return np.array([self._priors[text] for text in descriptions], dtype=np.float64)

    def predict(self, description: str, exemplar: Exemplar) -> NDArray[np.float64]:
        """Texts that can be checked by machine are; for others the endpoint grades every token from 0 to 10."""
        if self._words is not None and parse(description) is not None:
            return self._words.predict(description, exemplar)
        n = len(exemplar.parts)
        prompt = (
            f"Description: {description}\nTokens of a passage, as a JSON list: "
            f"{json.dumps(list(exemplar.parts), ensure_ascii=False)}\n"
            f"How well does the description fit each token, from 0 to 10? Answer with a JSON list of {n} numbers only."
        )
        for _ in range(_TRIES):
            grades = _numbers(_text(self._ask(prompt, max_tokens=16 + 4 * n, temperature=0.0)))
            if len(grades) == n:
                return np.clip(np.array(grades, dtype=np.float64) / 10, 0, 1)
        raise Error(f"the endpoint did not grade {n} tokens with {n} numbers, three times; use a more capable model")

    def margin(self, description: str, exemplars: Exemplars) -> float | None:
        """How much likelier a yes is for this unit's passages than for other units'."""
        return float(self._yes(description, exemplars) - self.log_prior([description])[0])

    def _yes(self, description: str, shown: Exemplars) -> float:
        """log P(yes), nats."""
        prompt = fit_prompt(description, shown, count=self._passages)
        answer = self._ask(prompt, max_tokens=1, temperature=0.0, logprobs=True, top_logprobs=20)
        weights = _first_token(answer)
        if weights is None:
            answers = [_text(answer)]
            answers += [_text(self._ask(prompt, max_tokens=3, temperature=1.0)) for _ in range(self._samples - 1)]
            yes = sum(text.strip().lower().startswith("yes") for text in answers)
            return math.log((yes + 0.5) / (len(answers) + 1))
        return math.log(max(_LEAST, weights[0] / max(_LEAST, weights[0] + weights[1])))


def _client(kind: str, model: str, base_url: str | None, api_key: str | None, timeout: float) -> Any:
    """A function (prompt, **settings) -> the completion as plain data."""
    if kind not in ("auto", "litellm", "http"):
        raise InputError(f"client={kind!r}; choose auto, litellm or http")
    installed = importlib.util.find_spec("litellm") is not None
    if kind == "litellm" and not installed:
        raise InputError("litellm is not installed; pip install 'patchclamp[describe]', or use client='http'")
    if kind == "http" or not installed:
        if base_url is None:
            raise InputError("without litellm an endpoint needs base_url, such as http://localhost:8000/v1")
        return _http(model, base_url, api_key or os.environ.get("OPENAI_API_KEY"), timeout)
    return _litellm(model, base_url, api_key, timeout)


def _http(model: str, base_url: str, api_key: str | None, timeout: float) -> Any:
    if not base_url.startswith(("http://", "https://")):
        raise InputError(f"base_url={base_url!r}; it begins with http:// or https://")
    url = f"{base_url.rstrip('/')}/chat/completions"
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})

    def ask(prompt: str, **settings: Any) -> Any:
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": prompt}], **settings}).encode()
        for attempt in range(_TRIES):
            try:
                request = urllib.request.Request(url, data=body, headers=headers)
                with urllib.request.urlopen(request, timeout=timeout) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as problem:
                if (problem.code != 429 and problem.code < 500) or attempt == _TRIES - 1:
                    raise Error(f"{url} answered {problem.code} {problem.reason}") from problem
            except (OSError, ValueError) as problem:
                if attempt == _TRIES - 1:
                    raise Error(f"no answer from {url}: {problem}") from problem
            time.sleep(_WAIT * 2**attempt)
        return None

    return ask


def _litellm(model: str, base_url: str | None, api_key: str | None, timeout: float) -> Any:
    import litellm

    named = f"openai/{model}" if base_url is not None and "/" not in model else model

    def ask(prompt: str, **settings: Any) -> Any:
        try:
            answer = litellm.completion(
                model=named,
                messages=[{"role": "user", "content": prompt}],
                base_url=base_url,
                api_key=api_key or os.environ.get("OPENAI_API_KEY") or ("none" if base_url is not None else None),
                timeout=timeout,
                num_retries=_TRIES - 1,
                drop_params=True,  # providers differ in what they take, log-probabilities above all
                **settings,
            )
        except Exception as problem:  # litellm maps the errors of many clients, which share no base class
            raise Error(
                f"{model} did not answer: {(str(problem).splitlines() or [type(problem).__name__])[0]}"
            ) from problem
        return answer.model_dump()

    return ask


def _choice(answer: Any) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = answer["choices"][0]
    except (KeyError, IndexError, TypeError) as problem:
        raise Error(f"the endpoint's answer is no chat completion: {str(answer)[:120]}") from problem
    return found


def _text(answer: Any) -> str:
    message = _choice(answer).get("message") or {}
    return str(message.get("content") or "")


def _first_token(answer: Any) -> tuple[float, float] | None:
    """Probabilities of yes and of no as the first token; None if the endpoint gives no log-probabilities."""
    content = (_choice(answer).get("logprobs") or {}).get("content")
    if not content:
        return None
    yes = no = 0.0
    for entry in content[0].get("top_logprobs") or [content[0]]:
        token, weight = str(entry["token"]).strip().lower(), math.exp(float(entry["logprob"]))
        yes += weight if token in ("yes", "y", "ye") else 0.0
        no += weight if token in ("no", "n") else 0.0
    return (yes, no) if yes + no > 0 else None


def _numbers(text: str) -> list[float]:
    found = re.search(r"\[[^\[\]]*\]", text)
    try:
        values = json.loads(found[0]) if found else []
        return [float(value) for value in values]
    except (ValueError, TypeError):
        return []
