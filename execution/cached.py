"""One program that remembers keys and values: each token costs one position, not all of them.

A host-loaded integer selects what a run does:

- *encode*: a picture to embeddings, which are kept;
- *prefill*: the prompts, made of words and of pictures' embeddings; keys and values of all blocks
  are kept; out come the logits behind each prompt;
- *shared prefill*: one prompt, whose keys and values all sequences get;
- *decode*: one more token of each sequence.

All kinds are branches of one program over the same weights. Work follows real lengths: there is a
branch for each of a few lengths (:mod:`execution.buckets`), and only the one taken runs.

The cache has S slots for each sequence. Sequences of a batch are aligned at their ends, so that all
write to one slot; before its first position a sequence has pads. Letters: b sequences, t text and i
image tokens, m slots of a run, k slots read, h hidden, n heads, d head size, v vocabulary, r
replicas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from pathlib import Path

import numpy as np
import popxl
import popxl_addons as addons
from popxl import ops

from config.config import MagmaConfig
from execution.buckets import prompt_buckets, read_buckets
from execution.phases import (
    EMBEDDING_KEYS,
    HEAD_KEYS,
    Phase,
    call_phase,
    decoder_keys,
    image_prefix_phases,
)
from execution.program import create_ir, create_session
from modelling.clip_resnet.stem import IMAGE_CHANNELS
from modelling.gptj.decoder import DecoderBlock
from modelling.gptj.embedding import Embeddings
from modelling.gptj.lm_head import LMHead
from modelling.gptj.positions import Place, growing_sequences

MOST_PICTURES = 8
"""Pictures at most for each sequence of a batch."""

Branch = Callable[..., popxl.Tensor]


class RunKind(IntEnum):
    """What a run does: values of the stream ``kind``."""

    ENCODE = 0
    PREFILL = 1
    DECODE = 2
    SHARED_PREFILL = 3


def picture_entries(config: MagmaConfig) -> int:
    """How many pictures there is room for."""
    return config.batch * min(MOST_PICTURES, config.total_tokens // config.image_tokens)


def build_cached_program(config: MagmaConfig, trace: Path | None = None) -> addons.TaskSession:
    """Builds the cached scheme of a configuration and compiles it.

    Every run needs every stream; what its kind has no use for is ignored. The inputs are

    - ``kind`` () int32: a :class:`RunKind`;
    - ``image`` (1, 3, y, x): encode;
    - ``slot`` (1,) int32: encode: the number to keep the picture under; prefill: the slot of the
      prompts' last positions; decode: the slot of the new position;
    - ``pads`` (b,) int32: slots before each sequence's first position;
    - ``words`` (b·t,) int32: prefill: ids of all sequences one after the other; decode: an id of
      each sequence. Counted from the first row of each replica's table;
    - ``source`` (b, S) int32: prefill: for each slot its row among the embeddings of all pictures
      and, behind them, of all words.

    A shared prefill reads what the first sequence has of these.

    Args:
        config: A validated configuration.
        trace: See :func:`execution.program.build_program`.

    Returns:
        A session with these inputs, the output ``logits`` (b, v/r), and the variables of the
        recompute scheme.

    Raises:
        UserError: A distributed launch has another number of replicas than the configuration.
    """
    ir = create_ir(config, trace)
    with ir.main_graph, popxl.in_sequence():
        program = _CachedProgram(config)
        variables: dict[str | int, popxl.Tensor] = {}
        for phase in program.weighted:
            variables.update(phase.create_variables())
        program.fill_main_graph()
    return create_session(ir, program.phases, program.inputs, program.outputs, variables)


@dataclass(frozen=True)
class KeyValueCache:
    """Keys and values of all blocks.

    Attributes:
        keys: Buffer of (b, n/r, S, d), with an entry for each block.
        values: As keys.
    """

    keys: popxl.RemoteBuffer
    values: popxl.RemoteBuffer

    @classmethod
    def of_config(cls, config: MagmaConfig) -> KeyValueCache:
        """A cache with a slot for each position, in the current Ir."""
        lm = config.transformer
        heads = lm.attention.heads // config.tensor_parallel
        shape = (config.batch, heads, config.total_tokens, lm.head_size)
        return cls(
            popxl.remote_buffer(shape, lm.dtype, lm.layers),
            popxl.remote_buffer(shape, lm.dtype, lm.layers),
        )

    def remember(
        self,
        keys: popxl.Tensor,
        values: popxl.Tensor,
        start: popxl.Tensor,
        block: popxl.Tensor,
        k: int,
    ) -> tuple[popxl.Tensor, popxl.Tensor]:
        """Writes to neighbouring slots, then reads the first k.

        Args:
            keys: (b, n/r, m, d), or (1, n/r, m, d) of a sequence that all share.
            values: As keys.
            start: (1,) int32, the first slot to write.
            block: () int32, whose keys and values they are.
            k: Slots to read.

        Returns:
            Keys and values of as many sequences, (b or 1, n/r, k, d) each.
        """
        b = keys.shape[0]
        return (
            _remember(self.keys, keys, start, block)[:b, :, :k],
            _remember(self.values, values, start, block)[:b, :, :k],
        )


def _remember(
    buffer: popxl.RemoteBuffer, new: popxl.Tensor, start: popxl.Tensor, block: popxl.Tensor
) -> popxl.Tensor:
    copies = buffer.tensor_shape[0] // new.shape[0]
    if copies > 1:
        new = ops.concat([new] * copies, axis=0)
    # Between these three nothing touches the entry, so an engine may do them in place.
    entry = ops.remote_load(buffer, block)
    ops.dynamic_update_(entry, start, new, axes=[2], sizes=[new.shape[2]], no_overlap=True)
    ops.remote_store(buffer, block, entry)
    return entry


class CachedBlock(DecoderBlock):
    """A decoder block whose keys and values are remembered."""

    def __init__(self, config: MagmaConfig, cache: KeyValueCache):
        """Fixes the sizes.

        Args:
            config: Of the whole model.
            cache: Where keys and values are kept.
        """
        super().__init__(config.transformer)
        self.cache = cache

    # A graph's inputs are tensors, so the parts of the place come one by one.
    def build(  # type: ignore[override]
        self,
        x: popxl.Tensor,
        sin: popxl.Tensor,
        cos: popxl.Tensor,
        visible: popxl.Tensor,
        start: popxl.Tensor,
        block: popxl.Tensor,
    ) -> popxl.Tensor:
        """One block over m slots of growing sequences.

        Args:
            x: (b·m, h), equal on all replicas.
            sin: See :class:`modelling.gptj.positions.Place`, as for the next two.
            cos: (b·m, rotary_dim / 2).
            visible: (b, 1, m, k).
            start: (1,) int32, the first of the m slots.
            block: () int32, the number of the block.

        Returns:
            (b·m, h), equal on all replicas.
        """
        b, _, _, k = visible.shape
        remember = partial(self.cache.remember, start=start, block=block, k=k)
        return super().build(x, Place(b, sin, cos, visible, remember))


class _CachedProgram:
    """The parts of the program, and the main graph made of them."""

    def __init__(self, config: MagmaConfig):
        self.config = config
        lm, b = config.transformer, config.batch
        self.proportions = lm.execution.available_memory_proportion
        self.cache = KeyValueCache.of_config(config)
        shape = (config.image_tokens, lm.hidden_size)
        self.pictures = popxl.remote_buffer(shape, lm.dtype, picture_entries(config))
        self.image_prefix = image_prefix_phases(config, 1)
        words, hidden = popxl.TensorSpec((b,), popxl.int32), self._hidden(b)
        self.embedding = self._phase(Embeddings(lm), [words], EMBEDDING_KEYS)
        # Each length gets a graph of its own for these weights.
        block = CachedBlock(config, self.cache)
        specs = self._block_inputs(b, 1, config.total_tokens)
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

    def _block_inputs(self, b: int, m: int, k: int) -> list[popxl.TensorSpec]:
        lm = self.config.transformer
        table = popxl.TensorSpec((b * m, lm.attention.rotary_dim // 2), lm.dtype)
        visible = popxl.TensorSpec((b, 1, m, k), popxl.bool)
        start, block = popxl.TensorSpec((1,), popxl.int32), popxl.TensorSpec((), popxl.int32)
        return [self._hidden(b * m), table, table, visible, start, block]

    def _streams(self) -> tuple[addons.InputStreams, addons.OutputStreams]:
        config, b = self.config, self.config.batch
        side = config.visual.image_resolution
        inputs = addons.InputStreams(
            kind=((), popxl.int32),
            image=((1, IMAGE_CHANNELS, side, side), config.visual.dtype),
            slot=((1,), popxl.int32),
            pads=((b,), popxl.int32),
            words=((b * config.text_tokens,), popxl.int32),
            source=((b, config.total_tokens), popxl.int32),
        )
        logits = self.lm_head.result
        return inputs, addons.OutputStreams(logits=(logits.shape, logits.dtype))

    def fill_main_graph(self) -> None:
        """Loads all streams and takes the branch of the run's kind and length."""
        kind, image, slot, pads, words, source = (ops.host_load(s) for s in self.inputs)
        given = (slot, pads, words, source)
        _if(_is(kind, RunKind.ENCODE), self._encode, _nothing, image, slot)
        slots, none = self.config.total_tokens, self.lm_head.result
        logits: popxl.Tensor = popxl.constant(np.zeros(none.shape), none.dtype)
        kinds: list[tuple[RunKind, tuple[int, ...], Branch]] = [
            (RunKind.PREFILL, prompt_buckets(slots), partial(self._prefill, self.config.batch)),
            (RunKind.DECODE, read_buckets(slots), self._decode),
        ]
        if self.config.batch > 1:
            kinds.append((RunKind.SHARED_PREFILL, prompt_buckets(slots), self._shared_prefill))
        for wanted, lengths, branch in kinds:
            run = partial(_by_length, lengths, branch)
            (logits,) = _if(_is(kind, wanted), run, _first, logits, *given)
        ops.host_store(self.outputs.logits, logits)

    # -- branches; the engine reports time and bytes by their outermost name scopes -----------

    def _encode(self, image: popxl.Tensor, slot: popxl.Tensor) -> None:
        with popxl.name_scope("image_prefix"):
            for phase in self.image_prefix:
                image = call_phase(phase, image)
        ops.remote_store(self.pictures, slot, ops.reshape(image, self.pictures.tensor_shape))

    def _shared_prefill(self, m: int, *given: popxl.Tensor) -> popxl.Tensor:
        """One prompt for all sequences."""
        return ops.concat([self._prefill(1, m, *given)] * self.config.batch, axis=0)

    def _prefill(
        self,
        b: int,
        m: int,
        slot: popxl.Tensor,
        pads: popxl.Tensor,
        words: popxl.Tensor,
        source: popxl.Tensor,
    ) -> popxl.Tensor:
        """The first b prompts, of at most m slots each."""
        # Slots behind a prompt are filled too; decode steps write to them before they are read.
        start = popxl.constant([0], popxl.int32, "start")
        lm, slots = self.config.transformer, self.config.total_tokens
        place = growing_sequences(lm, start, pads[:b], m, m, slots)
        with popxl.name_scope("prefill/embedding"):
            x = self._embed(words, source[:b, :m])
        with popxl.name_scope("prefill/decoder"):
            x = self._blocks(x, start, place)
        with popxl.name_scope("prefill/lm_head"):
            x = ops.reshape(x, (b, m, x.shape[1]))
            x = ops.dynamic_slice(x, slot, axes=[1], sizes=[1], no_overlap=True)
            x = ops.reshape(x, (b, x.shape[2]))
            head = self.lm_head
            if b < self.config.batch:
                head = self._resized(head, LMHead(lm), [x.spec])
            return call_phase(head, x)

    def _embed(self, words: popxl.Tensor, source: popxl.Tensor) -> popxl.Tensor:
        """Embeddings of slots (b, m), as (b·m, h)."""
        words = words[: min(source.nelms, words.shape[0])]
        phase = self._resized(self.embedding, Embeddings(self.config.transformer), [words.spec])
        rows = [ops.remote_load(self.pictures, entry) for entry in range(self.pictures.entries)]
        table = ops.concat([*rows, call_phase(phase, words)], axis=0)
        return ops.gather(table, ops.reshape(source, (source.nelms,)))

    def _decode(
        self,
        k: int,
        slot: popxl.Tensor,
        pads: popxl.Tensor,
        words: popxl.Tensor,
        source: popxl.Tensor,
    ) -> popxl.Tensor:
        """One position of each sequence, which reads k slots."""
        lm, slots = self.config.transformer, self.config.total_tokens
        place = growing_sequences(lm, slot, pads, 1, k, slots)
        with popxl.name_scope("decode/embedding"):
            x = call_phase(self.embedding, words[: self.config.batch])
        with popxl.name_scope("decode/decoder"):
            x = self._blocks(x, slot, place)
        with popxl.name_scope("decode/lm_head"):
            return call_phase(self.lm_head, x)

    def _blocks(
        self,
        x: popxl.Tensor,
        start: popxl.Tensor,
        place: tuple[popxl.Tensor, popxl.Tensor, popxl.Tensor],
    ) -> popxl.Tensor:
        """All decoder blocks over the slots of a place, from the start on."""
        b, _, m, k = place[-1].shape
        block = CachedBlock(self.config, self.cache)
        phase = self._resized(self.decoder, block, self._block_inputs(b, m, k))
        return call_phase(phase, x, *place, start)


# -- choices ----------------------------------------------------------------------------------


def _is(kind: popxl.Tensor, wanted: RunKind) -> popxl.Tensor:
    return ops.equal(kind, popxl.constant(int(wanted), popxl.int32))


def _nothing(*inputs: popxl.Tensor) -> None:
    """The branch of a run that skips a part without results."""


def _first(x: popxl.Tensor, *others: popxl.Tensor) -> popxl.Tensor:
    """The branch of a run that skips a part: its result stays what it was."""
    return x


def _if(
    condition: popxl.Tensor,
    then: Callable[..., popxl.Tensor | None],
    otherwise: Callable[..., popxl.Tensor | None],
    *inputs: popxl.Tensor,
) -> tuple[popxl.Tensor, ...]:
    """The results of one of two functions of the same inputs."""
    ir = popxl.gcg().ir
    yes, no = (ir.create_graph(_branch, branch, *inputs) for branch in (then, otherwise))
    return ops.conditional(condition, yes, no, inputs, inputs)


def _branch(
    build: Callable[..., popxl.Tensor | None], *inputs: popxl.Tensor
) -> popxl.Tensor | None:
    """A graph is made of a function: this one stands for any callable."""
    return build(*inputs)


def _by_length(
    lengths: Sequence[int],
    branch: Branch,
    _: popxl.Tensor,
    slot: popxl.Tensor,
    *inputs: popxl.Tensor,
) -> popxl.Tensor:
    """The branch for the least length with room for a slot, found by halving."""
    if len(lengths) == 1:
        return branch(lengths[0], slot, *inputs)
    half = len(lengths) // 2
    too_long = ops.greater(
        ops.reshape(slot, ()), popxl.constant(lengths[half - 1] - 1, popxl.int32)
    )
    high, low = (partial(_by_length, part, branch) for part in (lengths[half:], lengths[:half]))
    (y,) = _if(too_long, high, low, _, slot, *inputs)
    return y
