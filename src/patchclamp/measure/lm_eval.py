"""Any task of the lm-evaluation-harness on a model with clamped units: `evaluate(model, ["arc_easy"])` inside a clamp.

    with pc.clamp(model, units, to=0.0):
        results = pc.measure.lm_eval.evaluate(model, ["arc_easy", "wikitext"], limit=100)

Needs the package `lm-eval` (pip install 'patchclamp[eval]'); it is imported when it is first used. Texts are cut into
context and continuation by the harness, so numbers compare with those of its other backends.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from patchclamp.core.errors import InputError
from patchclamp.data.batches import Budget, SpecialTokens
from patchclamp.measure.continuation_rows import Rows
from patchclamp.measure.continuations import Continuation
from patchclamp.measure.effect_runs import PLAIN, over_runs
from patchclamp.measure.generation import cut_at, generate
from patchclamp.measure.task_scores import tokenizer_of

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

MAX_NEW_TOKENS = 256  # the harness's own default where a task names no limit


def evaluate(
    model: LanguageModel, tasks: Sequence[Any], *, batch_tokens: int = 4096, **arguments: Any
) -> dict[str, Any]:
    """The harness's results of tasks (names, configurations or task objects), under whatever interventions are active.

    arguments: those of `lm_eval.simple_evaluate`, such as num_fewshot, limit, log_samples, task_manager.
    """
    adapter = adapted(model, batch_tokens=batch_tokens)
    results: dict[str, Any] = _harness().simple_evaluate(model=adapter, tasks=list(tasks), **arguments)
    return results


def adapted(model: LanguageModel, *, batch_tokens: int = 4096) -> Any:
    """The model as an `lm_eval.api.model.LM`, for `lm_eval.simple_evaluate(model=...)`.

    It scores with what is active when it is called. Tokens of continuations, and generated ones, count as "generated" in
    the scope of an intervention. Inputs longer than the model takes lose their beginning, as in the harness.
    """
    return _adapter_class()(model, batch_tokens)


def _harness() -> Any:
    try:
        import lm_eval
    except ImportError as problem:
        raise InputError("lm-eval is not installed; install it with: pip install 'patchclamp[eval]'") from problem
    return lm_eval


@functools.cache
def _adapter_class() -> type:
    _harness()
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    class Adapter(TemplateLM):
        """A LanguageModel as the harness sees it."""

        def __init__(self, model: LanguageModel, batch_tokens: int) -> None:
            super().__init__()
            self.model, self.batch_tokens = model, batch_tokens
            self.tokenizer = tokenizer_of(model)
            self.frame = SpecialTokens.of(self.tokenizer)

        @property
        def device(self) -> Any:
            return self.model.device

        @property
        def max_length(self) -> int:
            return self.model.max_length

        @property
        def eot_token_id(self) -> int:
            ends = self.tokenizer.eos_token_id
            return int(self.model.pad_id if ends is None else ends)

        @property
        def prefix_token_id(self) -> int:
            """What an empty context is read as: BOS, else EOS."""
            begins = self.tokenizer.bos_token_id
            return int(self.eot_token_id if begins is None else begins)

        @property
        def tokenizer_name(self) -> str:
            return str(self.tokenizer.name_or_path).replace("/", "__")

        def chat_template(self, chat_template: bool | str = False) -> str:
            return str(self.tokenizer.chat_template or "") if chat_template else ""

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    chat_history,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **more: Any) -> list[int]:
            """Ids with BOS where the tokenizer adds one (once); without where that is asked for. Never with EOS."""
            ids = list(self.tokenizer(string, add_special_tokens=False)["input_ids"])
            before = list(self.frame.before)
            missing = add_special_tokens is not False and ids[: len(before)] != before
            return before + ids if missing else ids

        def tok_decode(self, tokens: Sequence[int], **more: Any) -> str:
            return str(self.tokenizer.decode(tokens, **more))

        def _loglikelihood_tokens(self, requests: Any, **more: Any) -> list[tuple[float, bool]]:
            """(log-probability, written by greedy decoding) of ((context, continuation), context ids, ids)."""
            asked = [self._fitted(list(context), list(tokens)) for _, context, tokens in requests]
            if not asked:
                return []
            rows = Rows(self.model, asked, "requests", self.batch_tokens)
            over_runs(
                self.model, rows, [], budget=Budget(self.batch_tokens), scope="generated", reuse=False, quiet=False
            )
            scores = rows.scores(PLAIN)
            greedy = scores.matched == scores.lengths
            found = list(zip(scores.totals.tolist(), greedy.tolist(), strict=True))
            for (texts, _, _), answer in zip(requests, found, strict=True):
                if texts is not None:
                    self.cache_hook.add_partial("loglikelihood", texts, answer)
            return found

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            """Log-probability of whole texts, in windows of the model's length that predict every token once."""
            windows, owners = [], []
            for number, request in enumerate(requests):
                cut = get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
                for window in map(make_disjoint_window, cut):
                    windows.append((None, *window))
                    owners.append(number)
            totals = [0.0] * len(requests)
            for owner, (log_p, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
                totals[owner] += log_p
            for request, total in zip(requests, totals, strict=True):
                self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
            return totals

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            """What the model writes after each context, up to the first of the request's stops."""
            found = [""] * len(requests)
            alike: dict[str, list[int]] = {}
            for number, request in enumerate(requests):
                alike.setdefault(repr(sorted(request.args[1].items())), []).append(number)
            for numbers in alike.values():
                settings = dict(requests[numbers[0]].args[1])
                stops, limit, arguments = _generation_settings(settings)
                room = self.max_length - limit
                if room < 1:
                    raise InputError(f"{limit} new tokens asked for, but this model takes {self.max_length} in all")
                rows = [self.tok_encode(requests[number].args[0])[-room:] for number in numbers]
                new = generate(
                    self.model,
                    rows,
                    max_new_tokens=limit,
                    batch_tokens=self.batch_tokens,
                    done=functools.partial(_holds_one, stops) if stops else None,
                    **arguments,
                )
                for number, ids in zip(numbers, new, strict=True):
                    found[number] = cut_at(self.tokenizer.decode(ids, skip_special_tokens=True), stops)
                    self.cache_hook.add_partial("generate_until", requests[number].args, found[number])
            return found

        def _fitted(self, context: list[int], tokens: list[int]) -> Continuation:
            """The end of context and tokens that the model can take (the last token is not fed)."""
            room = self.max_length + 1 - len(tokens)
            if room < 1:
                raise InputError(f"a continuation of {len(tokens)} tokens; this model takes {self.max_length} at once")
            return Continuation(tuple(context[-room:]), tuple(tokens))

    return Adapter


def _holds_one(stops: tuple[str, ...], text: str) -> bool:
    return any(stop in text for stop in stops)


def _generation_settings(given: dict[str, Any]) -> tuple[tuple[str, ...], int, dict[str, Any]]:
    """Stops, number of new tokens, and keywords of `generate` from what a task asks for; greedy at temperature 0."""
    stops = given.pop("until", None) or ()
    limit = int(given.pop("max_gen_toks", given.pop("max_new_tokens", MAX_NEW_TOKENS)))
    if not given.get("do_sample") or given.get("temperature") == 0:
        given = {
            key: value for key, value in given.items() if key not in ("temperature", "top_p", "top_k", "do_sample")
        }
    return ((stops,) if isinstance(stops, str) else tuple(stop for stop in stops if stop)), limit, given
