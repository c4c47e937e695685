"""One program that recomputes the whole sequence: pictures and token ids in, logits out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import popdist
import popxl
import popxl_addons as addons
from popxl import ops
from popxl_addons.patterns import apply_pre_alias_patterns

from config.config import MagmaConfig
from execution.engine import (
    ENGINE_CHOICE,
    EngineOptions,
    memory_and_files,
    said_of_this_machine,
)
from execution.phases import Phase, Phases, build_phases, call_phase
from modelling.clip_resnet.stem import IMAGE_CHANNELS
from utils.errors import UserError


def build_program(config: MagmaConfig, engine: EngineOptions = ENGINE_CHOICE) -> addons.TaskSession:
    """Builds the graphs of a configuration and compiles them.

    Args:
        config: A validated configuration.
        engine: How it is run.

    Returns:
        A session with the inputs ``words`` (b·t,) int32 and ``image`` (b, 3, y, x), the output
        ``logits`` (b·s, v/r), and the variables under ``state.fwd``. With r > 1 replicas, arrays
        on the host have a leading axis r. The variables have no values yet.

    Raises:
        UserError: A distributed launch has another number of replicas than the configuration, or
            there is no device such as the environment asks for.
    """
    ir = create_ir(config, engine)
    with ir.main_graph, popxl.in_sequence():
        phases = build_phases(config)
        inputs, outputs = _create_streams(config, phases)
        variables: dict[str | int, popxl.Tensor] = {}
        for phase in phases:
            variables.update(phase.create_variables())
        _call_phases(phases, inputs, outputs, config.batch)
    return create_session(ir, phases, inputs, outputs, variables)


def create_ir(config: MagmaConfig, engine: EngineOptions) -> popxl.Ir:
    """An Ir with as many replicas as a configuration asks for, and the options of its engine.

    Args:
        config: A validated configuration.
        engine: How it is run.

    Raises:
        UserError: A distributed launch has another number of replicas than the configuration, or
            the engine lacks what is asked for.
    """
    r = config.tensor_parallel
    ir = popxl.Ir("popdist" if popdist.isPopdistEnvSet() else r)
    if ir.replication_factor != r:
        raise UserError(
            f"the launcher started {ir.replication_factor} replicas, but tensor_parallel is {r}; "
            "make them equal"
        )
    engine.apply(ir)
    return ir


def create_session(
    ir: popxl.Ir,
    phases: Iterable[Phase],
    inputs: addons.InputStreams,
    outputs: addons.OutputStreams,
    variables: Mapping[str | int, popxl.Tensor],
) -> addons.TaskSession:
    """Compiles a finished program of phases.

    Args:
        ir: The program.
        phases: All phases that it calls.
        inputs: Its input streams.
        outputs: Its output streams.
        variables: The variables of the phases, by flat key below the state's root.

    Raises:
        UserError: There is no device such as the environment asks for.
    """
    for phase in phases:
        addons.set_graph_available_memory_proportion_by_ipu(
            phase.graph.graph, phase.memory_proportions
        )
    apply_pre_alias_patterns(ir)
    with said_of_this_machine(), memory_and_files():
        return addons.TaskSession(
            inputs=inputs,
            outputs=outputs,
            state=addons.NamedTensors(fwd=addons.NamedTensors.from_dict(dict(variables))),
            ir=ir,
            device_desc="ipu_hw",
            # Weights are never changed on the device.
            weights_to_host_on_exit=False,
        )


def _create_streams(
    config: MagmaConfig, phases: Phases
) -> tuple[addons.InputStreams, addons.OutputStreams]:
    side = config.visual.image_resolution
    inputs = addons.InputStreams(
        words=((config.batch * config.text_tokens,), popxl.int32),
        image=((config.batch, IMAGE_CHANNELS, side, side), config.visual.dtype),
    )
    logits = phases.lm_head.result
    return inputs, addons.OutputStreams(logits=(logits.shape, logits.dtype))


def _call_phases(
    phases: Phases, inputs: addons.InputStreams, outputs: addons.OutputStreams, b: int
) -> None:
    """Fills the main graph. The engine reports time and bytes by its outermost name scopes."""
    with popxl.name_scope("image_prefix"):
        image = ops.host_load(inputs.image)
        for phase in phases.image_prefix:
            image = call_phase(phase, image)
    with popxl.name_scope("embedding"):
        words = call_phase(phases.embedding, ops.host_load(inputs.words))
        x = _image_before_words(image, words, b)
    with popxl.name_scope("decoder"):
        x = call_phase(phases.decoder, x)
    with popxl.name_scope("lm_head"):
        ops.host_store(outputs.logits, call_phase(phases.lm_head, x))


def _image_before_words(image: popxl.Tensor, words: popxl.Tensor, b: int) -> popxl.Tensor:
    """Joins (b, i, h) and (b·t, h) to (b·s, h): in each sequence the picture comes first."""
    h = words.shape[1]
    sequence = ops.concat([image, ops.reshape(words, (b, words.shape[0] // b, h))], axis=1)
    return ops.reshape(sequence, (b * sequence.shape[1], h))
