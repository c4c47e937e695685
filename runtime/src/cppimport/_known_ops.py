"""The custom ops that the engine has, as classes like those of their compiled bindings."""

from __future__ import annotations

from collections.abc import Mapping

# Declares the op's kind.
import popxl_addons.ops.rotary_pos_embed  # noqa: F401
from popart._internal.ir import Graph, Op, Settings, create_op_in_graph


class RotaryPosEmbedOp:
    """Rotary position embedding whose pairs are (x[i], x[i + rotary_dim / 2])."""

    @staticmethod
    def createOpInGraph(
        graph: Graph,
        inputs: Mapping[int, str],
        outputs: Mapping[int, str],
        rotary_dim: int,
        settings: Settings,
    ) -> Op:
        """Inputs are x (batch, seq, heads, head_dim), sin and cos (1 or batch, 1 or seq, h)."""
        attrs = {"rotary_dim": rotary_dim, "halves": True}
        return create_op_in_graph(graph, "RotaryPosEmbed", inputs, outputs, settings, attrs)


# The last two parts of a binding's name, and the classes that its source must name.
KNOWN_OPS: dict[str, dict[str, type]] = {
    "rotary_pos_embed.rotary_pos_embed_binding": {"RotaryPosEmbedOp": RotaryPosEmbedOp},
}
