"""Where shards are computed: in this process, in several processes, or on a Ray cluster. The numbers are the same.

An engine takes the shards in order and gives (shard, states) in any order; what is merged is merged in shard order by whoever
asked.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchclamp.core.errors import InputError
from patchclamp.data.batches import Budget
from patchclamp.record.job import Job, States, run_shard

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel
    from patchclamp.record.shards import Shard

_FEATURES = "features-"
Advance = Callable[[float], None]
Results = Iterator[tuple["Shard", States]]
Engine = Callable[["LanguageModel", Job, Iterable["Shard"], int, Advance], Results]


def local(model: LanguageModel, job: Job, shards: Iterable[Shard], workers: int, advance: Advance) -> Results:
    """One shard after another in this process."""
    budget = Budget(job.batch_tokens)
    for shard in shards:
        yield shard, run_shard(model, job, shard, budget, advance)


def processes(model: LanguageModel, job: Job, shards: Iterable[Shard], workers: int, advance: Advance) -> Results:
    """Shards in `workers` processes of this machine, each with its own copy of the model on the model's device."""
    context = multiprocessing.get_context("spawn")
    with _model_folder(model) as folder:
        settings = (folder, str(model.dtype).removeprefix("torch."), str(model.device), job)
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=settings) as pool:
            running: dict[Future[States], Shard] = {}
            stream = iter(shards)
            try:
                while True:
                    while len(running) < 2 * workers and (shard := next(stream, None)) is not None:
                        running[pool.submit(_work, shard)] = shard
                    if not running:
                        return
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        done = running.pop(future)
                        advance(done.tokens)
                        yield done, future.result()
            finally:
                for future in running:
                    future.cancel()


def ray(model: LanguageModel, job: Job, shards: Iterable[Shard], workers: int, advance: Advance) -> Results:
    """Shards on a Ray cluster: the one of RAY_ADDRESS or of `ray.init`, else a local one."""
    try:
        import ray as library
    except ImportError as problem:
        raise InputError("engine='ray' needs Ray, which isn't installed: pip install 'patchclamp[ray]'") from problem
    if not library.is_initialized():
        library.init(include_dashboard=False, log_to_driver=False)
    resources = {"num_gpus": 1} if model.device.type == "cuda" else {"num_cpus": 1}
    actor = library.remote(**resources)(_Actor)
    shared = library.put(model)
    actors = [actor.remote(shared, job) for _ in range(workers)]
    stream = iter(shards)
    running: dict[Any, tuple[Shard, Any]] = {}
    free = [*actors, *actors]  # two shards per actor in flight, so that none waits for its next
    try:
        while True:
            while free and (shard := next(stream, None)) is not None:
                chosen = free.pop(0)
                running[chosen.work.remote(shard)] = (shard, chosen)
            if not running:
                return
            ready, _ = library.wait(list(running))
            done, chosen = running.pop(ready[0])
            free.append(chosen)
            advance(done.tokens)
            yield done, library.get(ready[0])
    finally:
        for each in actors:
            library.kill(each)


ENGINES: dict[str, Engine] = {"local": local, "processes": processes, "ray": ray}


class _Actor:
    """One worker of a Ray cluster, with its copy of the model."""

    def __init__(self, model: LanguageModel, job: Job) -> None:
        self.model, self.job, self.budget = model, job, Budget(job.batch_tokens)

    def work(self, shard: Shard) -> States:
        return run_shard(self.model, self.job, shard, self.budget)


_WORKER: list[Any] = []  # model, job and budget of this worker process


def _start_worker(folder: str, dtype: str, device: str, job: Job) -> None:
    from patchclamp.models.features import load_dictionary
    from patchclamp.models.load import load

    model = load(folder, dtype=dtype, device=device, check=False)
    dictionaries = [load_dictionary(path) for path in sorted(Path(folder).glob(f"{_FEATURES}*"))]
    _WORKER[:] = [model.with_features(*dictionaries), job, Budget(job.batch_tokens)]


def _work(shard: Shard) -> States:
    model, job, budget = _WORKER
    return run_shard(model, job, shard, budget)


@contextlib.contextmanager
def _model_folder(model: LanguageModel) -> Iterator[str]:
    """A checkpoint of the model, and its dictionaries, for other processes of this machine."""
    from patchclamp.models.feature_files import write_folder

    with tempfile.TemporaryDirectory(prefix="patchclamp-") as folder:
        from patchclamp.models.load import quiet_on_small_screens

        with quiet_on_small_screens():
            model.hf.save_pretrained(folder)
        if model.tokenizer is not None and hasattr(model.tokenizer, "save_pretrained"):
            model.tokenizer.save_pretrained(folder)
        dictionaries = [one for layers in model.anatomy.features.values() for one in layers.values()]
        for number, one in enumerate(dictionaries):
            write_folder(Path(folder) / f"{_FEATURES}{number}", one.header, one.tensors())
        yield folder
