"""A describer that is a Hugging Face model on this machine: it writes candidates and weighs them by its own probabilities.

log p(d | E) is the teacher-forced log-probability of the description after a prompt with the unit's marked passages. The prior
is the same with the passages of other units (a contrastive prior: the wording of the prompt cancels), averaged as probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp

from patchclamp.core.errors import InputError
from patchclamp.read.describer_words import Words
from patchclamp.read.descriptions import describers
from patchclamp.read.exemplar import Exemplar
from patchclamp.read.exemplar_store import Exemplars, ExemplarStore
from patchclamp.read.predicates import parse
from patchclamp.read.prompting import SHOWN, description_prompt, part_prompt, tidy


@describers.add("local")
class Local:
    """Any causal language model that `patchclamp.load` takes."""

    def __init__(
        self,
        store: ExemplarStore,
        *,
        model: Any,
        beam: int = 5,
        new_tokens: int = 15,
        passages: int = SHOWN,
        others: int = 8,
        words: bool = True,
        batch: int = 8,
        seed: int = 0,
    ) -> None:
        """model: a LanguageModel, hub id or folder. beam: texts that it writes by beam search. new_tokens: of a text.
        passages: in a prompt. others: units in the prior. words: weigh the candidates of the describer "words" too. batch:
        prompts at once."""
        if store.medium != "text":
            raise InputError("a language model can't be shown images; use the describer words or dissect")
        if isinstance(model, str):
            from patchclamp.models.load import load

            model = load(model)
        self.model, self._passages, self._batch = model, passages, batch
        self._beam, self._new_tokens = beam, new_tokens
        self._words = Words(store) if words else None
        rng = np.random.default_rng(seed)
        units = [unit for unit in store if not store[unit].silent]
        if not units:
            raise InputError("all units of the store are silent; there is nothing to describe them by")
        self._others = [self._prompt(store[units[at]]) for at in np.sort(rng.permutation(len(units))[:others]).tolist()]
        self._priors: dict[str, float] = {}

    def candidates(self, exemplars: Exemplars) -> list[str]:
        written = self.model.generate(
            self._fitting(self._prompt(exemplars)),
            max_new_tokens=self._new_tokens,
            num_beams=self._beam,
            num_return_sequences=self._beam,
        )
        known = self._words.candidates(exemplars)[: self._beam] if self._words else []
        return list(dict.fromkeys([*tidy(written), *known]))

    def log_probability(self, descriptions: Sequence[str], exemplars: Exemplars) -> NDArray[np.float64]:
        prompt = self._prompt(exemplars)
        return self._continued([(prompt, f" {text}") for text in descriptions])

    def log_prior(self, descriptions: Sequence[str]) -> NDArray[np.float64]:
        for text in descriptions:
            if text not in self._priors:
                found = self._continued([(prompt, f" {text}") for prompt in self._others])
                self._priors[text] = float(logsumexp(found) - np.log(len(found)))
        return np.array([self._priors[text] for text in descriptions], dtype=np.float64)

    def predict(self, description: str, exemplar: Exemplar) -> NDArray[np.float64]:
        """Texts that can be checked by machine are; for others the model is asked about every token, P(yes) / P(yes or no)."""
        if self._words is not None and parse(description) is not None:
            return self._words.predict(description, exemplar)
        prompts = [part_prompt(description, exemplar, part) for part in range(len(exemplar.parts))]
        yes = self._continued([(prompt, " Yes") for prompt in prompts])
        no = self._continued([(prompt, " No") for prompt in prompts])
        return np.asarray(1 / (1 + np.exp(np.clip(no - yes, -50, 50))))

    def margin(self, description: str, exemplars: Exemplars) -> float | None:
        """How much likelier after this unit's passages than after other units'."""
        return float(self.log_probability([description], exemplars)[0] - self.log_prior([description])[0])

    def _fitting(self, prompt: str) -> str:
        """The end of a prompt that leaves room for the text to write."""
        room = self.model.max_length - self._new_tokens
        if room < 1:
            raise InputError(
                f"new_tokens={self._new_tokens}, but {self.model.name} takes {self.model.max_length} tokens"
            )
        while len(self.model.tokenize(prompt)) > room:
            prompt = prompt[len(prompt) // 8 + 1 :]
        return prompt

    def _prompt(self, shown: Exemplars) -> str:
        return description_prompt(shown, count=self._passages)

    def _continued(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
        """(n,) log-probability of each continuation after its prompt, nats; a prompt too long loses its beginning."""
        rows = []
        for prompt, text in pairs:
            left, right = self.model.tokenize(prompt), self.model.tokenizer(text, add_special_tokens=False)["input_ids"]
            room = self.model.max_length - len(right)
            if not right or room < 1:
                raise InputError(
                    f"{text!r} can't be scored: it has {len(right)} tokens, the model takes {room + len(right)}"
                )
            rows.append((left[-room:], list(right)))
        found: list[float] = []
        for start in range(0, len(rows), self._batch):
            found += self._scored(rows[start : start + self._batch])
        return np.array(found, dtype=np.float64)

    def _scored(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        width = max(len(left) + len(right) for left, right in rows)
        ids = torch.full((len(rows), width), self.model.pad_id, device=self.model.device)
        mask = torch.zeros_like(ids)
        for row, (left, right) in enumerate(rows):
            n = len(left) + len(right)
            ids[row, :n] = torch.tensor([*left, *right], device=self.model.device)
            mask[row, :n] = 1
        likely = self.model.logits(ids, mask).float().log_softmax(-1)
        found = []
        for row, (left, right) in enumerate(rows):
            before = torch.arange(len(left) - 1, len(left) + len(right) - 1, device=likely.device)
            picked = likely[row, before, torch.tensor(right, device=likely.device)]
            found.append(float(picked.double().sum()))
        return found
