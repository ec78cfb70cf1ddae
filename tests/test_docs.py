"""The README and the docs say what the program does: links, commands, generated pages, formats, and the tutorial itself."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
INLINE = re.compile(r"(?<!`)`(patchclamp [^`\n]+)`(?!`)")
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HELP = {"--help", "-h", "--version"}


def script(name: str) -> ModuleType:
    """A file of scripts/ as a module."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and the site make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose(file), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{page.name} links to {target}"


def known_commands() -> dict[str, Any]:
    return {name: (command, context) for name, command, context in script("write_command_docs").commands()}


def written_commands(page: Path) -> list[tuple[str, bool]]:
    """(command, whether it is whole) of every `patchclamp ...` in a page; a line of a code block is whole."""
    text = page.read_text(encoding="utf-8")
    found = [(command, False) for command in INLINE.findall(prose(page))]
    for language, code in FENCE.findall(text):
        if language in ("sh", "", "text") and page.name != "commands.md":
            lines = re.sub(r"\\\n\s*", "", code).splitlines()
            found += [(re.split(r" {3,}", line)[0], True) for line in lines if line.startswith("patchclamp ")]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_the_docs_parses(page: Path) -> None:
    known = known_commands()
    for written, whole in written_commands(page):
        words = shlex.split(written)
        name = words.pop(0)
        while words and f"{name} {words[0]}" in known:
            name = f"{name} {words.pop(0)}"
        command, context = known[name]
        assert not (words and hasattr(command, "list_commands") and not words[0].startswith("-")), f"no such: {written}"
        options = HELP | {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
        used = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert used <= options, f"{page.name}: {written} has {used - options}"
        if whole and not hasattr(command, "list_commands"):
            command.make_context(name.rpartition(" ")[2], words, parent=context.parent)


def test_the_command_reference_is_the_programs_own_help() -> None:
    current = script("write_command_docs").page()
    stored = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert stored == current, "run: python scripts/write_command_docs.py"


def test_the_list_of_atlas_tables_is_the_schemas() -> None:
    stored = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    assert stored == script("write_atlas_docs").renewed(stored), "run: python scripts/write_atlas_docs.py"


def test_every_finder_and_statistic_is_documented() -> None:
    from patchclamp.find import finders
    from patchclamp.record.statistics import statistics

    concepts = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    formats = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    own = [
        entry for table in (finders, statistics) for entry in table if entry.target.__module__.startswith("patchclamp.")
    ]
    for entry in own:
        assert f"| `{entry.name}` |" in concepts, f"docs/concepts.md has no row for the {entry.kind} {entry.name}"
        if entry.kind == "statistic":
            assert f"`mlp/{entry.name}/" in formats, f"docs/formats.md does not list the arrays of {entry.name}"


def test_every_site_and_operation_is_documented() -> None:
    from patchclamp.intervene.interventions import OPERATIONS
    from patchclamp.models.hooks import SCOPES
    from patchclamp.models.units import SITES

    concepts = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    formats = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    assert [site for site in SITES if f"`{site}`" not in concepts] == []
    assert [name for name in (*OPERATIONS, *SCOPES) if f"`{name}`" not in formats] == []


def test_every_fit_and_kind_of_change_is_documented() -> None:
    from patchclamp.intervene.fits import fits
    from patchclamp.intervene.kinds import kinds

    page = (ROOT / "docs" / "interventions.md").read_text(encoding="utf-8")
    formats = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    own = [entry.name for entry in fits if entry.target.__module__.startswith("patchclamp.")]
    assert [name for name in own if f"`{name}`" not in page and f"patchclamp fit {name}" not in page] == []
    own = [entry.name for entry in kinds if entry.target.__module__.startswith("patchclamp.")]
    assert [name for name in own if f"| `{name}` |" not in formats] == []


def test_json_examples_are_json() -> None:
    for page in PAGES:
        for language, code in FENCE.findall(page.read_text(encoding="utf-8")):
            if language == "json":
                json.loads(code)


def test_python_examples_compile() -> None:
    for page in PAGES:
        for number, (language, code) in enumerate(FENCE.findall(page.read_text(encoding="utf-8"))):
            if language == "python":
                compile(code, f"{page.name}, block {number}", "exec")


def test_the_readme_has_its_two_command_lines() -> None:
    indented = [
        line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("    ")
    ]
    commands = [line for line in indented if not line.startswith("     ")]
    assert [sum(line.endswith(end) for line in commands) for end in ("patchclamp demo", "pytest")] == [1, 1]
    assert len(commands) == 2


@pytest.mark.slow
def test_the_tutorial_runs_and_its_files_are_as_documented(tmp_path: Path) -> None:
    tutorial = script("run_tutorial")
    page = tutorial.PAGE.read_text(encoding="utf-8")
    for block, printed in tutorial.run(page, tmp_path):
        assert printed.strip() or block.language == "python", f"printed nothing: {block.code}"
    _check_documented(tmp_path)


def _check_documented(folder: Path) -> None:
    """Every key of the files that the tutorial wrote is in docs/formats.md."""
    formats = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    read = {name: json.loads((folder / name).read_text(encoding="utf-8")) for name in FILES}
    keys = {key for name in FILES for key in read[name]}
    keys |= {*read["rec/manifest.json"]["arguments"], *read["rec/manifest.json"]["shards"][0]}
    keys |= {
        *read["neurons.json"]["details"],
        *read["neurons.json"]["unit_classes"],
        *read["neurons.json"]["provenance"],
    }
    keys |= {*read["effects.json"]["rows"][0], *next(iter(read["effects.json"]["documents"].values()))}
    keys |= {*read["russian.interventions.json"]["interventions"][0], *read["edited/edit.json"]["check"]}
    assert sorted(key for key in keys if f"`{key}`" not in formats and f'"{key}"' not in formats) == []


FILES = ("rec/manifest.json", "neurons.json", "effects.json", "russian.interventions.json", "edited/edit.json")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["index.md", "extending.md", "features.md", "interventions.md", "steering.md"])
def test_the_other_pages_python_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from patchclamp.find import finders
    from patchclamp.intervene.fits import fits
    from patchclamp.models.features import decompositions
    from patchclamp.record.statistics import statistics

    for table in (decompositions, finders, fits, statistics):
        list(table)  # the built-in entries are complete; the page's own go when the test ends
        monkeypatch.setattr(table, "_entries", dict(table._entries))
    for _ in script("run_tutorial").run((ROOT / "docs" / name).read_text(encoding="utf-8"), tmp_path):
        pass
