"""The other tables of generation: batches, schemes, lengths, the engine's overhead, equal ids."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks import record
from benchmarks.engines import Times, random_prompts, step_bytes
from benchmarks.generation_peers import ENGINES, PROMPT_TOKENS, Setup, missing
from benchmarks.turns import Turns, ratio, take_turns
from benchmarks.workers import Worker
from config.config import MagmaConfig
from config.parsing import load_preset

Outcome = list[tuple[record.Result, Turns]]

STEPS = 6
"""Decode steps of a turn."""

SCHEME_TOKENS = 64
LENGTHS = (10, 1000)
TINY_TP = 4


def _cells(*values: float, digits: int = 2) -> tuple[str, ...]:
    return tuple(f"{value:.{digits}f}" for value in values)


def _slice_note(setup: Setup) -> str:
    return (
        f"{setup.blocks} decoder blocks of {setup.preset}'s widths and the head, random weights,"
        f" tensor parallelism 4, {setup.threads} threads; {setup.rounds} rounds in turns."
        f" {setup.instructions()}"
    )


def _several(stack: ExitStack, configs: dict[int, MagmaConfig], setup: Setup) -> Worker:
    factory = "benchmarks.engine_ours:OursSeveral"
    return stack.enter_context(Worker(factory, configs, setup.weights(), setup.threads))


def batches(setup: Setup) -> Outcome:
    """Tokens a second by the number of sequences in a run."""
    # Behind the prompt there must be room for all rounds.
    text = PROMPT_TOKENS + 8 + STEPS * (setup.rounds + 2)
    configs = {
        b: setup.slice(text, batch=b, encoder=False)
        for b in sorted({*setup.batches, *setup.peer_batches})
    }
    lacking = missing(ENGINES["transformers"], setup.packages)
    peers = () if lacking or "transformers" not in setup.engines else setup.peer_batches
    with ExitStack() as stack:
        ours = _several(stack, configs, setup)
        actions: dict[str, Callable[[], list[float]]] = {}
        for b, config in configs.items():
            ours.call("run", b, random_prompts(config, PROMPT_TOKENS), 2)
            actions[f"ours, {b}"] = partial(ours.call, "more", b, STEPS)
        factory = "benchmarks.engine_transformers:TransformersSeveral"
        if peers:
            sizes = {b: configs[b] for b in peers}
            peer = stack.enter_context(Worker(factory, sizes, setup.threads))
        for b in peers:
            peer.call("run", b, random_prompts(configs[b], PROMPT_TOKENS), 2)
            actions[f"transformers bf16, {b}"] = partial(peer.call, "more", b, STEPS)
        turns = take_turns(actions, setup.rounds)
    rows = []
    for name in actions:
        engine, b = name.split(", ")
        steps = turns.values(name, median)
        alone = turns.values(f"{engine}, 1", median)
        gain = int(b) * ratio(alone, steps)
        other = "-"
        if int(b) in peers and engine == "ours":
            other = f"{ratio(turns.values(f'transformers bf16, {b}', median), steps):.2f}"
        rows.append((engine, b, *_cells(1e3 * median(steps), int(b) / median(steps), gain), other))
    result = record.Result(
        bench=setup.bench("batch"),
        title="Decode of several sequences at once" + setup.held(),
        columns=("engine", "sequences", "ms a step", "tokens/s", "÷ alone", "ours ÷ transformers"),
        rows=rows,
        samples=_step_samples(turns),
        setting={"setup": str(setup)},
        notes=(
            _slice_note(setup) + f" Prompts of {PROMPT_TOKENS} ids without a picture.",
            "'÷ alone': tokens/s over those of one sequence, median of the rounds' ratios. Targets:"
            " 6 sequences ≥ 3.5 times one; ≥ 4 times transformers at 8.",
        ),
        command=setup.command("batch"),
    )
    return [(result, turns)]


def schemes(setup: Setup) -> Outcome:
    """64 tokens with the cache against 64 tokens that compute everything anew."""
    config = setup.slice(PROMPT_TOKENS + SCHEME_TOKENS)
    prompts = random_prompts(config, PROMPT_TOKENS)
    factory, weights = "benchmarks.engine_ours:Ours", setup.weights()
    with ExitStack() as stack:
        cached, recompute = (
            stack.enter_context(Worker(factory, config, weights, scheme, setup.threads))
            for scheme in ("cached", "recompute")
        )
        for worker in (cached, recompute):
            worker.call("run", prompts, 2, True)
        actions = {
            "cached": partial(cached.call, "run", prompts, SCHEME_TOKENS, True),
            "recompute": partial(recompute.call, "more", 1),
        }
        turns = take_turns(actions, min(setup.rounds, 3))

    def cached_s(times: Times) -> float:
        return times.first_s + sum(times.step_s)

    def recompute_s(steps: list[float]) -> float:
        return SCHEME_TOKENS * median(steps)

    seconds = {
        "cached": turns.values("cached", cached_s),
        "recompute": turns.values("recompute", recompute_s),
    }
    gain = ratio(seconds["recompute"], seconds["cached"])
    rows = [(name, *_cells(median(values), digits=1)) for name, values in seconds.items()]
    result = record.Result(
        bench=setup.bench("schemes"),
        title=f"{SCHEME_TOKENS} tokens, cached and computed anew" + setup.held(),
        columns=("scheme", "s"),
        rows=[*rows, ("ratio", f"{gain:.1f}")],
        samples={f"{n}_s": v for n, v in seconds.items()} | turns.rate_samples(),
        setting={"setup": str(setup)},
        notes=(
            _slice_note(setup) + f" One picture and {PROMPT_TOKENS} ids in; the padded sequence of"
            f" the recompute scheme is no longer than needed ({config.total_tokens} positions).",
            f"Recompute: all of its runs cost the same, so one run a round is timed and taken"
            f" {SCHEME_TOKENS} times. Target: ratio ≥ 25.",
        ),
        command=setup.command("schemes"),
    )
    return [(result, turns)]


def lengths(setup: Setup) -> Outcome:
    """One more token behind 10 and behind 1000."""
    config = setup.slice(LENGTHS[-1] + 8 + STEPS * (setup.rounds + 2), encoder=False)
    names = {length: f"length {length}" for length in LENGTHS}
    with ExitStack() as stack:
        worker = _several(stack, dict.fromkeys(LENGTHS, config), setup)
        for length in LENGTHS:
            worker.call("run", length, random_prompts(config, length), 4)
        actions = {
            name: partial(worker.call, "more", length, STEPS) for length, name in names.items()
        }
        turns = take_turns(actions, setup.rounds)
    steps = {length: turns.values(name, median) for length, name in names.items()}
    sizes = {length: step_bytes(config, length) for length in LENGTHS}
    short, long = LENGTHS
    explained = sizes[long] / sizes[short]
    rows = [
        (name, *_cells(1e3 * median(steps[n]), digits=1), *_cells(sizes[n] / 1e9, digits=3))
        for n, name in names.items()
    ]
    rows.append(("ratio", *_cells(ratio(steps[long], steps[short]), explained, digits=3)))
    result = record.Result(
        bench=setup.bench("length"),
        title="One more token, by the length of the sequence so far" + setup.held(),
        columns=("what", "ms a token", "GB read"),
        rows=rows,
        samples=_step_samples(turns),
        setting={"setup": str(setup)},
        notes=(
            _slice_note(setup),
            f"Target: ratio of times ≤ 1.15 × {explained:.3f} (what the keys' and values' bytes"
            f" explain) = {1.15 * explained:.3f}.",
        ),
        command=setup.command("length"),
    )
    return [(result, turns)]


def overhead(setup: Setup) -> Outcome:
    """A decode step of a tiny model beside plain eager PyTorch."""
    config = tiny(TINY_TP)
    prompts = random_prompts(config, 4)
    with ExitStack() as stack:
        ours = Worker("benchmarks.engine_ours:Ours", config, None, "cached", 1, False)
        eager = Worker("benchmarks.engine_eager:Eager", tiny(1), None, 1)
        workers = {f"ours, tp {TINY_TP}": ours, "plain eager PyTorch, tp 1": eager}
        actions = {}
        for name, worker in workers.items():
            stack.enter_context(worker).call("run", prompts, 8, False)
            actions[name] = partial(worker.call, "run", prompts, 40, False)
        turns = take_turns(actions, max(setup.rounds, 3))
    steps = {name: turns.values(name, lambda times: median(times.step_s)) for name in actions}
    first, second = steps
    rows = [(name, f"{1e6 * median(values):.0f}") for name, values in steps.items()]
    rows.append(("ratio", f"{ratio(steps[first], steps[second]):.2f}"))
    result = record.Result(
        bench=setup.bench("overhead"),
        title="What the engine costs beside its kernels: a decode step of a tiny model",
        columns=("engine", "µs a token"),
        rows=rows,
        samples={f"{name}: step_s": values for name, values in steps.items()}
        | turns.rate_samples(),
        setting={"config": config.as_dict(), "setup": str(setup)},
        notes=(
            "Hidden size 64, 2 blocks with adapters, vocabulary 512, float32, one thread. From ids"
            " on the host to ids on the host. Target: ratio ≤ 2.",
        ),
        command=setup.command("overhead"),
    )
    return [(result, turns)]


def equal(setup: Setup) -> Outcome:
    """Greedy ids in float32: ours, transformers and the eager model with the same weights."""
    from utils.checkpoint_writer import write_random_checkpoint

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path, config = Path(folder) / "tiny.pt", tiny(1)
        write_random_checkpoint(path, config, dtype="float32")
        engines = {}
        for tp in (1, 4):
            arguments = (tiny(tp), (path, config), "cached", 1, False)
            worker = Worker("benchmarks.engine_ours:Ours", *arguments)
            engines[f"ours, tp {tp}"] = stack.enter_context(worker)
        eager = Worker("benchmarks.engine_eager:Eager", config, _lm_tensors(path, config), 1)
        engines["plain eager PyTorch"] = stack.enter_context(eager)
        peer = Worker("benchmarks.engine_transformers:Adapted", path, config)
        stack.enter_context(peer)
        agree = dict.fromkeys(engines, 0)
        for seed in range(setup.prompts):
            prompts = random_prompts(config, 1 + seed % 23, seed)
            wanted = peer.call("run", prompts, setup.tokens, False).ids
            for name, engine in engines.items():
                agree[name] += engine.call("run", prompts, setup.tokens, False).ids == wanted
    rows = [(name, f"{count} of {setup.prompts}") for name, count in agree.items()]
    result = record.Result(
        bench=setup.bench("equal"),
        title="Greedy ids equal to transformers' with the same weights, float32",
        columns=("engine", "prompts with equal ids"),
        rows=rows,
        samples={name: [float(count)] for name, count in agree.items()},
        setting={"config": config.as_dict(), "setup": str(setup)},
        notes=(
            f"transformers' GPT-J with adapters put in, its own cache, the loop of the other"
            f" tables; {setup.tokens} ids of each prompt. llama.cpp has no GPT-J to compare.",
        ),
        command=setup.command("equal"),
    )
    return [(result, take_turns({}, 0))]


def tiny(tensor_parallel: int) -> MagmaConfig:
    """The model of hidden size 64 with 2 blocks."""
    config = copy.deepcopy(load_preset("tiny"))
    config.transformer.execution.tensor_parallel = tensor_parallel
    config.validate()
    return config


def _lm_tensors(path: Path, config: MagmaConfig) -> dict[str, np.ndarray]:
    from utils.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(path, config)
    return {name: np.array(checkpoint[name]) for name in checkpoint if name.startswith("lm.")}


def _step_samples(turns: Turns) -> dict[str, list[float]]:
    steps = {
        f"{name}: step_s": [s for turn in of for s in turn.value] for name, of in turns.of.items()
    }
    return steps | turns.rate_samples()
