"""Ctrl-C and full disks: one line that says what was kept, no half-written file, and what goes on ends bit-identical."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Chain
from tests.cli.program import command, contents, program, real_program, text_options


@pytest.mark.slow
def test_ctrl_c_keeps_finished_shards_and_resuming_ends_bit_identical(small: Chain, tmp_path: Path) -> None:
    texts = text_options(small.plant.write_text(tmp_path, documents=3000))
    start = ["record", small.model, *texts, "--batch-tokens", 256]
    stopped = tmp_path / "stopped"
    running = subprocess.Popen(
        command(*start, "--out", stopped), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 200
    while not list(stopped.glob("shard-*")) and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=100)
    assert (running.returncode, out, len(err.splitlines())) == (1, "", 1), err
    assert err.startswith("patchclamp: interrupted; ")
    assert f"finished shards are kept in {stopped}; go on with resume=True (--resume)" in err
    assert not [name for name in contents(stopped) if name.endswith(".part")]
    ran = program("find", "language", stopped, "--out", tmp_path / "s.json")
    assert (ran.code, "isn't finished" in ran.err) == (2, True)
    assert program(*start, "--out", stopped, "--resume").code == 0
    assert program(*start, "--out", tmp_path / "whole").code == 0
    assert timeless(stopped) == timeless(tmp_path / "whole")


def timeless(recording: Path) -> dict[str, Any]:
    """Bytes of every file, the manifest without the time of day."""
    files: dict[str, Any] = contents(recording)
    files["manifest.json"] = json.loads(files["manifest.json"])
    del files["manifest.json"]["provenance"]["created"]
    return files


def test_ctrl_c_elsewhere_is_one_line_too(small: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("patchclamp.measure.effect_work.score_runs", interrupt)
    ran = program("effect", small.model, small.sets, *small.texts, "--out", tmp_path / "e.json")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.splitlines() == ["patchclamp: interrupted; nothing was left half-written"]
    assert not list(tmp_path.iterdir())


def test_a_bug_keeps_its_traceback(small: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("patchclamp.measure.effect_work.score_runs", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        program("effect", small.model, small.sets, *small.texts)


@pytest.mark.slow
def test_a_full_disk_stops_a_recording_in_one_line_and_it_goes_on_later(small: Chain, tmp_path: Path) -> None:
    folder = tmp_path / "rec"
    start = ("record", small.model, *small.texts, "--out", folder)
    largest = 10_000  # bytes a file may have: the manifest fits, a shard doesn't
    ran = real_program(
        *start, folder=tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    )
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (1, "", 1), ran.err
    assert ran.err.startswith("patchclamp: ")
    assert "--resume" in ran.err
    assert set(contents(tmp_path)) == {"rec/manifest.json"}
    assert program(*start, "--resume").code == 0
    assert timeless(folder) == timeless(small.recording)


def test_a_full_disk_leaves_no_part_of_a_file_and_the_old_one_whole(
    small: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "out.json"
    old.write_text("old")
    (tmp_path / "page").mkdir()
    before = contents(tmp_path)
    real = os.replace

    def full(source: Any, target: Any, **options: Any) -> None:
        if Path(target).parent == tmp_path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target, **options)

    monkeypatch.setattr(os, "replace", full)
    found = program("find", "language", small.recording, "--out", old, "--shuffles", 0)
    clamp = ("--controls", 0, "--permutations", 9, "--json", "--out", old)
    measured = program("effect", small.model, small.sets, *small.texts, *clamp)
    built = program("atlas", "build", tmp_path / "a.duckdb", "--recording", small.recording)
    for ran in (found, measured, built):
        said = [line for line in ran.err.splitlines() if "warning" not in line]
        assert (ran.code, len(said)) == (1, 1), ran.err
        assert said[0].startswith("patchclamp: could not write")
        assert "No space left on device" in said[0]
    assert len(measured.json["rows"]) == 9  # what took long to measure is not lost
    assert contents(tmp_path) == before


def test_a_full_disk_leaves_no_part_of_an_edited_checkpoint(
    small: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("patchclamp.intervene.edits.write_json", full)
    ran = program("edit", small.model, small.sets, "--set", "fr", "--out", tmp_path / "edited")
    assert (ran.code, len(ran.err.splitlines())) == (1, 1), ran.err
    assert "No space left on device" in ran.err
    assert not list(tmp_path.iterdir())


def test_a_reader_that_goes_away_is_no_bug(small: Chain) -> None:
    shown = subprocess.Popen(command("list", "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert shown.stdout is not None
    assert shown.stderr is not None
    shown.stdout.close()
    err = shown.stderr.read()
    shown.stderr.close()
    shown.wait(100)
    assert b"Traceback" not in err
