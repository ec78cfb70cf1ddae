"""The public face: cheap to import, complete, and as the README shows it."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import patchclamp as pc
from patchclamp.find import finders
from patchclamp.record import record
from patchclamp.record.statistics import statistics

README = Path(__file__).parent.parent / "README.md"
ARGUMENTS: dict[str, dict[str, Any]] = {"cofiring": {"units": ["mlp.0.1", "mlp.1.2"]}}  # what has no default


def in_a_fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_is_cheap_and_has_no_effects() -> None:
    heavy = (
        "torch",
        "transformers",
        "numpy",
        "scipy",
        "sklearn",
        "duckdb",
        "altair",
        "rich",
        "typer",
        "pandas",
        "polars",
    )
    code = f"import sys, patchclamp; print(sorted({set(heavy)} & set(sys.modules)))"
    assert in_a_fresh_python(code) == "[]"
    assert in_a_fresh_python("import sys, patchclamp.cli.main; print('torch' in sys.modules)") == "False"


def test_every_public_name_resolves_and_is_documented() -> None:
    assert sorted(pc.__all__) == list(pc.__all__)
    assert set(pc.__all__) <= set(dir(pc))
    for name in pc.__all__:
        assert inspect.getdoc(getattr(pc, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pc.nothing


@pytest.mark.parametrize(
    "room",
    [
        "models",
        "data",
        "record",
        "intervene",
        "measure",
        "find",
        "read",
        "generate",
        "atlas",
        "train",
        "studies.language_neurons",
    ],
)
def test_every_public_name_of_a_room_resolves(room: str) -> None:
    import importlib

    module = importlib.import_module(f"patchclamp.{room}")
    for name in getattr(module, "__all__", []):
        assert getattr(module, name) is not None
    assert inspect.getdoc(module)


def test_rooms_are_called_like_their_function_whatever_was_imported_before() -> None:
    for before in (
        "",
        "import patchclamp.record, patchclamp.replay, patchclamp.find.language, patchclamp.models.load; ",
    ):
        code = (
            f"import patchclamp as pc; {before}print(*map(callable, (pc.record, pc.replay, pc.load, pc.find.language)))"
        )
        assert in_a_fresh_python(code) == "True True True True"


@pytest.fixture(scope="module")
def text() -> Any:
    lines = [f"The cat number {n} sat on the mat." for n in range(20)]
    return pc.corpus(en=lines, fr=[f"Le chat {n} est assis sur le tapis." for n in range(20)])


@pytest.mark.parametrize("name", [entry.name for entry in statistics])
def test_every_registered_statistic_runs_merges_and_is_documented(tiny_gpt2: Any, text: Any, name: str) -> None:
    kind = statistics[name]
    assert len(inspect.getdoc(kind) or "") > 30
    recording = record(tiny_gpt2, text, statistics={name: ARGUMENTS.get(name, {})}, quiet=True)
    state = recording.get(name, "fr").state()
    assert state
    assert all(isinstance(array, np.ndarray) for array in state.values())
    assert recording.merge(recording).documents("fr") == 40


def tagged(n: int) -> pc.Document:
    words, spans, at = ["The", "cat", f"{n % 7}", "sat", "on", "the", "mat"], {}, 0
    for word, tag in zip(words, ("DET", "NOUN", "NUM", "VERB", "ADP", "DET", "NOUN"), strict=True):
        spans[f"upos={tag}"] = (*spans.get(f"upos={tag}", ()), (at, at + len(word)))
        at += len(word) + 1
    return pc.Document(" ".join(words), spans)


def asked(n: int) -> dict[str, Any]:
    choices = [" the mat", " le tapis"]
    return {"prompt": f"The cat {n}", "answer": choices[n % 2], "choices": choices, "labels": {"country": "ab"[n % 2]}}


TEXTS = {
    "discrimination": {"en": [tagged(n) for n in range(30)]},
    "syntax": {"en": [f"a|{b}|c|{d}" for b, d in zip("bdefghij", "klmnopqr", strict=True)]},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "culture": {"shuffles": 2},
    "discrimination": {"min_per_class": 2, "resamples": 2, "permutations": 9, "random_weights": False, "points": 0},
    "relation": {"shuffles": 2},
    "syntax": {"n_streams": 4, "groups": 2, "permutations": 20, "floor": False},
    "temporal": {"cue": "en", "control": "fr", "years": "1900-1919", "shuffles": 2},
}


def finding_by(name: str, model: Any, text: Any) -> pc.Finding:
    """What a finder makes of the tiny model: from a recording with all it may need, a task, or a text."""
    finder, settings = finders[name], SETTINGS.get(name, {})
    second = [*inspect.signature(finder).parameters][1]
    if second == "task":
        return finder(model, pc.Task.of([asked(n) for n in range(8)]), **settings)
    if second == "text":
        return finder(model, pc.corpus(TEXTS[name]), **settings)
    wanted = ("firing", "moments", "pooled", "core", "shape")
    return finder(record(model, text, sites=("mlp", "pre", "mlp_out"), statistics=wanted, quiet=True), **settings)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", [entry.name for entry in finders])
def test_every_registered_finder_runs_is_documented_and_says_how_it_was_made(
    tiny_gpt2: Any, text: Any, tmp_path: Path, name: str
) -> None:
    finder = finders[name]
    documented = inspect.getdoc(finder) or ""
    given = [key for key in inspect.signature(finder).parameters if key not in ("model", "recording")]
    for parameter in given:
        assert re.search(rf"\b{parameter}(,\s\w+)*:\s", documented), parameter
    finding = finding_by(name, tiny_gpt2, text)
    assert isinstance(finding, pc.Finding)
    assert finding.provenance["call"] == f"find.{name}"
    reruns = {key for key in given if key not in ("text", "task", "control", "names", "batch_tokens", "quiet")}
    assert reruns <= set(finding.provenance["arguments"])
    assert list(finding.sets) == list(finding.labels)
    assert finding.null
    again = pc.Finding.load(finding.save(tmp_path / "sets.json"))
    assert {label: units.names() for label, units in again.sets.items()} == {
        label: units.names() for label, units in finding.sets.items()
    }


def readme_code() -> str:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[0]


def test_the_names_of_the_quickstart_exist() -> None:
    seen = 0
    for node in ast.walk(ast.parse(readme_code())):
        if isinstance(node, ast.Attribute):
            parts = ast.unparse(node).split(".")
            if parts[0] == "pc" and all(part.isidentifier() for part in parts):
                thing: Any = pc
                for part in parts[1:]:
                    thing = getattr(thing, part)
                seen += 1
    assert seen >= 4


def test_the_commands_of_the_readme_exist() -> None:
    from typer.main import get_command

    from patchclamp.cli.main import app

    known = get_command(app)
    named = re.findall(r"(?:^|`)patchclamp ([a-z]+)", README.read_text(encoding="utf-8"), re.MULTILINE)
    named = [name for name in named if name not in ("is", "does")]
    assert len(named) >= 5
    for name in named:
        assert known.get_command(None, name) is not None, name  # type: ignore[attr-defined, arg-type]
