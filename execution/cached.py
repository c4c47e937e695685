"""One program that remembers keys and values: each token costs one position, not all of them.

A host-loaded integer selects what a run does (:class:`RunKind`). All kinds are branches of one
program over the same weights. Work follows real lengths: there is a branch for each of a few
lengths (:mod:`execution.buckets`), and only the one taken runs. A stream that a kind has no use for
is neither loaded nor stored by it.

The cache has S slots for each sequence. Sequences of a batch are aligned at the ends of their
prompts, so that all write to one slot; before its first position a sequence has pads. Letters: b
sequences, t text and i image tokens, m slots of a run, k slots read, w slots scored at a time, h
hidden, v vocabulary, r replicas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import partial

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops

from config.config import MagmaConfig
from execution.branches import choose
from execution.buckets import prompt_buckets, read_buckets, score_buckets
from execution.cache import CachedBlock, KeptRows, KeyValueCache, Remember
from execution.engine import ENGINE_CHOICE, EngineOptions
from execution.phases import (
    EMBEDDING_KEYS,
    HEAD_KEYS,
    Phase,
    call_phase,
    call_phase_in_parts,
    decoder_keys,
    image_prefix_phases,
)
from execution.program import create_ir, create_session
from modelling.clip_resnet.stem import IMAGE_CHANNELS
from modelling.gptj.embedding import Embeddings
from modelling.gptj.lm_head import LMHead, Scores
from modelling.gptj.positions import growing_sequences

ROWS_PER_SCORE = 128
"""Logits are held for so many positions at a time, in float32."""

Build = Callable[[int, popxl.Tensor, popxl.Tensor], None]
"""Builds a branch for m or k slots, from the streams ``length`` and ``start``."""


class RunKind(IntEnum):
    """What a run does: values of the stream ``kind``."""

    ENCODE = 0
    """A picture to i positions, which are kept."""
    KEEP = 1
    """Keeps i positions that the host gives."""
    EMBED = 2
    """The positions of one prompt, to the host."""
    PREFILL = 3
    """Prompts, whose keys and values are kept; the logits behind each."""
    DECODE = 4
    """One more token of each sequence; the logits behind it."""
    SCORE = 5
    """More tokens of each sequence; the log-probability of a given one behind each."""
    SHARED_PREFILL = 6
    """One prompt, whose keys and values several sequences get; the logits behind it."""


def build_cached_program(
    config: MagmaConfig, engine: EngineOptions = ENGINE_CHOICE
) -> addons.TaskSession:
    """Builds the cached scheme of a configuration and compiles it.

    Every run needs every stream; what its kind has no use for is ignored. The inputs are

    - ``kind`` () int32: a :class:`RunKind`;
    - ``length`` () int32: prefill: slots of the longest prompt; decode: slots to read; score: slots
      to add;
    - ``start`` (1,) int32: encode and keep: the first row to keep the positions in; decode and
      score: the first new slot; shared prefill: the slot of the prompt's first row;
    - ``image`` (1, 3, y, x): encode;
    - ``rows`` (i, h): keep;
    - ``pads`` (b,) int32: slots before each sequence's first position;
    - ``sequences`` (b,) int32: shared prefill: who gets the prompt, repeated to fill up;
    - ``words`` (b·t,) int32: ids, counted from the first row of each replica's table: of each
      sequence (decode), or those that the source names;
    - ``source`` (b, S) int32: prefill, score and embed: for each new slot its row among the kept
      ones and, behind them, the words; -1 for pads;
    - ``targets`` (b, w) int32: score: behind each new slot the id to score, counted from the first
      column of each replica's head.

    Shared prefill and embed read what the first sequence has of these.

    Args:
        config: A validated configuration.
        engine: How it is run.

    Returns:
        A session with these inputs, the outputs ``logits`` (b, v/r), ``log_probs`` (b, w) float32
        and ``embeddings`` (S, h), of which a run fills what its kind gives, and the variables of
        the recompute scheme.

    Raises:
        UserError: A distributed launch has another number of replicas than the configuration.
    """
    ir = create_ir(config, engine)
    with ir.main_graph, popxl.in_sequence():
        program = _CachedProgram(config)
        variables: dict[str | int, popxl.Tensor] = {}
        for phase in program.weighted:
            variables.update(phase.create_variables())
        program.fill_main_graph()
    return create_session(ir, program.phases, program.inputs, program.outputs, variables)


class _CachedProgram:
    """The parts of the program, and the main graph made of them."""

    def __init__(self, config: MagmaConfig):
        self.config = config
        lm, b = config.transformer, config.batch
        self.proportions = lm.execution.available_memory_proportion
        self.cache = KeyValueCache.of_config(config)
        self.kept = KeptRows.of_config(config)
        self.image_prefix = image_prefix_phases(config, 1)
        words, hidden = popxl.TensorSpec((b,), popxl.int32), self._hidden(b)
        self.embedding = self._phase(Embeddings(lm), [words], EMBEDDING_KEYS)
        # Each length gets a graph of its own for these weights.
        block = CachedBlock(config, partial(self.cache.remember, k=config.total_tokens))
        specs = [*self._place(b, 1, config.total_tokens), _number(1), _number()]
        self.decoder = self._phase(block, specs, decoder_keys(lm), numbered=True)
        self.lm_head = self._phase(LMHead(lm), [hidden], HEAD_KEYS)
        self.weighted = (*self.image_prefix, self.embedding, self.decoder, self.lm_head)
        self.phases = list(self.weighted)
        self.inputs, self.outputs = self._streams()

    def _phase(
        self,
        module: addons.Module,
        inputs: Sequence[popxl.TensorSpec],
        keys: tuple[str, ...],
        numbered: bool = False,
    ) -> Phase:
        return Phase.of_module(module, inputs, keys, self.proportions, numbered)

    def _resized(
        self, phase: Phase, module: addons.Module, inputs: Sequence[popxl.TensorSpec]
    ) -> Phase:
        self.phases.append(phase.resized(module, inputs))
        return self.phases[-1]

    def _hidden(self, rows: int) -> popxl.TensorSpec:
        lm = self.config.transformer
        return popxl.TensorSpec((rows, lm.hidden_size), lm.dtype)

    def _place(self, b: int, m: int, k: int) -> list[popxl.TensorSpec]:
        """Rows of a block, and where they stand."""
        lm = self.config.transformer
        table = popxl.TensorSpec((b * m, lm.attention.rotary_dim // 2), lm.dtype)
        return [self._hidden(b * m), table, table, popxl.TensorSpec((b, 1, m, k), popxl.bool)]

    def _streams(self) -> tuple[addons.InputStreams, addons.OutputStreams]:
        config, b, slots = self.config, self.config.batch, self.config.total_tokens
        lm, visual = config.transformer, config.visual
        side, window = visual.image_resolution, score_buckets(config.text_tokens)[-1]
        inputs = addons.InputStreams(
            kind=((), popxl.int32),
            length=((), popxl.int32),
            start=((1,), popxl.int32),
            image=((1, IMAGE_CHANNELS, side, side), visual.dtype),
            rows=((config.image_tokens, lm.hidden_size), lm.dtype),
            pads=((b,), popxl.int32),
            sequences=((b,), popxl.int32),
            words=((b * config.text_tokens,), popxl.int32),
            source=((b, slots), popxl.int32),
            targets=((b, window), popxl.int32),
        )
        logits = self.lm_head.result
        return inputs, addons.OutputStreams(
            logits=(logits.shape, logits.dtype),
            log_probs=((b, window), popxl.float32),
            embeddings=((slots, lm.hidden_size), lm.dtype),
        )

    def fill_main_graph(self) -> None:
        """Takes the branch of the run's kind and length."""
        kind, length, start = (
            ops.host_load(stream)
            for stream in (self.inputs.kind, self.inputs.length, self.inputs.start)
        )
        slots = self.config.total_tokens
        kinds: dict[RunKind, tuple[Sequence[int], Build]] = {
            RunKind.ENCODE: ((slots,), self._encode),
            RunKind.KEEP: ((slots,), self._keep),
            RunKind.EMBED: ((slots,), self._embed),
            RunKind.PREFILL: (prompt_buckets(slots), self._prefill),
            RunKind.DECODE: (read_buckets(slots), self._decode),
            RunKind.SCORE: (score_buckets(self.config.text_tokens), self._score),
        }
        if self.config.batch > 1:
            kinds[RunKind.SHARED_PREFILL] = (prompt_buckets(slots), self._shared_prefill)
        branches = [(one, partial(_by_length, *how)) for one, how in sorted(kinds.items())]
        choose(kind, branches, length, start)

    # -- branches; the engine reports time and bytes by their outermost name scopes -----------

    def _encode(self, m: int, length: popxl.Tensor, start: popxl.Tensor) -> None:
        image = ops.host_load(self.inputs.image)
        with popxl.name_scope("image_prefix"):
            for phase in self.image_prefix:
                image = call_phase(phase, image)
        self.kept.keep(ops.reshape(image, self.inputs.rows.shape), start)

    def _keep(self, m: int, length: popxl.Tensor, start: popxl.Tensor) -> None:
        self.kept.keep(ops.host_load(self.inputs.rows), start)

    def _embed(self, m: int, length: popxl.Tensor, start: popxl.Tensor) -> None:
        with popxl.name_scope("embedding"):
            ops.host_store(self.outputs.embeddings, self._embeddings(1, m))

    def _prefill(self, m: int, length: popxl.Tensor, start: popxl.Tensor) -> None:
        # Slots behind a prompt are filled too; they are written to again before they are read.
        pads = ops.host_load(self.inputs.pads)
        sizes = self._parts()
        firsts = np.cumsum([0, *sizes[:-1]], dtype=np.int32)
        where = popxl.constant(firsts, name="firsts")
        logits = self._read_prompts(pads, m, length, self.cache.fill, where, sizes=sizes)
        ops.host_store(self.outputs.logits, logits)

    def _shared_prefill(self, m: int, length: popxl.Tensor, start: popxl.Tensor) -> None:
        pads, sequences = (ops.host_load(s) for s in (self.inputs.pads, self.inputs.sequences))
        logits = self._read_prompts(pads[:1], m, length, self.cache.give, sequences, start)
        ops.host_store(self.outputs.logits, ops.concat([logits] * self.config.batch, axis=0))

    def _read_prompts(
        self,
        pads: popxl.Tensor,
        m: int,
        length: popxl.Tensor,
        remember: Remember,
        *where: popxl.Tensor,
        sizes: Sequence[int] = (),
    ) -> popxl.Tensor:
        """Logits behind as many prompts as there are pads; see :meth:`_blocks` for the rest."""
        b, first = pads.shape[0], popxl.constant([0], popxl.int32, "first")
        place = growing_sequences(self.config.transformer, first, pads, m, m, m)
        with popxl.name_scope("prefill/embedding"):
            x = self._embeddings(b, m)
        with popxl.name_scope("prefill/decoder"):
            x = self._blocks(x, place, remember, *where, sizes=sizes)
        with popxl.name_scope("prefill/lm_head"):
            x = ops.reshape(x, (b, m, x.shape[1]))
            last = ops.reshape(length - 1, (1,))
            x = ops.dynamic_slice(x, last, axes=[1], sizes=[1], no_overlap=True)
            x = ops.reshape(x, (b, x.shape[2]))
            head = self.lm_head
            if b < self.config.batch:
                head = self._resized(head, LMHead(self.config.transformer), [x.spec])
            return call_phase(head, x)

    def _decode(self, k: int, length: popxl.Tensor, start: popxl.Tensor) -> None:
        lm, slots = self.config.transformer, self.config.total_tokens
        words, pads = (ops.host_load(s) for s in (self.inputs.words, self.inputs.pads))
        place = growing_sequences(lm, start, pads, 1, k, slots)
        with popxl.name_scope("decode/embedding"):
            x = call_phase(self.embedding, words[: self.config.batch])
        with popxl.name_scope("decode/decoder"):
            x = self._blocks(x, place, partial(self.cache.remember, k=k), start)
        with popxl.name_scope("decode/lm_head"):
            ops.host_store(self.outputs.logits, call_phase(self.lm_head, x))

    def _score(self, m: int, length: popxl.Tensor, start: popxl.Tensor) -> None:
        # All slots are read whatever the length: next to the weights of m rows that is little.
        b, slots = self.config.batch, self.config.total_tokens
        pads, targets = (ops.host_load(s) for s in (self.inputs.pads, self.inputs.targets))
        place = growing_sequences(self.config.transformer, start, pads, m, slots, slots)
        with popxl.name_scope("score/embedding"):
            x = self._embeddings(b, m)
        with popxl.name_scope("score/decoder"):
            x = self._blocks(x, place, partial(self.cache.remember, k=slots), start)
        with popxl.name_scope("score/lm_head"):
            found = self._log_probs(x, ops.reshape(targets[:, :m], (b * m,)))
            rest = np.zeros((b, targets.shape[1] - m), np.float32)
            found = ops.concat([ops.reshape(found, (b, m)), popxl.constant(rest)], axis=1)
            ops.host_store(self.outputs.log_probs, found)

    def _log_probs(self, x: popxl.Tensor, targets: popxl.Tensor) -> popxl.Tensor:
        """Of (n,) targets behind rows (n, h), without logits of all at once."""
        pieces = -(-targets.nelms // ROWS_PER_SCORE)
        sizes = [len(piece) for piece in np.array_split(np.arange(targets.nelms), pieces)]
        heads = {
            size: self._resized(
                self.lm_head,
                Scores(self.config.transformer),
                [self._hidden(size), popxl.TensorSpec((size,), popxl.int32)],
            )
            for size in set(sizes)
        }
        parts = (ops.split(tensor, sizes, axis=0) for tensor in (x, targets))
        found = [call_phase(heads[len(ids)], rows, ids) for rows, ids in zip(*parts, strict=True)]
        return ops.concat(found, axis=0)

    def _embeddings(self, b: int, m: int) -> popxl.Tensor:
        """Embeddings of m slots of the first b sequences, (b·m, h)."""
        words, source = (ops.host_load(s) for s in (self.inputs.words, self.inputs.source))
        words = words[: min(b * m, words.shape[0])]
        phase = self._resized(self.embedding, Embeddings(self.config.transformer), [words.spec])
        source = ops.reshape(source[:b, :m], (b * m,))
        kept = self.kept.load()
        # A slot has a row in one of the two, a pad in none.
        of_words = ops.gather(call_phase(phase, words), source - kept.shape[0], zero_OOR=True)
        return ops.gather(kept, source, zero_OOR=True) + of_words

    def _blocks(
        self,
        x: popxl.Tensor,
        place: tuple[popxl.Tensor, popxl.Tensor, popxl.Tensor],
        remember: Remember,
        *where: popxl.Tensor,
        sizes: Sequence[int] = (),
    ) -> popxl.Tensor:
        """All decoder blocks over the slots of a place.

        Args:
            x: (b·m, h).
            place: See :class:`modelling.gptj.positions.Place`.
            remember: See :class:`execution.cache.CachedBlock`.
            where: What it takes, but for the number of the block.
            sizes: So many sequences at a time; each of ``where`` then has a row for each part.
        """
        b, _, m, k = place[-1].shape
        sizes = sizes or [b]
        rows = [popxl.TensorSpec(_part_of(t.shape, len(sizes)), t.dtype) for t in where]
        block = CachedBlock(self.config, remember)
        phases = {
            size: self._resized(self.decoder, block, [*self._place(size, m, k), *rows, _number()])
            for size in set(sizes)
        }
        return call_phase_in_parts([phases[size] for size in sizes], x, *place, *where)

    def _parts(self) -> list[int]:
        """How many prompts a block reads at a time, so that its activations find room."""
        b = self.config.batch
        most = self.config.transformer.execution.prompts_at_once or b
        return [len(part) for part in np.array_split(np.arange(b), -(-b // most))]


def _part_of(shape: tuple[int, ...], parts: int) -> tuple[int, ...]:
    """The shape of each of some equal parts along axis 0."""
    return shape if parts == 1 else (shape[0] // parts, *shape[1:])


def _number(*shape: int) -> popxl.TensorSpec:
    return popxl.TensorSpec(shape, popxl.int32)


def _by_length(
    lengths: Sequence[int], build: Build, length: popxl.Tensor, start: popxl.Tensor
) -> None:
    """The branch for the least length with room for the run's."""
    choose(length, [(m, partial(build, m)) for m in lengths], length, start)
