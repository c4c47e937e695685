"""Our engine within budgets, by their size and by the number of sequences."""

from __future__ import annotations

from functools import partial
from math import inf
from statistics import median

from benchmarks import record
from benchmarks.memory_cap import memory_cap
from benchmarks.memory_setup import (
    GIB,
    Setup,
    check_identical,
    peak_gib,
    prompts_of,
    samples,
    step_s,
)
from benchmarks.memory_spans import (
    RUN_IN,
    STEADY,
    Span,
    disk_bytes,
    fresh_turn,
    limit_s,
    steps_of_turn,
    streamed_bytes,
    weight_bytes,
)
from benchmarks.turns import Turns, ratio, take_turns
from config.config import MagmaConfig
from execution.prompts import Picture

CAP_BYTES = 6 * GIB
SPARED_BYTES = GIB // 2
"""Of a cap on all memory what a budget leaves to pages of the page cache, such as libraries."""

PROCESS_BYTES = GIB // 2
"""What a process needs beside weights, roughly."""

CONTEXT = 300
"""Positions for which sequences of a batch have keys and values."""

AT_ONCE = 4
"""Of prompts that differ: activations of more would take the room of weights, keys and values."""

LIMIT_NOTE = (
    "Limit: the longest of what the disk takes for all bytes that are not in memory, memory for all"
    " bytes that a step uses, and arithmetic where sequences are many, at the rate of the machine's"
    " fastest products, which are of int8. Rates are taken just before and just behind a few steps"
    " in a row: direct reads (4 MiB, 4 under way, into large pages, 2 s after 1 s that does not"
    " count), memory, products. Where"
    f" the disk's two rates differ by more than {STEADY - 1:.0%}, the steps do not count."
)


def spans_note(setup: Setup) -> str:
    """What a turn consists of."""
    return (
        f"Each turn is a process of its own: {setup.spans} times {setup.tokens} steps in a row,"
        f" each time behind {RUN_IN} that does not count."
    )


def spans_of(turns: Turns, name: str) -> list[Span]:
    """All spans of an engine that count."""
    return [span for turn in turns.of[name] for span in turn.value.counted]


def of_limit(spans: list[Span], limits: list[float]) -> str:
    """The share of the limit, as a cell."""
    return f"{ratio(limits, [span.step_s for span in spans]):.2f}"


def budgets(setup: Setup) -> tuple[record.Result, Turns]:
    """Tokens a second against the budget, weights read, beside the limit."""
    cases: dict[str, tuple[str, dict[str, object]]] = {}
    for storage in setup.storage:
        # First, as budgets beyond the model's size push it out of the page cache.
        cases[f"{storage}, mapped"] = (storage, {})
        for budget in _telling(setup, storage):
            settings: dict[str, object] = {"weights": "read", "device_memory": f"{budget}GiB"}
            cases[f"{storage}, {budget} GiB"] = (storage, settings)
            if budget == min(setup.budgets) and storage == setup.storage[0]:
                serial = settings | {"prefetch": 0}
                cases[f"{storage}, {budget} GiB, nothing read ahead"] = (storage, serial)
    prompts = prompts_of(setup.config())
    actions = {
        name: partial(
            fresh_turn,
            partial(setup.ours, storage, **settings),
            setup.model_folder(storage),
            prompts,
            setup.spans,
            setup.tokens,
        )
        for name, (storage, settings) in cases.items()
    }
    turns = take_turns(actions, setup.rounds)
    check_identical(turns, {name: storage for name, (storage, _) in cases.items()})
    rows = [_budget_row(name, turns) for name in cases]
    result = record.Result(
        bench=setup.bench("budgets"),
        title=setup.title("Decode within a budget, weights read from disk"),
        columns=("weights, budget", "tokens/s", "GB of weights", "GB read a token, planned",
                 "measured", "disk GB/s", "limit, tokens/s", "of limit", "peak GiB"),
        rows=rows,
        samples=samples(turns),
        setting={"setup": str(setup)},
        notes=(
            f"{setup.note()} {spans_note(setup)} Reads go past the page cache.",
            LIMIT_NOTE + " Target: ≥ 0.90 of the limit where weights are read.",
            "Peak: anonymous memory of the process, to stay within the budget. Mapped: no budget,"
            " weights in the page cache.",
            "All logits of rows with the same weights were compared: they are equal to the bit.",
        ),
        command=setup.command("budgets"),
    )  # fmt: skip
    return result, turns


def _telling(setup: Setup, storage: str) -> list[int]:
    """The budgets up to the first that keeps everything: with more nothing changes."""
    files = setup.model_folder(storage).glob("*.safetensors")
    size = sum(path.stat().st_size for path in files) + PROCESS_BYTES
    budgets = sorted(setup.budgets)
    return [now for last, now in zip((0, *budgets), budgets, strict=False) if last * GIB < size]


def _budget_row(name: str, turns: Turns) -> tuple[str, ...]:
    spans = spans_of(turns, name)
    plan, limits = spans[0].steps.plan, [limit_s(span) for span in spans]
    return (
        name,
        f"{1 / median(turns.values(name, step_s)):.3g}",
        f"{weight_bytes(plan) / 1e9:.2f}",
        f"{streamed_bytes(plan) / 1e9:.2f}",
        f"{measured_gb(turns, name):.2f}",
        disk_rate(spans),
        f"{1 / median(limits):.3g}",
        of_limit(spans, limits),
        peak_gib(turns, name),
    )


def measured_gb(turns: Turns, name: str) -> float:
    """What a step had read from the disk, as the system says, in 1e9 bytes."""
    return median(turns.values(name, lambda turn: turn.disk_bytes)) / 1e9


def disk_rate(spans: list[Span]) -> str:
    """What the disk gave meanwhile, as a cell."""
    rate = median(span.disk_gb_per_s for span in spans)
    return "-" if rate == inf else f"{rate:.2f}"


def batches(setup: Setup) -> tuple[record.Result, Turns]:
    """Tokens a second against the number of sequences, under a cap on all memory."""
    budget = CAP_BYTES - SPARED_BYTES
    with memory_cap(CAP_BYTES) as cap:
        actions = {}
        configs = {}
        for storage in setup.storage:
            for batch in setup.batches:
                config = setup.config(CONTEXT - setup.config().image_tokens, batch)
                config.transformer.execution.prompts_at_once = AT_ONCE
                length = CONTEXT - 1 - steps_of_turn(setup.spans, setup.tokens)
                (text, *_) = prompts_of(config, length - config.image_tokens)
                # One for all: reading it is not what is measured.
                prompts = [[Picture(0), *text]] * batch
                configs[f"{storage}, {batch}"] = config
                start = partial(
                    setup.ours, storage, config, cap=cap, weights="read", device_memory=budget
                )
                actions[f"{storage}, {batch}"] = partial(
                    fresh_turn,
                    start,
                    setup.model_folder(storage),
                    prompts,
                    setup.spans,
                    setup.tokens,
                )
        turns = take_turns(actions, setup.rounds)
    check_identical(turns, {name: name for name in actions})
    filled = length / CONTEXT
    rows = [_batch_row(name, config, turns, filled) for name, config in configs.items()]
    result = record.Result(
        bench=setup.bench("batches"),
        title=setup.title("Decode of several sequences in 6 GiB, weights read from disk"),
        columns=("weights, sequences", "tokens/s", "s a step", "times one", "GB of weights read",
                 "GB of keys, values read", "measured", "disk GB/s", "limit, tokens/s", "of limit"),
        rows=_times_one(rows),
        samples=samples(turns),
        setting={"setup": str(setup)},
        notes=(
            f"{setup.note()} {spans_note(setup)} It has a budget of {budget / GIB:.1f} GiB and"
            f" {cap_note(cap)}.",
            f"Each sequence has room for keys and values of {CONTEXT} positions, {length} of them"
            " of a prompt, the same for all (of prompts that differ, the session would read"
            f" {AT_ONCE} at once). What the budget has room for displaces weights, the rest lies in"
            " a file. Read: planned, from the disk in a step; measured: both, as the system says.",
            LIMIT_NOTE + " Target: ≥ 0.90 of it.",
        ),
        command=setup.command("batches"),
    )  # fmt: skip
    return result, turns


def cap_note(cap: object) -> str:
    """What holds a process to its memory."""
    if cap is None:
        return "no cap on the page cache could be had here: direct reads alone"
    return f"a hard cap of {CAP_BYTES // GIB} GiB, page cache included ({cap.kind})"


def _batch_row(name: str, config: MagmaConfig, turns: Turns, filled: float) -> tuple[str, ...]:
    spans = spans_of(turns, name)
    plan, seconds = spans[0].steps.plan, median(turns.values(name, step_s))
    limits = [limit_s(span, config.batch * token_flops(config), filled) for span in spans]
    return (
        name,
        f"{config.batch / seconds:.3g}",
        f"{seconds:.2f}",
        f"{streamed_bytes(plan) / 1e9:.2f}",
        f"{(disk_bytes(plan, filled) - streamed_bytes(plan)) / 1e9:.2f}",
        f"{measured_gb(turns, name):.2f}",
        disk_rate(spans),
        f"{config.batch / median(limits):.3g}",
        of_limit(spans, limits),
    )


def _times_one(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows with their tokens a second over those of the first row of the same weights."""
    first: dict[str, float] = {}
    found = []
    for name, speed, *others in rows:
        one = first.setdefault(name.rsplit(", ", 1)[0], float(speed))
        found.append((name, speed, others[0], f"{float(speed) / one:.1f}", *others[1:]))
    return found


def token_flops(config: MagmaConfig) -> float:
    """Floating-point operations of one sequence in a decode step: 2 for each weight."""
    lm = config.transformer
    h = lm.hidden_size
    adapter = 2 * h * lm.inner_of(lm.ff_adapter)
    block = 4 * h * h + 2 * h * lm.inner_size + adapter
    return 2.0 * (lm.layers * block + lm.embedding.vocab_size * h)
