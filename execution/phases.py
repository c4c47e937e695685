"""The phases of MAGMA: compute graphs whose weights are loaded, used and dropped one after another.

Each phase is built once. Where a model repeats a block, the blocks share one graph and one set of
buffers with an entry per block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import popxl
import popxl_addons as addons
from popxl import ops
from popxl_addons.remote import NamedRemoteBuffers

from config.config import GPTJConfig, MagmaConfig
from execution.weights import create_buffers, create_variables
from modelling.clip_resnet.resnet import block_shapes
from modelling.clip_resnet.stem import IMAGE_CHANNELS, Stem
from modelling.gptj.decoder import DecoderBlock
from modelling.gptj.embedding import Embeddings
from modelling.gptj.lm_head import LMHead
from modelling.image_prefix import ImageProjection

EMBEDDING_KEYS = ("transformer.embeddings",)
HEAD_KEYS = ("lm_head",)


@dataclass(frozen=True)
class Phase:
    """A compute graph from one activation to one activation, and the variables it needs.

    Attributes:
        keys: Where the variables of each entry lie below the state's root. With several entries
            the graph is repeated, once for each.
        graph: The graph; its named arguments are the weights. Of its other inputs the first is the
            activation.
        factories: What its variables look like, under the names of the graph's arguments.
        buffers: Where its variables lie, under the same names.
        load: The graph that loads the weights of an entry.
        names: What it gives, in order.
        memory_proportions: Share of each IPU's memory for temporaries.
        numbered: Whether the last input of the graph is the number of the entry, () int32.
    """

    keys: tuple[str, ...]
    graph: addons.GraphWithNamedArgs
    factories: addons.NamedVariableFactories
    buffers: NamedRemoteBuffers
    load: addons.GraphWithNamedArgs
    names: list[str]
    memory_proportions: tuple[float, ...]
    numbered: bool = False

    @classmethod
    def of_module(
        cls,
        module: addons.Module,
        inputs: Sequence[popxl.TensorSpec],
        keys: tuple[str, ...],
        memory_proportions: tuple[float, ...],
        numbered: bool = False,
    ) -> Phase:
        """The phase that builds a module for its inputs, and sets up its buffers."""
        factories, graph = module.create_graph(*inputs)
        buffers = create_buffers(factories, len(keys))
        load, names = addons.load_remote_graph(buffers, len(keys))
        return cls(keys, graph, factories, buffers, load, names, memory_proportions, numbered)

    def resized(self, module: addons.Module, inputs: Sequence[popxl.TensorSpec]) -> Phase:
        """The same weights behind the graph of a module like this phase's, for other inputs."""
        factories, graph = module.create_graph(*inputs)
        assert factories.to_dict().keys() == self.factories.to_dict().keys(), "other weights"
        return replace(self, graph=graph)

    def create_variables(self) -> dict[str, popxl.Tensor]:
        """Its variables by flat key below the state's root, without values yet."""
        return create_variables(self.factories, self.buffers, self.keys)

    @property
    def result(self) -> popxl.TensorSpec:
        """Shape and dtype of the activation that the phase returns."""
        return self.graph.graph.outputs[0].spec


@dataclass(frozen=True)
class Phases:
    """All phases of a configuration.

    Attributes:
        image_prefix: From pictures (b, 3, y, x) to (b, i, h), one phase after the other.
        embedding: From token ids (b·t,) to (b·t, h).
        decoder: From (b·s, h) to (b·s, h), once per layer.
        lm_head: From (b·s, h) to the replica's logits (b·s, v/r).
    """

    image_prefix: tuple[Phase, ...]
    embedding: Phase
    decoder: Phase
    lm_head: Phase

    def __iter__(self) -> Iterator[Phase]:
        """In the order of execution."""
        return iter((*self.image_prefix, self.embedding, self.decoder, self.lm_head))


def build_phases(config: MagmaConfig) -> Phases:
    """Builds the graphs of all phases in the current Ir.

    Args:
        config: A validated configuration.

    Returns:
        The phases. Nothing is called yet.
    """
    image_prefix = image_prefix_phases(config, config.batch)
    b, t, i = config.batch, config.text_tokens, image_prefix[-1].result.shape[1]
    transformer = config.transformer
    words = popxl.TensorSpec((b * t,), popxl.int32)
    hidden = popxl.TensorSpec((b * (i + t), transformer.hidden_size), transformer.dtype)
    proportions = transformer.execution.available_memory_proportion

    def phase(module: addons.Module, x: popxl.TensorSpec, keys: tuple[str, ...]) -> Phase:
        return Phase.of_module(module, [x], keys, proportions)

    return Phases(
        image_prefix,
        phase(Embeddings(transformer), words, EMBEDDING_KEYS),
        phase(DecoderBlock(transformer), hidden, decoder_keys(transformer)),
        phase(LMHead(transformer), hidden, HEAD_KEYS),
    )


def decoder_keys(config: GPTJConfig) -> tuple[str, ...]:
    """Where the variables of each block lie below the state's root."""
    return tuple(f"transformer.decoder.{n}" for n in range(config.layers))


def image_prefix_phases(config: MagmaConfig, pictures: int) -> tuple[Phase, ...]:
    """Stem, first block and repeated blocks of each layer, projection, in the current Ir.

    Args:
        config: A validated configuration.
        pictures: How many to encode at a time.
    """
    visual = config.visual
    side = visual.image_resolution
    x = popxl.TensorSpec((pictures, IMAGE_CHANNELS, side, side), visual.dtype)
    modules: list[tuple[tuple[str, ...], addons.Module]] = [(("enc.stem",), Stem(visual))]
    # Blocks of one layer after its first have equal sizes.
    for _, group in groupby(block_shapes(visual), lambda shape: (shape.layer, shape.index > 0)):
        shapes = list(group)
        modules.append((tuple(f"enc.{shape.key}" for shape in shapes), shapes[0].module()))
    modules.append((("",), ImageProjection(config)))
    phases = []
    for names, module in modules:
        keys = tuple(f"image_prefix.{name}".rstrip(".") for name in names)
        proportions = visual.execution.available_memory_proportion
        phases.append(Phase.of_module(module, [x], keys, proportions))
        x = phases[-1].result
    return tuple(phases)


def call_phase(phase: Phase, x: popxl.Tensor, *fixed: popxl.Tensor) -> popxl.Tensor:
    """Loads a phase's weights and calls its graph in the current graph, for entry after entry.

    Args:
        phase: The phase.
        x: Its input.
        fixed: Further inputs, the same for every entry.

    Returns:
        Its output.
    """
    return call_phase_in_parts([phase], x, *fixed)


def call_phase_in_parts(
    parts: Sequence[Phase], x: popxl.Tensor, *fixed: popxl.Tensor
) -> popxl.Tensor:
    """As :func:`call_phase`, part after part of the rows, with weights that are loaded once.

    Args:
        parts: For each part the phase that computes it, all over the same weights. With several
            parts, the first inputs of their graphs say how x and fixed are cut, along axis 0.
        x: The input of all of them together.
        fixed: Further inputs, likewise.

    Returns:
        The outputs of the parts, one behind the other.
    """
    phase = parts[0]

    def load_and_call(
        x: popxl.Tensor, entry: popxl.Tensor, fixed: Sequence[popxl.Tensor]
    ) -> popxl.Tensor:
        weights = addons.NamedTensors.pack(phase.names, phase.load.call(entry))
        numbers = (entry,) if phase.numbered else ()
        inputs = (x, *fixed)
        cut = [_cut(t, parts, place) for place, t in enumerate(inputs)]
        results = []
        for part, own in zip(parts, zip(*cut, strict=True), strict=True):
            (y,) = part.graph.bind(weights).call(*own, *numbers)
            results.append(y)
        return results[0] if len(results) == 1 else ops.concat(results, axis=0)

    def step(
        x: popxl.Tensor, entry: popxl.Tensor, fixed: list[popxl.Tensor]
    ) -> tuple[popxl.Tensor, popxl.Tensor]:
        return load_and_call(x, entry, fixed), entry + 1

    entry = popxl.constant(0, popxl.int32, "entry")
    if len(phase.keys) == 1:
        return load_and_call(x, entry, fixed)
    # The counter is carried along, since a loop's body cannot see which turn it is.
    body = popxl.gcg().ir.create_graph(step, x, entry, list(fixed))
    y, _ = ops.repeat(body, len(phase.keys), x, entry, *fixed)
    return y


def _cut(tensor: popxl.Tensor, parts: Sequence[Phase], place: int) -> list[popxl.Tensor]:
    """The input of each part at some place, cut out of the input of all."""
    if len(parts) == 1:
        return [tensor]
    sizes = [part.graph.graph.inputs[place].shape[0] for part in parts]
    return list(ops.split(tensor, sizes, axis=0))
