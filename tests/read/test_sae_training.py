"""Training finds planted dictionaries, does as its formulas say, is deterministic, and goes on after a kill as if nothing was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.read.planted_features import planted, recovery, source
from torch import Tensor

from patchclamp.core.errors import DamagedError, Error, InputError, MismatchError, ModelError
from patchclamp.read.sae_kinds import BatchTopKSAE
from patchclamp.read.sae_plan import Plan
from patchclamp.read.sae_training import Trainer, train_sae
from patchclamp.record.activations import Activations

KINDS = ("topk", "batchtopk", "jumprelu", "relu")


def small(rows: Tensor, kind: str = "topk", **more: Any) -> Any:
    return train_sae(source(rows), kind, **{"n_features": 24, "k": 3, "steps": 60, "batch": 64, **more})


@pytest.fixture(scope="module")
def rows() -> Tensor:
    return planted(2000, width=8, count=12)[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_planted_dictionaries_are_recovered(kind: str) -> None:
    rows, directions = planted()
    sae = train_sae(source(rows), kind, n_features=64, k=3, steps=800, batch=512, lr=5e-3)
    assert recovery(sae.directions, directions) > 0.9
    held_out = planted(2000, draw=1)[0]
    error = (sae.reconstruct(held_out) - held_out).square().sum()
    assert 1 - float(error / (held_out - held_out.mean(0)).square().sum()) > 0.75
    l0 = float((sae.encode(held_out) > 0).sum(1).float().mean())
    assert l0 < 8
    if kind != "relu":
        assert abs(l0 - 3) < 1.2
    random = torch.randn(64, 32, generator=torch.Generator().manual_seed(5))
    assert recovery(random, directions) < 0.6


def test_decoder_rows_have_length_one_and_the_history_tells_the_run(rows: Tensor) -> None:
    for kind in KINDS:
        sae = small(rows, kind)
        torch.testing.assert_close(sae.directions.norm(dim=1), torch.ones(24))
        history = sae.provenance["history"]
        assert [entry["step"] for entry in history] == [50, 60]
        assert history[-1]["mse"] < history[0]["mse"]
        assert (sae.site, sae.layer, sae.kind) == ("resid", 1, kind)
        assert sae.provenance["arguments"]["k"] == 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_scale_of_the_rows_only_scales_the_features(rows: Tensor, kind: str) -> None:
    plain, large = small(rows, kind), small(rows * 64, kind)  # a power of two: scaling is exact
    torch.testing.assert_close(plain.directions, large.directions, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain.encode(rows[:50]) * 64, large.encode(rows[:50] * 64), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_folding_the_scale_changes_no_reconstruction(rows: Tensor, kind: str) -> None:
    plan = replace(plan_of(kind), steps=20)
    trainer = Trainer(plan, source(rows), None)
    for x in trainer.rows():
        trainer.learn(x)
    sae = trainer.finished("sae", "resid", 0)
    p, z = trainer.parameters, rows[:40] * trainer.scale
    pre = (z - p["decoder_bias"]) @ p["encoder"].T + p["encoder_bias"]
    inside = trainer.finished("sae", "resid", 0)
    if kind in ("jumprelu", "batchtopk"):
        inside.threshold = sae.threshold * trainer.scale  # type: ignore[attr-defined]
    expected = (inside.activate(pre) @ p["directions"] + p["decoder_bias"]) / trainer.scale
    torch.testing.assert_close(sae.reconstruct(rows[:40]), expected.detach(), rtol=1e-4, atol=1e-4)


def test_seeds_decide_everything(rows: Tensor) -> None:
    first, again, other = small(rows), small(rows), small(rows, seed=1)
    for name, values in first.tensors().items():
        assert torch.equal(values, again.tensors()[name])
    assert not torch.equal(first.directions, other.directions)


def test_batchtopk_threshold_gives_about_k_features_on_new_rows(rows: Tensor) -> None:
    sae = small(rows, "batchtopk", steps=400)
    assert isinstance(sae, BatchTopKSAE)
    assert float((sae.encode(rows) > 0).sum(1).float().mean()) == pytest.approx(3, abs=0.5)
    assert len(sae.threshold.unique()) == 1


def test_the_batches_are_the_rows_in_order_whatever_the_blocks() -> None:
    rows = torch.arange(10.0)[:, None].repeat(1, 2) + torch.tensor([[0.0, 0.5]])

    class Uneven(Activations):
        width, n, model = 2, 10, {}

        def blocks(self, rows_at_once: int = 4096, *, seed: int | None = None) -> Iterator[Tensor]:
            yield from rows.split([1, 4, 3, 2])

    plan = replace(plan_of("topk"), d_in=2, n_features=4, k=1, steps=6, batch=4)
    trainer = Trainer(plan, Uneven(), None)
    seen: list[float] = []
    places = []
    for x in trainer.rows():
        seen += x[:, 0].tolist()
        trainer.step += 1
        places.append((trainer.epoch, trainer.row))
    assert seen == [float(at % 10) for at in range(24)]
    assert places == [(0, 4), (0, 8), (1, 2), (1, 6), (1, 10), (2, 4)]


def test_fewer_rows_than_a_batch_are_read_several_times(rows: Tensor) -> None:
    assert small(rows[:40], steps=5, batch=100).provenance["history"][-1]["step"] == 5


@pytest.mark.parametrize("dead", ["aux", "resample"])
def test_dead_features_are_revived(dead: str) -> None:
    rows, _ = planted(4000, width=16, count=32)
    plan = replace(plan_of("topk"), d_in=16, n_features=64, steps=250, batch=128, lr=5e-3, dead_after=1280)
    left = {}
    for how in (dead, "none"):
        trainer = Trainer(replace(plan, dead=how), source(rows), None)
        with torch.no_grad():
            trainer.parameters["encoder_bias"][:32] = -3  # they will never fire by themselves
        for x in trainer.rows():
            trainer.learn(x)
        left[how] = float((trainer.silent >= 1280).float().mean())
    assert left["none"] > 0.4
    assert left[dead] < 0.5 * left["none"]


def test_rates_rise_stay_and_fall_as_asked() -> None:
    plan = replace(plan_of("relu"), steps=100, lr=1.0, lr_warmup=0.1, lr_decay=0.2, sparsity=2.0, sparsity_warmup=0.5)
    assert [plan.lr_at(step) for step in (0, 4, 9, 50, 80, 90, 99)] == pytest.approx([0.1, 0.5, 1, 1, 1, 0.5, 0.05])
    assert [plan.sparsity_at(step) for step in (0, 25, 50, 99)] == pytest.approx([0, 1, 2, 2])
    flat = replace(plan, lr_warmup=0.0, lr_decay=0.0, sparsity_warmup=0.0)
    assert (flat.lr_at(0), flat.lr_at(99), flat.sparsity_at(0)) == (1.0, 1.0, 2.0)


class _PowerError(Exception):
    """What ends a run in these tests."""


class _Failing(Activations):
    """Rows that are there until the power fails."""

    def __init__(self, rows: Tensor, blocks: int) -> None:
        self.inner, self.left = source(rows), blocks
        self.width, self.n, self.site, self.layer, self.model = self.inner.width, self.inner.n, "resid", 1, {}

    def blocks(self, rows: int = 4096, *, seed: int | None = None) -> Iterator[Tensor]:
        for block in self.inner.blocks(rows, seed=seed):
            if not self.left:
                raise _PowerError
            self.left -= 1
            yield block


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dead", ["aux", "resample"])
def test_an_interrupted_run_ends_with_the_very_weights_of_a_whole_one(
    rows: Tensor, kind: str, dead: str, tmp_path: Path
) -> None:
    more = {"dead": dead, "dead_after": 640, "steps": 70, "checkpoint_steps": 7}
    whole = small(rows, kind, **more)
    file = tmp_path / "run.safetensors"
    arguments: dict[str, Any] = {"n_features": 24, "k": 3, "batch": 64, **more, "checkpoint": file}
    for blocks in (45, 60, 80):
        with pytest.raises(_PowerError):
            train_sae(_Failing(rows, blocks), kind, **arguments)
    resumed = train_sae(source(rows), kind, **arguments)
    for name, values in whole.tensors().items():
        assert torch.equal(values, resumed.tensors()[name]), name
    assert resumed.provenance["history"] == whole.provenance["history"]
    assert [path.name for path in tmp_path.iterdir()] == ["run.safetensors"]
    finished = train_sae(source(rows), kind, **arguments)  # nothing is left to do
    assert torch.equal(finished.directions, whole.directions)


KILLED = """
import os, signal, sys, torch
from patchclamp.read.sae_training import train_sae
from tests.read.test_sae_training import _Failing, source
from tests.read.planted_features import planted
torch.set_num_threads(1)
rows = planted(2000, width=8, count=12)[0]
class Killed(_Failing):
    def blocks(self, rows=4096, *, seed=None):
        try:
            yield from super().blocks(rows, seed=seed)
        except Exception:
            os.kill(os.getpid(), signal.SIGKILL)
left = int(sys.argv[2])
activations = Killed(rows, left) if left else source(rows)
sae = train_sae(activations, "topk", n_features=24, k=3, steps=60, batch=64, checkpoint=sys.argv[1], checkpoint_steps=10)
print(sae.fingerprint, float(sae.directions.double().sum()), float(sae.encoder.double().sum()))
"""


@pytest.mark.slow
def test_kill_9_and_resume_give_the_very_same_weights(tmp_path: Path) -> None:
    def run(file: str, blocks: int) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["src", ".", os.environ.get("PYTHONPATH", "")])}
        return subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path / file), str(blocks)],
            capture_output=True, text=True, env=environment, cwd=Path(__file__).resolve().parents[2], check=False,
        )  # fmt: skip

    killed = run("a", 60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed, whole = run("a", 0), run("b", 0)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout == whole.stdout != ""


def test_a_checkpoint_of_another_run_is_refused(rows: Tensor, tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    small(rows, checkpoint=file)
    with pytest.raises(MismatchError, match="k 3 there, 4 here"):
        small(rows, k=4, checkpoint=file)
    with pytest.raises(MismatchError, match="other activations"):
        train_sae(
            Activations.of_tensor(rows, site="resid", layer=2), n_features=24, k=3, steps=60, batch=64, checkpoint=file
        )
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DamagedError, match="remove it"):
        small(rows, checkpoint=file)
    with pytest.raises(InputError, match="does not exist"):
        small(rows, checkpoint=tmp_path / "no" / "run.safetensors")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"kind": "gated"}, "kind='gated'"),
        ({"dead": "pray"}, "dead='pray'"),
        ({"k": 25}, "24 features"),
        ({"k": 0}, "k=0"),
        ({"steps": 0}, "steps=0"),
        ({"batch": 1.5}, "batch=1.5"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"lr_decay": 1.5}, "lr_decay=1.5"),
        ({"sparsity": -1.0}, "sparsity=-1.0"),
        ({"n_features": -3}, "n_features=-3"),
        ({"name": "mlp"}, "a site of models"),
    ],
)
def test_arguments_out_of_range_are_refused(rows: Tensor, more: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        small(rows, **more)


def test_activations_that_teach_nothing_are_refused(rows: Tensor) -> None:
    with pytest.raises(InputError, match="the same in every row"):
        small(torch.ones(50, 8))
    with pytest.raises(InputError, match="no rows"):
        small(torch.zeros(0, 8))
    bad = rows.clone()
    bad[3, 2] = float("nan")
    with pytest.raises(InputError, match="NaN or infinite"):
        small(bad)
    with pytest.raises(InputError, match="give site= and layer="):
        train_sae(Activations.of_tensor(rows))


def test_a_run_that_diverges_says_so(rows: Tensor) -> None:
    with pytest.raises((ModelError, Error), match="diverged"):
        small(rows, "relu", lr=1e30)


def plan_of(kind: str) -> Plan:
    return Plan(
        kind=kind, d_in=8, n_features=24, k=3, steps=60, batch=64, lr=1e-3, lr_warmup=0.05, lr_decay=0.2, sparsity=0.3,
        sparsity_warmup=0.2, normalise=True, dead="aux", dead_after=10_000, aux=1 / 32, seed=0,
    )  # fmt: skip
