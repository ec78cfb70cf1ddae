"""What recording costs beside the plain forward pass, hand-written hooks, and the peers that are installed.

    python benchmarks/record.py                    12 layers of width 768, batches of 4 x 128 tokens
    python benchmarks/record.py --tiny             12 layers of width 64, 16 tokens a call: fixed cost
    python benchmarks/record.py --memory           peak memory against the length of the corpus
    python benchmarks/record.py --json results.json

All variants run in turn in one process, the order rotating from round to round. A ratio is the median over rounds of
the variant's time over that of the plain pass of the same round; CPU-time ratios stand beside it, for machines that aren't
quiet. Peers (requirements-peers.txt) are left out where they can't be imported. Models have random weights, texts random tokens.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch

from patchclamp.data.corpora import Corpus, corpus
from patchclamp.models.load import LanguageModel, load
from patchclamp.record import record

VOCABULARY = 50257


def main() -> None:
    """Measure what the command line asks for and print it."""
    options = parse()
    torch.set_num_threads(options.threads)
    if options.peak:
        print(peak_of(options))
        return
    results = memory(options) if options.memory else speed(options)
    results |= {"threads": options.threads, "load": round(os.getloadavg()[0], 2), "torch": torch.__version__}
    if options.json == "-":
        print(json.dumps(results, indent=1))
    elif options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """Options of the command line; `--tiny` changes the defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="width 64, one sequence of 16 tokens a call")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int)
    parser.add_argument("--rows", type=int, help="sequences a batch")
    parser.add_argument("--length", type=int, help="tokens a sequence")
    parser.add_argument("--batches", type=int, help="batches a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="comma-separated variants")
    parser.add_argument("--json", help="write results to this file, or to standard output for -")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name, usual, tiny in (("width", 768, 64), ("rows", 4, 1), ("length", 128, 16), ("batches", 6, 200)):
        if getattr(options, name) is None:
            setattr(options, name, tiny if options.tiny else usual)
    return options


class NumberTokenizer:
    """Reads texts such as "17 4 20" as the tokens 17, 4, 20, so that every variant gets the same ids."""

    all_special_ids: tuple[int, ...] = ()
    pad_token_id = 0

    def __call__(self, text: str | list[str], **ignored: Any) -> dict[str, Any]:
        if isinstance(text, str):
            return {"input_ids": [int(word) if word.isdigit() else 0 for word in text.split()]}
        return {"input_ids": [[int(word) for word in each.split()] for each in text]}


def make_model(options: argparse.Namespace) -> LanguageModel:
    """A GPT-2 of random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=options.layers, n_embd=options.width, n_head=max(1, options.width // 64), vocab_size=VOCABULARY,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return load(GPT2LMHeadModel(config), tokenizer=NumberTokenizer())


def make_batches(options: argparse.Namespace, count: int) -> list[torch.Tensor]:
    """Random token ids, (rows, length) each."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, VOCABULARY, (options.rows, options.length), generator=generator) for _ in range(count)]


def as_corpus(batches: list[torch.Tensor]) -> Corpus:
    """The same tokens as text."""
    return corpus(x=[" ".join(map(str, row)) for batch in batches for row in batch.tolist()])


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Time ratios of all variants."""
    model, batches = make_model(options), make_batches(options, options.batches)
    named = variants(model, batches, options)
    if options.only:
        named = {name: run for name, run in named.items() if name in {"plain forward", *options.only.split(",")}}
    _ = model.fingerprint  # computed once per model
    check(model, batches, options)
    wall, cpu = interleaved(named, options.rounds)
    rows = {}
    for name in named:
        ratios = sorted(a / b for a, b in zip(wall[name], wall["plain forward"], strict=True))
        on_cpu = statistics.median(a / b for a, b in zip(cpu[name], cpu["plain forward"], strict=True))
        rows[name] = {
            "ratio": round(statistics.median(ratios), 3),
            "lowest": round(ratios[0], 3),
            "highest": round(ratios[-1], 3),
            "cpu_ratio": round(on_cpu, 3),
            "best_ratio": round(min(wall[name]) / min(wall["plain forward"]), 3),
            "tokens_per_second": round(sum(batch.numel() for batch in batches) / statistics.median(wall[name]), 1),
        }
        print(
            f"{name:36s} x{rows[name]['ratio']:.3f}  [{ratios[0]:.3f} .. {ratios[-1]:.3f}]  "
            f"cpu x{on_cpu:.3f}  best/best x{rows[name]['best_ratio']:.3f}  {rows[name]['tokens_per_second']:9.1f} tokens/s",
            file=sys.stderr,
        )
    shape = {key: getattr(options, key) for key in ("layers", "width", "rows", "length", "batches", "rounds")}
    return {"what": "time over the plain forward pass", "shape": shape, "rows": rows}


def interleaved(
    named: dict[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall and CPU seconds of every variant in every round, after one round to warm up."""
    wall: dict[str, list[float]] = {name: [] for name in named}
    cpu: dict[str, list[float]] = {name: [] for name in named}
    order = list(named)
    for number in range(-1, rounds):
        turn = max(number, 0) % len(order)
        for name in order[turn:] + order[:turn]:
            gc.collect()
            cpu_start, start = time.process_time(), time.perf_counter()
            named[name]()
            if number >= 0:
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - cpu_start)
    return wall, cpu


def variants(
    model: LanguageModel, batches: list[torch.Tensor], options: argparse.Namespace
) -> dict[str, Callable[[], Any]]:
    """Name -> function that passes over all batches once."""
    hf, text = model.hf, as_corpus(batches)
    tokens = options.rows * options.length

    def plain() -> None:
        with torch.inference_mode():
            for ids in batches:
                hf(ids, use_cache=False)

    def trunk() -> None:
        with torch.inference_mode():
            for ids in batches:
                hf.transformer(ids, use_cache=False)

    def patchclamp(statistics: tuple[str, ...] = ("firing", "moments"), batch_tokens: int | None = None) -> Any:
        return record(model, text, statistics=statistics, batch_tokens=batch_tokens, quiet=True)

    def by_hand(call: Callable[[torch.Tensor], Any], sums: type[HandSums]) -> HandSums:
        kept = sums(options.layers, 4 * options.width)
        hooks = [
            block.mlp.act.register_forward_hook(lambda module, args, out, layer=layer: kept.add(layer, out))
            for layer, block in enumerate(hf.transformer.h)
        ]
        with torch.inference_mode():
            for ids in batches:
                call(ids)
        for hook in hooks:
            hook.remove()
        return kept

    return {
        "plain forward": plain,
        "trunk only": trunk,
        "patchclamp record": patchclamp,
        "patchclamp record, same batches": lambda: patchclamp(batch_tokens=tokens),
        "patchclamp record firing": lambda: patchclamp(("firing",)),
        "patchclamp record everything": lambda: patchclamp(("firing", "moments", "histogram", "exemplars", "pooled")),
        "hand hooks full forward": lambda: by_hand(lambda ids: hf(ids, use_cache=False), HandSums),
        "hand hooks trunk": lambda: by_hand(lambda ids: hf.transformer(ids, use_cache=False), HandSums),
        **peers(model, batches, options),
    }


class HandSums:
    """What a short script keeps: sum, sum of squares, positives, minimum and maximum; float64, the obvious reductions."""

    def __init__(self, layers: int, width: int) -> None:
        self.n = 0
        self.sum, self.square = (torch.zeros(layers, width, dtype=torch.float64) for _ in range(2))
        self.positive = torch.zeros(layers, width, dtype=torch.int64)
        self.low = torch.full((layers, width), torch.inf)
        self.high = torch.full((layers, width), -torch.inf)

    def add(self, layer: int, values: torch.Tensor) -> None:
        """Take in the activations of one layer."""
        values = values.reshape(-1, values.shape[-1])
        self.n += len(values) if layer == 0 else 0
        self.sum[layer] += values.sum(0)
        self.square[layer] += (values * values).sum(0)
        self.positive[layer] += (values > 0).sum(0)
        self.low[layer] = torch.minimum(self.low[layer], values.amin(0))
        self.high[layer] = torch.maximum(self.high[layer], values.amax(0))


def check(model: LanguageModel, batches: list[torch.Tensor], options: argparse.Namespace) -> None:
    """Refuse to time what gives other numbers: patchclamp against the hand-written hooks."""
    named = variants(model, batches[:1], options)
    mine, hand = named["patchclamp record"](), named["hand hooks full forward"]()
    moments, firing = mine.get("moments", "x"), mine.get("firing", "x")
    mean = (hand.sum / hand.n).flatten().numpy()
    if abs(moments.mean - mean).max() > 1e-5 or abs(firing.counts.sum(0) - hand.positive.flatten().numpy()).max() > 1:
        raise SystemExit("the variants disagree: times would mean nothing")


def peers(
    model: LanguageModel, batches: list[torch.Tensor], options: argparse.Namespace
) -> dict[str, Callable[[], Any]]:
    """The same sums through the natural interface of each peer that is installed."""
    found: dict[str, Callable[[], Any]] = {}
    for add in (add_transformer_lens, add_nnsight):
        try:
            add(found, model, batches, options)
        except ImportError as problem:
            print(f"left out: {problem}", file=sys.stderr)
    return found


def add_transformer_lens(
    found: dict[str, Callable[[], Any]], model: LanguageModel, batches: list[torch.Tensor], options: argparse.Namespace
) -> None:
    """TransformerLens: `run_with_hooks` on its bridge around the same model."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        "gpt2", hf_model=make_model(options).hf, tokenizer=tokenizer_on_disk(), device="cpu"
    )
    names = {f"blocks.{layer}.mlp.hook_post": layer for layer in range(options.layers)}
    if not set(names) <= set(bridge.hook_dict):
        names = {f"blocks.{layer}.mlp.out.hook_in": layer for layer in range(options.layers)}

    def run_with_hooks() -> HandSums:
        kept = HandSums(options.layers, 4 * options.width)

        def see(values: torch.Tensor, hook: Any, layer: int) -> None:
            kept.add(layer, values)

        hooks = [(name, functools.partial(see, layer=layer)) for name, layer in names.items()]
        with torch.inference_mode():
            for ids in batches:
                bridge.run_with_hooks(ids, return_type=None, fwd_hooks=hooks)
        return kept

    found["TransformerLens run_with_hooks"] = run_with_hooks


def tokenizer_on_disk() -> Any:
    """A tokenizer loaded from a folder, which TransformerLens needs to have."""
    import tempfile

    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<s>": 0, "a": 1}, unk_token="<s>"))
    folder = tempfile.mkdtemp()
    PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="<s>", pad_token="<s>").save_pretrained(
        folder
    )
    return AutoTokenizer.from_pretrained(folder)


def add_nnsight(
    found: dict[str, Callable[[], Any]], model: LanguageModel, batches: list[torch.Tensor], options: argparse.Namespace
) -> None:
    """nnsight: reductions inside the trace."""
    from nnsight import NNsight

    wrapped = NNsight(make_model(options).hf)

    def trace() -> HandSums:
        kept = HandSums(options.layers, 4 * options.width)
        with torch.inference_mode():
            for ids in batches:
                with wrapped.trace(ids, use_cache=False):
                    for layer in range(options.layers):
                        kept.add(layer, wrapped.transformer.h[layer].mlp.act.output)
        return kept

    found["nnsight trace"] = trace


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory above the loaded model, in a fresh process each: plain forward, and recording of ever longer corpora."""
    rows = {}
    for what, count in (("plain", 4), ("record", 4), ("record", 16), ("record", 64)):
        command = [sys.executable, __file__, "--peak", what, "--batches", str(count), "--threads", str(options.threads)]
        for name in ("layers", "width", "rows", "length"):
            command += [f"--{name}", str(getattr(options, name))]
        name = f"{what}, {count * options.rows * options.length} tokens"
        rows[name] = {
            "peak_mib": round(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout), 1)
        }
        print(f"{name:36s} {rows[name]['peak_mib']:8.1f} MiB above the loaded model", file=sys.stderr)
    return {"what": "peak memory above the loaded model", "rows": rows}


def peak_of(options: argparse.Namespace) -> float:
    """MiB above the loaded model that one variant needs."""
    model, batches = make_model(options), make_batches(options, options.batches)
    name = "plain forward" if options.peak == "plain" else "patchclamp record"
    named = variants(model, batches, options)
    variants(model, batches[:1], options)[name]()  # what is imported and made once isn't counted
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that loading freed would hide what the variant takes
    with Peak() as peak:
        named[name]()
    return peak.above


class Peak:
    """Largest resident memory inside a `with` block above that at its start, sampled every 2 ms, in MiB."""

    def __enter__(self) -> Peak:
        self.start = self.highest = resident()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.002):
            self.highest = max(self.highest, resident())

    def __exit__(self, *problem: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def above(self) -> float:
        return max(self.highest, resident()) - self.start


def resident() -> float:
    """Resident memory of this process in MiB."""
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
