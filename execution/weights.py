"""Where the phases keep their weights: remote buffers, and the variables that are their entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import popxl
import popxl_addons as addons
from popxl_addons.remote import NamedRemoteBuffers

from utils.errors import UserError


def create_buffers(factories: addons.NamedVariableFactories, entries: int) -> NamedRemoteBuffers:
    """One remote buffer for each weight of a graph, with an entry for each time it is called."""
    # Replicas that share a weight each hold all of it: shards exist only where the model cuts.
    return addons.named_variable_buffers(factories, entries=entries, shard_over_dict=False)


def create_variables(
    factories: addons.NamedVariableFactories, buffers: NamedRemoteBuffers, keys: Sequence[str]
) -> dict[str, popxl.Tensor]:
    """The variables that fill the buffers of a graph, by flat key below the state's root.

    They have a shape and a dtype only, until :func:`load_weights` gives them values.

    Args:
        factories: What the variables look like.
        buffers: Where they lie, made by :func:`create_buffers`.
        keys: Where the variables of each entry lie below the state's root.
    """
    variables: dict[str, popxl.Tensor] = {}
    for entry, key in enumerate(keys):
        named = factories.init_remote(buffers, entry, prefix=key, empty=True)
        variables |= addons.NamedTensors.from_dict({key: named}).to_dict()
    return variables


def load_weights(session: addons.TaskSession, arrays: Mapping[str, np.ndarray]) -> None:
    """Gives every variable of a session its value.

    Args:
        session: A session whose state has the root ``fwd``.
        arrays: By flat key below that root, in the shape that each variable has on the host. They
            are handed on as they are, and must not be changed afterwards.

    Raises:
        UserError: A variable would be left without a value, or a value without a variable.
    """
    variables = session.state.fwd.to_dict()
    for kind, keys in (
        ("no value for", variables.keys() - arrays.keys()),
        ("no variable for", arrays.keys() - variables.keys()),
    ):
        if keys:
            raise UserError(
                f"there is {kind} {len(keys)} of the model's weights, such as {min(keys)}; make "
                "the weights with the configuration of the session"
            )
    session.write_variables_data({variables[key]: array for key, array in arrays.items()})
