"""Our engine beside others: anonymous memory limited, all memory capped, quantised weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks import record
from benchmarks.engine_memory import Steps
from benchmarks.engines import step_bytes
from benchmarks.memory import drop_from_page_cache
from benchmarks.memory_cap import Cap, memory_cap
from benchmarks.memory_parts import (
    CAP_BYTES,
    LIMIT_NOTE,
    SPARED_BYTES,
    cap_note,
    disk_rate,
    measured_gb,
    of_limit,
    spans_note,
    spans_of,
)
from benchmarks.memory_setup import (
    ALIKE,
    GIB,
    STORAGE,
    Setup,
    check_identical,
    peak_gib,
    prompts_of,
    samples,
    step_s,
    turn_of,
)
from benchmarks.memory_spans import (
    WARM_UP,
    Measured,
    fresh_turn,
    limit_s,
    streamed_bytes,
    weight_bytes,
)
from benchmarks.turns import Turns, ratio, take_turns
from benchmarks.workers import Worker

LIMIT_BYTES = 2 * GIB
LIMITED = ", limited"
SLOW_TOKENS = 2
"""Decode steps of a turn of peers that take seconds for each."""

LLAMA = "llama.cpp"
TRANSFORMERS = "transformers fp16"


Engines = dict[str, tuple[Callable[[], Worker], int]]
"""By name: what starts a process, and the decode steps of a turn."""


def limited(setup: Setup) -> tuple[record.Result, Turns]:
    """Mapped weights with and without a limit of anonymous memory, beside peers."""
    alike = {}
    engines: Engines = {}
    for storage in setup.storage:
        for name, limit in ((storage, None), (storage + LIMITED, LIMIT_BYTES)):
            alike[name] = storage
            engines[name] = partial(setup.ours, storage, data_limit=limit), setup.tokens
    peers = {name: (start, SLOW_TOKENS) for name, start in _slow_peers(setup).items()}
    if setup.whole:  # memory has no room for all of them at a time, nor may the disk
        turns = _one_after_another(setup, [engines, *({name: peers[name]} for name in peers)])
    else:
        turns = _one_after_another(setup, [engines | peers])
    check_identical(turns, alike)
    ours = turns.values(setup.storage[0] + LIMITED, step_s)
    rows = []
    for name in turns.of:
        seconds = turns.values(name, step_s)
        base = turns.values(name.removesuffix(LIMITED), step_s)
        unlimited = f"{ratio(base, seconds):.2f}" if name.endswith(LIMITED) else "-"
        cells = (f"{1 / median(seconds):.3g}", unlimited, f"{ratio(seconds, ours):.2f}")
        rows.append((name if name not in alike else f"ours {name}", *cells, peak_gib(turns, name)))
    result = record.Result(
        bench=setup.bench("limited"),
        title=setup.title("Decode from mapped weights in 2 GiB of anonymous memory"),
        columns=("engine", "tokens/s", "of the same unlimited",
                 f"time / ours {setup.storage[0]}, limited", "peak GiB"),
        rows=rows,
        samples=samples(turns),
        setting={"setup": str(setup)},
        notes=(
            f"{setup.note()} {_turn_note(setup)} Files are in the page cache."
            + (" Peers came one after the other, when ours had ended." if setup.whole else ""),
            f"Limited: RLIMIT_DATA at {LIMIT_BYTES // GIB} GiB beyond what the process has after"
            " its imports, so anonymous memory and stacks; mapped files and the page cache are not"
            " limited. Target: ≥ 0.95 of the same unlimited. All logits of rows with the same"
            " weights are equal to the bit.",
            f"Peers have all weights in files of their own, {SLOW_TOKENS} steps a turn, no limit"
            " and no adapters. AirLLM has no GPT-J: it is patched (names of layers; the table of"
            " rotary positions outlives a layer). Targets: accelerate ≥ 10 times our time, AirLLM"
            " ≥ 20. Peak: of the steps.",
        ),
        command=setup.command("limited"),
    )  # fmt: skip
    return result, turns


def _turn_note(setup: Setup) -> str:
    return f"{setup.tokens} decode steps a turn, behind the prompt and {WARM_UP} more."


def _one_after_another(setup: Setup, groups: list[Engines]) -> Turns:
    """The engines of a group take turns; the next group begins when they have ended."""
    turns, prompts = Turns(in_turn=len(groups) == 1), prompts_of(setup.config())
    for engines in groups:
        with ExitStack() as stack:
            actions = {
                name: turn_of(stack.enter_context(start()), prompts, tokens)
                for name, (start, tokens) in engines.items()
            }
            mine = take_turns(actions, setup.rounds)
        turns.of |= mine.of
        turns.rates += mine.rates
    return turns


def _slow_peers(setup: Setup) -> dict[str, Callable[[], Worker]]:
    """Those that read all weights anew for each token."""
    found: dict[str, Callable[[], Worker]] = {}
    if setup.has("accelerate"):
        found["accelerate disk_offload bf16"] = setup.offloaded
    if setup.has("airllm"):
        found["AirLLM fp16, patched"] = setup.airllm
    return found


def capped(setup: Setup) -> tuple[record.Result, Turns]:
    """All memory capped, the page cache included."""
    prompts = prompts_of(setup.config())
    with memory_cap(CAP_BYTES) as cap:
        actions: dict[str, Callable[[], Measured]] = {}
        for storage in setup.storage:
            start = partial(
                setup.ours,
                storage,
                cap=cap,
                weights="read",
                device_memory=CAP_BYTES - SPARED_BYTES,
            )
            path = setup.model_folder(storage)
            actions[f"ours {storage}"] = partial(_cold_turn, start, path, prompts, setup)
        if cap is not None and setup.has("llama"):
            actions[f"{LLAMA} F16"] = partial(
                _cold_turn,
                partial(setup.llama, "F16", cap),
                setup.gguf("F16"),
                prompts,
                setup,
            )
        turns = take_turns(actions, setup.rounds)
    rows = [_capped_row(name, turns, f"ours {setup.storage[0]}") for name in turns.of]
    result = record.Result(
        bench=setup.bench("capped"),
        title=setup.title("Decode in 6 GiB of memory in all, weights on disk"),
        columns=("engine", "tokens/s", "s a token", "GB read a token, planned", "measured",
                 "disk GB/s", "of limit", f"speed / ours {setup.storage[0]}", "peak GiB"),
        rows=rows,
        samples=samples(turns),
        setting={"setup": str(setup), "cap": _kind(cap)},
        notes=(
            f"{setup.note()} {spans_note(setup)} It has {cap_note(cap)}. Ours"
            f" has a budget of {(CAP_BYTES - SPARED_BYTES) / GIB:.1f} GiB and reads past the page"
            " cache; llama.cpp maps its file, which nobody else has in the page cache, and begins"
            " each time with the prompt, which does not count. Peak: anonymous memory.",
            LIMIT_NOTE + " Measured: what the system says that a step had read; of llama.cpp the"
            " prompt's run is one of them.",
            "Targets: ≥ 0.90 of the limit; ≥ 1.5 × llama.cpp's speed; int8 ≥ 5 × our float16.",
        ),
        command=setup.command("capped"),
    )  # fmt: skip
    return result, turns


def _kind(cap: Cap | None) -> str:
    return "none" if cap is None else cap.kind


def _cold_turn(
    start: Callable[[], Worker], path: Path, prompts: list[list[int]], setup: Setup
) -> Measured:
    for file in [path] if path.is_file() else path.iterdir():
        drop_from_page_cache(file)
    return fresh_turn(start, path, prompts, setup.spans, setup.tokens)


def _capped_row(name: str, turns: Turns, base: str) -> tuple[str, ...]:
    spans = spans_of(turns, name)
    seconds = turns.values(name, step_s)
    plan = spans[0].steps.plan
    planned, share = "-", "-"
    if plan:
        planned = f"{streamed_bytes(plan) / 1e9:.2f}"
        share = of_limit(spans, [limit_s(span) for span in spans])
    return (
        name,
        f"{1 / median(seconds):.3g}",
        f"{median(seconds):.2f}",
        planned,
        f"{measured_gb(turns, name):.2f}",
        disk_rate(spans),
        share,
        f"{ratio(turns.values(base, step_s), seconds):.2f}",
        peak_gib(turns, name),
    )


def quantised(setup: Setup) -> tuple[record.Result, Turns]:
    """Storage of fewer bits beside llama.cpp's, all in memory."""
    prompts = prompts_of(setup.config())
    embedding = setup.written_for.transformer.embedding.vocab_size
    embedding *= setup.written_for.transformer.hidden_size
    sizes: dict[str, float] = {}
    with ExitStack() as stack:
        actions: dict[str, Callable[[], Steps]] = {}
        for storage in _with_blocks(setup.storage):
            worker = stack.enter_context(setup.ours(storage))
            actions[f"ours {storage}"] = turn_of(worker, prompts, setup.tokens)
        if setup.has("transformers"):
            worker = stack.enter_context(setup.transformers())
            actions[TRANSFORMERS] = turn_of(worker, prompts, setup.tokens)
            sizes[TRANSFORMERS] = step_bytes(setup.config(), 0, adapters=False)
        for storage in filter(setup.storage.__contains__, ALIKE if setup.has("llama") else ()):
            name = f"{LLAMA} {ALIKE[storage]}"
            worker = stack.enter_context(setup.llama(ALIKE[storage]))
            actions[name] = turn_of(worker, prompts, setup.tokens)
            bits = {"float16": 16, "int8": 8.5, "int4": 4.5}[storage]
            size = setup.gguf(ALIKE[storage]).stat().st_size
            sizes[name] = size - embedding * bits / 8
        turns = take_turns(actions, setup.rounds)
    ours = {n: of[0].value.plan for n, of in turns.of.items() if n not in sizes}
    sizes |= {name: weight_bytes(plan) for name, plan in ours.items()}
    rows = [_quantised_row(name, turns, sizes[name], setup) for name in turns.of]
    result = record.Result(
        bench=setup.bench("quantised"),
        title=setup.title("Decode with weights of 16, 8 and 4 bits"),
        columns=("engine", "tokens/s", "ms a token", "GB read", "of bandwidth",
                 "speed / ours float16", "ours / it"),
        rows=rows,
        samples=samples(turns),
        setting={"setup": str(setup)},
        notes=(
            f"{setup.note()} {_turn_note(setup)} Everything is in memory; engines stay.",
            "int8: a scale for each row; int4: one for 32 weights. Of all matrices but the word"
            " embedding, llama.cpp's head too (its own tool would give it 6 bits with Q4_0);"
            " 'blocks': head and adapters stay in float16. What that costs in quality: 'Quality of"
            " quantised weights'. llama.cpp runs its phi2 at GPT-J's sizes; it and transformers"
            " have no adapters.",
            "Milliseconds: median / least of the rounds' medians. 'Ours / it': our tokens/s with"
            " as many bits over its own.",
            "Targets: int8 ≥ 1.6 × our float16 and ≥ 1.3 × llama.cpp Q8_0; int4 ≥ 2.3 × and ≥ 1.3"
            " × Q4_0.",
        ),
        command=setup.command("quantised"),
    )  # fmt: skip
    return result, turns


def _with_blocks(storage: tuple[str, ...]) -> list[str]:
    """Each, and the same with head and adapters in float16."""
    also = (f"{name} blocks" for name in storage)
    return [*storage, *(name for name in also if name in STORAGE)]


def _quantised_row(name: str, turns: Turns, size: float, setup: Setup) -> tuple[str, ...]:
    seconds = turns.values(name, step_s)
    shares = [size / turn.read_gb_per_s / 1e9 / step_s(turn.value) for turn in turns.of[name]]
    alike = {f"{LLAMA} {theirs}": f"ours {storage}" for storage, theirs in ALIKE.items()}
    peer = (alike | {TRANSFORMERS: f"ours {setup.storage[0]}"}).get(name)
    beside = "-" if peer is None else f"{ratio(seconds, turns.values(peer, step_s)):.2f}"
    return (
        name,
        f"{1 / median(seconds):.2f}",
        f"{1e3 * median(seconds):.0f} / {1e3 * min(seconds):.0f}",
        f"{size / 1e9:.2f}",
        f"{median(shares):.2f}",
        f"{ratio(turns.values(f'ours {setup.storage[0]}', step_s), seconds):.2f}",
        beside,
    )
