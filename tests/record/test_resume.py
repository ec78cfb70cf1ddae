"""Interruptions and damage: what was finished is kept, resuming gives the same bits, and wrong files are named."""

from __future__ import annotations

import copy
import errno
import json
import os
import random
import shutil
import signal
import time

import pytest
import torch

from patchclamp.core.errors import DamagedError, Error, InputError, MismatchError
from patchclamp.data.corpora import corpus
from patchclamp.models.load import load
from patchclamp.record import Interrupted, Recording, record

EN = [f"The cat number {number} sat on the mat and looked at the moon." for number in range(60)]
FR = [f"Le chat {number} est assis sur le tapis." for number in range(50)]
STATISTICS = ("firing", "moments", "exemplars")


@pytest.fixture
def text():
    return corpus(en=EN, fr=FR)


@pytest.fixture
def run(tiny_gpt2, text):
    def start(folder, **changes):
        arguments = {"statistics": STATISTICS, "shard_tokens": 60, "batch_tokens": 64, "out": folder, "quiet": True}
        return record(changes.pop("model", tiny_gpt2), changes.pop("text", text), **{**arguments, **changes})

    return start


@pytest.fixture
def one_thread():
    """Matrix products of another number of threads may round differently; a killed job is resumed with the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def finished(run, tmp_path):
    """A finished recording; its folder may be damaged."""
    run(tmp_path / "rec")
    return tmp_path / "rec"


def contents(folder):
    """Bytes of every shard, and the manifest without what tells the time."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["provenance"]["created"]
    return files, manifest


def interrupted_after(run, folder, shards, monkeypatch, problem):
    """Record until so many shards are written, then raise."""
    from patchclamp.record import recorder

    real, count = recorder.write_shard, []

    def write(*arguments):
        if len(count) == shards:
            raise problem
        count.append(1)
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(recorder, "write_shard", write)
        run(folder)


def in_a_child(work):
    """Do something in a process of its own, as the killed ones do; it must end well."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_killed_again_and_again_a_recording_ends_bit_identical(one_thread, run, tmp_path):
    finished = tmp_path / "rec"
    in_a_child(lambda: run(finished))
    whole = contents(finished)
    rng, folder, kills, waited = random.Random(0), tmp_path / "killed", 0, 0.05
    while kills < 8:
        child = os.fork()
        if child == 0:  # the process that is killed; with one thread forking is safe
            try:
                run(folder, resume=True)
            except BaseException:
                os._exit(3)
            os._exit(0)
        time.sleep(rng.uniform(0, waited))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
        kills += os.WIFSIGNALED(status)
        done = folder.exists() and (folder / "manifest.json").exists()
        if done and json.loads((folder / "manifest.json").read_text())["complete"]:
            shutil.rmtree(folder)  # it was quicker than the kill: begin again
            waited *= 0.7
        else:
            waited *= 1.2
    in_a_child(lambda: run(folder, resume=True))
    recording = Recording.open(folder)
    files, manifest = contents(folder)
    assert sorted(files) == sorted(whole[0])  # nothing half-written is left
    assert manifest == whole[1]
    assert [name for name, data in whole[0].items() if files.get(name) != data] == []
    assert recording.fingerprint == Recording.open(finished).fingerprint


@pytest.mark.parametrize("shards", [0, 1, 7])
def test_ctrl_c_keeps_finished_shards_and_says_how_to_go_on(run, finished, tmp_path, monkeypatch, shards):
    folder = tmp_path / "stopped"
    with pytest.raises(Interrupted, match=rf"{shards} finished shards are kept in .*stopped; go on with resume=True"):
        interrupted_after(run, folder, shards, monkeypatch, KeyboardInterrupt())
    assert len(list(folder.glob("shard-*"))) == shards
    with pytest.raises(InputError, match="isn't finished; resume"):
        Recording.open(folder)
    run(folder, resume=True)
    assert contents(folder) == contents(finished)


def test_a_full_disk_keeps_finished_shards_and_says_how_to_go_on(run, finished, tmp_path, monkeypatch):
    from patchclamp.record import shard_files

    real, count, folder = shard_files.save_file, [], tmp_path / "full"

    def save(arrays, path, metadata):
        count.append(1)
        if len(count) == 4:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(arrays, path, metadata=metadata)

    with monkeypatch.context() as patched:
        patched.setattr(shard_files, "save_file", save)
        with pytest.raises(Error, match=r"No space left.*3 finished shards are kept.*resume=True"):
            run(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        *(f"shard-0-0000{n}.safetensors" for n in range(3)),
    ]
    run(folder, resume=True)
    assert contents(folder) == contents(finished)


def test_what_a_killed_process_left_half_written_is_removed(run, finished):
    before = contents(finished)
    for name in (".shard-0-00003.safetensors.part", ".tmpY5Nesj"):  # ours, and the one safetensors writes first
        (finished / name).write_bytes(b"half")
    run(finished, resume=True)
    assert contents(finished) == before


def test_resuming_a_finished_recording_changes_nothing(run, finished):
    before = contents(finished)
    run(finished, resume=True)
    assert contents(finished) == before


def test_a_removed_shard_is_computed_again(run, finished):
    before = contents(finished)
    (finished / "shard-0-00003.safetensors").unlink()
    with pytest.raises(DamagedError, match=r"shard-0-00003.* is missing"):
        Recording.open(finished)
    run(finished, resume=True)
    assert contents(finished) == before


def test_an_existing_folder_is_refused_without_resume(run, finished, tmp_path):
    with pytest.raises(InputError, match=r"exists already; resume"):
        run(finished)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"no manifest.json"):
        run(tmp_path / "other", resume=True)
    with pytest.raises(InputError, match="does not exist"):
        run(tmp_path / "no" / "rec")


def damaged(folder, how):
    shard = folder / "shard-0-00002.safetensors"
    raw = bytearray(shard.read_bytes())
    if how == "truncated":
        shard.write_bytes(raw[:-100])
    elif how == "cut in the header":
        shard.write_bytes(raw[:5])
    elif how == "altered":
        raw[-50] ^= 1
        shard.write_bytes(raw)
    else:
        shutil.copy(folder / "shard-1-00000.safetensors", shard)


@pytest.mark.parametrize("how", ["truncated", "cut in the header", "altered", "swapped"])
def test_damaged_shards_are_named(run, finished, how):
    damaged(finished, how)
    with pytest.raises(DamagedError, match=r"shard-0-00002\.safetensors"):
        run(finished, resume=True)
    with pytest.raises(DamagedError, match=r"shard-0-00002\.safetensors"):
        Recording.open(finished).get("firing", "en")


def test_shards_of_another_recording_are_named(run, finished, tmp_path):
    run(tmp_path / "other", text=corpus(en=FR, fr=EN))
    shutil.copy(tmp_path / "other" / "shard-0-00001.safetensors", finished / "shard-0-00001.safetensors")
    with pytest.raises(DamagedError, match=r"shard-0-00001\.safetensors belongs to another recording"):
        Recording.open(finished).check()
    shutil.copy(tmp_path / "other" / "shard-0-00001.safetensors", finished / "shard-7-00000.safetensors")
    (finished / "shard-0-00001.safetensors").unlink()
    with pytest.raises(DamagedError, match=r"shard-7-00000\.safetensors doesn't belong"):
        run(finished, resume=True)


def test_a_broken_or_foreign_manifest_is_named(finished):
    manifest = finished / "manifest.json"
    manifest.write_text(manifest.read_text()[:-40])
    with pytest.raises(DamagedError, match=r"manifest\.json is not valid JSON"):
        Recording.open(finished)
    manifest.write_text('{"format": "other/1"}')
    with pytest.raises(DamagedError, match=r"format 'other/1'"):
        Recording.open(finished)
    with pytest.raises(InputError, match="no such folder"):
        Recording.open(finished / "nothing")


def test_another_model_text_dtype_or_argument_is_refused(run, finished, tiny_gpt2, tiny_llama):
    with pytest.raises(MismatchError, match="recording of model"):
        run(finished, resume=True, model=tiny_llama)
    half = load(copy.deepcopy(tiny_gpt2.hf).bfloat16(), tokenizer=tiny_gpt2.tokenizer)
    with pytest.raises(MismatchError, match="bfloat16"):
        run(finished, resume=True, model=half)
    with pytest.raises(MismatchError, match="the text of label 'fr'"):
        run(finished, resume=True, text=corpus(en=EN, fr=[*FR, "encore"]))
    with pytest.raises(MismatchError, match="labels en, fr, but en, de"):
        run(finished, resume=True, text=corpus(en=EN, de=FR))
    for changes in (
        {"batch_tokens": 32},
        {"shard_tokens": 61},
        {"layers": [0]},
        {"statistics": ("firing",)},
        {"max_tokens": 9},
    ):
        with pytest.raises(MismatchError, match="was recorded with"):
            run(finished, resume=True, **changes)


def test_another_stream_is_refused_by_the_shards_already_there(run, tmp_path, monkeypatch):
    """A stream can't be hashed beforehand; the documents of finished shards tell."""
    folder = tmp_path / "stream"
    with pytest.raises(Interrupted):
        interrupted_after(
            lambda out: run(out, text=corpus(en=lambda: iter(EN))), folder, 3, monkeypatch, KeyboardInterrupt()
        )
    with pytest.raises(MismatchError, match=r"text of label 'en'.*documents \d+-\d+ differ"):
        run(folder, text=corpus(en=lambda: iter([*EN[:4], "other", *EN[5:]])), resume=True)
    again = run(folder, text=corpus(en=lambda: iter(EN)), resume=True)
    assert again.corpus["labels"]["en"]["sha256"] == corpus(en=EN).identity["labels"]["en"]["sha256"]


def test_two_labels_with_the_same_text_are_warned_about(run, tmp_path):
    with pytest.warns(UserWarning, match="'a' and 'b' hold the same text"):
        run(tmp_path / "rec", text=corpus(a=EN, b=EN))
