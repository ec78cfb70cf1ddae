"""Decoding neurons with the LM head, end to end: a label for every neuron, words to neurons, clamps, and a tuned checkpoint.

Method: Davies 2025 (arXiv 2501.02688); all of it lives in the floors below, this file only puts the parts in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from patchclamp.core.errors import InputError
from patchclamp.data import demo_text
from patchclamp.models import LanguageModel, UnitSet, load
from patchclamp.models.directions import output_directions
from patchclamp.read.agreement import agreement
from patchclamp.read.lm_head import tokens, tokens_of
from patchclamp.read.token_map import TokenMap, visible
from patchclamp.read.word_check import PROMPTS, check_words
from patchclamp.read.words import Spelling, WordUnits, forms_of, spellings, word_units
from patchclamp.studies import lm_head_decoding_view as view
from patchclamp.studies.study import Report, Run, studies
from patchclamp.train import finetune

NAME = "lm-head-decoding"
WORDS = (
    "blue", "red", "green", "white", "black", "Paris", "London", "Moskau", "pizza", "sushi", "tea", "coffee", "king",
    "house", "father", "mother", "God", "water", "earth", "heaven", "day", "night", "man", "woman", "son", "three",
    "seven", "euro", "yen", "dollar", "Europe", "Asia", "Africa", "football", "boat", "return", "print", "def",
    "mother in any language=mother|Mutter|mère|мать|母", "water in any language=water|Wasser|eau|вода|水",
)  # fmt: skip
RANDOM = 512  # random directions of each layer
EXAMPLES = 12


@studies.add(NAME)
def lm_head_decoding(
    run: Run,
    *,
    words: Sequence[str] = WORDS,
    site: str = "mlp",
    read_site: str = "up",
    top: int = 5,
    strengths: Sequence[float] = (1.0, 3.0, -1.0),
    controls: int = 20,
    generate: int = 6,
    prompts: Sequence[str] = PROMPTS,
    tuned: str | None = None,
    steps: int = 20,
) -> Report:
    """Decoding neurons with the LM head: what each points at, what clamping it does, what tuning leaves (arXiv 2501.02688).

    words: to find units for and to clamp; NAME=FORM|FORM for several forms. Those that the tokenizer can't write are left
    out. site: whose units are found and clamped. read_site: the paper's choice, rows that units listen with. top: units
    clamped for each word. strengths: clamp values, in units of the largest activation of the layer on the prompts; at
    the first one the verdict is made and text is written. controls: random sets beside each word. generate: tokens
    written after each prompt. prompts: neutral beginnings. tuned: a checkpoint of the same shape to compare labels
    with; by default the model itself after some training on French text. steps: of that training.
    """
    if not strengths or controls < 20:
        raise InputError("give at least one strength, and 20 controls or more: fewer can't reach p = 0.05")
    kept, dropped = _writable(run.model, words)
    sites = tuple(name for name in dict.fromkeys((read_site, site)) if name in run.model.layouts)
    if site not in sites:
        raise InputError(f"{run.model.name} has no site {site!r}; it has {', '.join(run.model.layouts)}")
    made = run.stage("map", lambda: [_mapped(run, name) for name in sites])
    found = _restored(run, run.stage("words", lambda: _found(run, kept, site, top)))
    checks = run.stage(
        "clamps",
        lambda: {
            str(strength): check_words(
                run.model, found, prompts=prompts, strength=strength, controls=controls,
                generate=generate if strength == strengths[0] else 0, seed=run.seed, quiet=run.quiet,
            ).rows()
            for strength in dict.fromkeys(strengths)
        },
    )  # fmt: skip
    return view.report(
        view.LmHeadDecoding(
            maps=made,
            words=[{**row, "text": visible(row["text"])} for row in found.rows()],
            dropped=dropped,
            strengths=[float(strength) for strength in dict.fromkeys(strengths)],
            checks=checks,
            agreement=run.stage("tuned", lambda: _tuned(run, sites, tuned, steps)),
            tuned=tuned or f"the same model after {steps} steps on French text",
            top=top,
            model=dict(run.model.identity),
        )
    )


def _writable(model: LanguageModel, words: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """The words that the tokenizer can write, and the names of the others."""
    forms = forms_of(words)
    kept, dropped = {}, []
    for name, listed in forms.items():
        try:
            spellings(model.tokenizer, listed, len(model.tokenizer))
        except InputError:
            dropped.append(name)
        else:
            kept[name] = listed
    if not kept:
        raise InputError("the tokenizer can write none of the words; give words= of a language that it knows")
    return kept, dropped


def _found(run: Run, words: dict[str, tuple[str, ...]], site: str, top: int) -> dict[str, Any]:
    return word_units(run.model, words=words, sites=site, top=top).to_dict()


def _restored(run: Run, data: dict[str, Any]) -> WordUnits:
    """The units of words from what the stage kept."""
    sets = {}
    for word in data["spellings"]:
        rows = [row for row in data["rows"] if row["word"] == word]
        sets[word] = UnitSet.of(run.model, [row["unit"] for row in rows], [row["score"] for row in rows])
    spelled = {word: tuple(Spelling(**one) for one in listed) for word, listed in data["spellings"].items()}
    return WordUnits(sets, spelled, data["rows"], data["parameters"])


def _mapped(run: Run, site: str) -> dict[str, Any]:
    """How far labels stand out per layer, beside random directions of the same lengths; and the clearest units."""
    rows = []
    made: TokenMap = tokens(run.model, sites=site, k=8, quiet=run.quiet)
    layers = {row["layer"]: row for row in made.by_layer()}
    generator = torch.Generator().manual_seed(run.seed)
    for layer in layers:
        lengths = torch.cat(
            [one.rows.float().norm(dim=1).cpu() for one in output_directions(run.model, site) if one.layer == layer]
        )
        size = min(RANDOM, max(len(lengths), 1))
        drawn = torch.randn(size, run.model.anatomy.d_model, generator=generator)
        drawn *= (lengths[:size] / drawn.norm(dim=1))[:, None]
        null = tokens_of(run.model, drawn, k=1)
        mine = made.z[_rows_of(made, site, layer)]
        bar = float(np.quantile(null.z, 0.99))
        rows.append(
            {**layers[layer], "random": float(np.median(null.z)), "random99": bar, "beyond": float((mine > bar).mean())}
        )
    clearest = np.argsort(-made.z, kind="stable")[:EXAMPLES].tolist()
    listed = [
        {
            "unit": made.names[row],
            "z": float(made.z[row]),
            **{k: [visible(t) for t in v[:6]] for k, v in made.strings(made.names[row]).items()},
        }
        for row in clearest
    ]
    return {
        "site": site,
        "units": len(made),
        "undefined": int(made.undefined.sum()),
        "layers": rows,
        "clearest": listed,
    }


def _rows_of(made: TokenMap, site: str, layer: int) -> slice:
    span, start = made.layouts[site].slice(layer), made.rows_of(site).start
    return slice(start + span.start, start + span.stop)


def _tuned(run: Run, sites: Sequence[str], tuned: str | None, steps: int) -> list[dict[str, Any]]:
    """Agreement of the labels per site, each model under its own head and both under the first one's."""
    if tuned is not None:
        other = load(tuned, dtype=str(run.model.dtype).removeprefix("torch."))
    else:
        text = demo_text(("fr",), split="find")
        other = finetune(
            run.model, text, steps=steps, learning_rate=3e-4, batch_tokens=1024, seed=run.seed, quiet=run.quiet
        )
    found = []
    for site in sites:
        settings: dict[str, Any] = {"sites": site, "k": 10, "quiet": run.quiet}
        base, own = tokens(run.model, **settings), tokens(other, **settings)
        both = agreement(base, own, models=(run.model, other))
        shared = agreement(base, tokens(other, head=run.model, **settings))
        found.append({**both.to_dict(), "site": site, "one_head": shared.overall})
    return found
