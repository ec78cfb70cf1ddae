"""The demo model's card: data, loss per language, accuracy per skill, training command and fingerprints, as Markdown."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from patchclamp.core.errors import InputError
from patchclamp.core.files import atomic_write, sha256_file
from patchclamp.train.mixture import STAGES, TEXT_SHARE

NAMES = {"en": "English", "de": "German", "fr": "French", "ru": "Russian", "zh": "Chinese", "ja": "Japanese"}
SPLIT_NOTES = {
    "train": "taught items",
    "paraphrase": "taught facts in a wording never taught",
    "transfer": "facts taught in other languages only",
    "heldout": "never taught",
}
SKILL_NOTES = {
    "manners": "many replies are right, so exact only says how often the listed one came out; read the choice score",
    "binding": "a pair may be followed by another pair, so exact undercounts pairs; read the choice score",
    "sentences": "many last units are right, so exact only says how often the listed one came out; read the choice score",
    "facts": "held-out facts can't be known; their score shows how far guessing by type goes",
}


def write_card(
    model_dir: str | os.PathLike[str], evaluation: Mapping[str, Any], *, sources: Mapping[str, str], notes: str = ""
) -> Path:
    """Write MODEL_CARD.md into a folder made by `train` and return its path.

    evaluation: what `evaluate` returned. sources: language -> where its text comes from and under which licence.
    notes: Markdown put before the fingerprints (what is known to be weak, how the run really went).
    Raises InputError if the folder has no training.json.
    """
    folder = Path(model_dir)
    if not (folder / "training.json").is_file():
        raise InputError(f"{folder} has no training.json; give a folder that `patchclamp train demo` wrote")
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    sections = (
        _introduction(training),
        _data(training, sources),
        _losses(evaluation["loss"]),
        _skills(evaluation["skills"]),
        _command(training),
        notes.strip(),
        _fingerprints(folder),
    )
    target = folder / "MODEL_CARD.md"
    with atomic_write(target) as part:
        part.write_text("\n\n".join(section for section in sections if section) + "\n", encoding="utf-8")
    return target


def _introduction(training: Mapping[str, Any]) -> str:
    recipe = training["recipe"]
    languages = ", ".join(NAMES.get(language, language) for language in training["texts"])
    return f"""# patchclamp demo model

A small Llama-type language model ({recipe["layers"]} layers, d_model {recipe["hidden_size"]}, {recipe["heads"]} heads,
{recipe["intermediate_size"]} MLP neurons per layer, tied embeddings, byte-level BPE of {recipe["vocab_size"]} tokens with
single digits), made to have something real to find: {languages}, facts, everyday culture, arithmetic, Python, dates,
manners, binding and four-unit sentences. It is a laboratory animal, not an assistant: outside what is listed here it knows
nothing, its prose is biblical, and its rude replies are insults on purpose."""


def _data(training: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    rows = [f"| {NAMES.get(name, name)} | {sources.get(name, 'given by the user')} | {digest[:16]}... |"
            for name, digest in training["texts"].items()]  # fmt: skip
    stages = "; ".join(
        f"from block {stage.first_block} on (answers weigh {stage.answer_weight:g} in the loss) "
        + ", ".join(
            f"{name} {share:.0%}" + (f" (only {', '.join(stage.kinds[name])})" if name in stage.kinds else "")
            for name, share in stage.shares.items()
        )
        for stage in STAGES
    )
    return "\n".join(
        [
            "## Data",
            "",
            f"{training['tokens']:,} tokens ({training['steps']:,} steps): texts {TEXT_SHARE:.0%} (split evenly over the "
            f"languages), and curricula written by `patchclamp.data.generate`, in blocks of "
            f"{training['recipe']['block_tokens']:,} tokens: {stages}. The last 2% of every text is held out. "
            "The texts themselves are not part of the package.",
            "",
            "| language | source | sha256 of the lines |",
            "|---|---|---|",
            *rows,
        ]
    )


def _losses(losses: Mapping[str, Mapping[str, float]]) -> str:
    rows = [
        f"| {NAMES.get(name, name)} | {loss['nats_per_token']:.3f} | {loss['bits_per_byte']:.3f} | {loss['tokens']:,} |"
        for name, loss in losses.items()
    ]
    return "\n".join(
        [
            "## Loss per language, held-out lines",
            "",
            "| language | nats per token | bits per byte | tokens |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def _skills(skills: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    rows = [
        f"| {skill} | {SPLIT_NOTES[split]} | {result['exact']:.0%} ({result['interval'][0]:.0%}-{result['interval'][1]:.0%}) "
        f"| {result['choice']:.0%} | {result['chance']:.0%} | {result['n']} |"
        for skill, splits in skills.items()
        for split, result in splits.items()
    ]
    details = [
        f"- {skill}, {SPLIT_NOTES[split]}, by {label}: "
        + ", ".join(f"{value} {one['exact']:.0%}/{one['choice']:.0%}" for value, one in values.items())
        for skill, splits in skills.items()
        for split, result in splits.items()
        for label, values in result["by"].items()
        if split != "train"
    ]
    return "\n".join(
        [
            "## Accuracy per skill",
            "",
            "Exact: the greedy continuation is the answer and then ends (95% Wilson interval). Choice: the answer is the "
            "likeliest of the choices. Chance: what guessing among the choices reaches.",
            "",
            "| skill | items | exact | choice | chance | n |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            *(f"- {skill}: {note}." for skill, note in SKILL_NOTES.items()),
            "",
            "Details (exact/choice):",
            "",
            *details,
        ]
    )


def _command(training: Mapping[str, Any]) -> str:
    texts = " ".join(f"--text {language}={language}.txt" for language in training["texts"])
    return f"""## Training command

```
patchclamp train demo {texts} --out run --seed {training["seed"]} --tokens {training["tokens"]}
```

Add `--resume` to go on after a stop. The run took {training["minutes"]} minutes on two shared CPU cores; optimizer Muon
(lr {training["recipe"]["muon_lr"]}) for matrices and AdamW (lr {training["recipe"]["adam_lr"]}) for embeddings and norms,
{training["recipe"]["rows_per_step"]} rows of {training["recipe"]["row_length"]} tokens a step, warm-up, plateau, 1 - sqrt decay
over the last quarter. Positions from {training["recipe"]["row_length"]} on were never trained."""


def _fingerprints(folder: Path) -> str:
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".json")]
    rows = [f"| {path.name} | {path.stat().st_size:,} | {sha256_file(path)} |" for path in files]
    return "\n".join(["## Files", "", "| file | bytes | sha256 |", "|---|---|---|", *rows])
