"""Language neurons end to end: record, find, clamp against matched-random controls, keep an atlas and a page.

Method: Zhang et al. 2025 (arXiv 2505.21505), building on Tang et al. 2024 (arXiv 2402.16438); all of it lives in the
floors below, this file only puts the parts in order.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchclamp.atlas import build as build_atlas
from patchclamp.core.errors import InputError
from patchclamp.data import Corpus
from patchclamp.find import Finding
from patchclamp.find.language import language
from patchclamp.measure import Effects, effect
from patchclamp.models import LanguageModel
from patchclamp.record import Recording, record
from patchclamp.record.recording import MANIFEST
from patchclamp.studies import language_neurons_view as view

SUFFIXES = {
    "recording": ".recording",
    "sets": ".sets.json",
    "effects": ".effects.json",
    "atlas": ".atlas.duckdb",
    "page": ".html",
}


@dataclass(frozen=True, eq=False)
class LanguageNeurons:
    """What the study made; rich shows its tables in a terminal, the page holds the pictures.

    files: kind (recording, sets, effects, atlas, page) -> where it is.
    """

    recording: Recording
    finding: Finding
    effects: Effects
    files: dict[str, Path]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the finding's summary, the effects' rows, the files."""
        return {
            "finding": self.finding.summary(),
            "effects": {"rows": self.effects.rows, "dominance": self.effects.dominance()},
            "seconds": round(self.seconds, 1),
            "files": {kind: str(path) for kind, path in self.files.items()},
        }

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield from view.terminal(self)


def language_neurons(
    model: LanguageModel,
    *,
    find_on: Corpus,
    measure_on: Corpus,
    out: Path,
    name: str = "language-neurons",
    rate: float = 0.01,
    bar: float = 0.95,
    controls: int = 10,
    seed: int = 0,
    overwrite: bool = False,
    resume: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> LanguageNeurons:
    """Find each label's neurons in `find_on` and measure in `measure_on` what clamping them to 0 does.

    Writes NAME.recording/, NAME.sets.json, NAME.effects.json, NAME.atlas.duckdb and NAME.html into the folder `out`.
    resume: take the recording, sets and effects that are there and go on; the caller knows that they are of this model and
    these arguments.
    Raises InputError if the two texts have different labels or (without `overwrite`) a file is there already.
    """
    started = time.perf_counter()
    if set(find_on.labels) != set(measure_on.labels):
        raise InputError(
            f"labels to find are {', '.join(find_on.labels)}, labels to measure {', '.join(measure_on.labels)}"
        )
    out.mkdir(parents=True, exist_ok=True)
    files = {kind: out / f"{name}{suffix}" for kind, suffix in SUFFIXES.items()}
    if not (overwrite or resume) and (taken := [path for path in files.values() if path.exists()]):
        raise InputError(f"{taken[0]} exists already; choose another folder or name")

    say(f"1/5 recording every MLP neuron of {model.name} over {len(find_on.labels)} texts")
    if not resume:
        _clear(files["recording"])
        for kind in ("sets", "effects"):
            files[kind].unlink(missing_ok=True)
    statistics = ("firing", "moments", "exemplars")
    recording = record(model, find_on, statistics=statistics, out=files["recording"], resume=resume)
    say("2/5 finding the neurons of each label")
    if not files["sets"].exists():
        language(recording, rate=rate, bar=bar, seed=seed).save(files["sets"])
    finding = Finding.load(files["sets"])
    say(f"3/5 clamping each set and {controls} matched-random sets to 0, on text that the finder did not see")
    if not files["effects"].exists():
        found = effect(model, finding.sets, on=measure_on, to=0.0, controls=controls, permutations=19_999, seed=seed)
        found.save(files["effects"])
    effects = Effects.load(files["effects"])
    say("4/5 building the atlas")
    build_atlas(
        files["atlas"],
        recordings=[recording],
        findings=[finding],
        effects=[effects],
        model=model,
        corpus=find_on,
        overwrite=overwrite or resume,
    )
    say("5/5 drawing the page")
    result = LanguageNeurons(recording, finding, effects, files, time.perf_counter() - started)
    view.page(result, model).save(files["page"])
    return result


def _clear(folder: Path) -> None:
    """Remove an earlier recording; InputError for a folder that is anything else."""
    if not folder.exists():
        return
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder} is there already and is no recording; choose another folder with --out")
    shutil.rmtree(folder)
