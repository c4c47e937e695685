"""From a checkpoint to the variables of the whole model: no tensor used twice or forgotten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from config.config import MagmaConfig
from modelling.gptj.decoder import DecoderBlock
from modelling.gptj.embedding import Embeddings
from modelling.gptj.lm_head import LMHead
from modelling.image_prefix import ImagePrefix
from modelling.shards import Arrays, prefixed
from utils.checkpoint_layout import expected_tensors, is_ignored
from utils.errors import UserError


def model_weights(config: MagmaConfig, checkpoint: Arrays) -> dict[str, np.ndarray]:
    """Cuts a whole checkpoint into the model's variables.

    Args:
        config: Decides sizes, precisions and the number of shards.
        checkpoint: Tensors by canonical name.

    Returns:
        Arrays by flat key below ``session.state.fwd``, in the shape that each variable has on the
        host. They are views of the checkpoint where the precision agrees, except queries, keys and
        values, which are joined, and an embedding that needs filling.

    Raises:
        UserError: A tensor is absent, has another shape, or belongs to no part of this model.
    """
    tensors = _UsedOnce(checkpoint)
    transformer = config.transformer
    image_prefix = ImagePrefix.mapping(config, tensors, "image_prefix.")
    embeddings = Embeddings.mapping(transformer, tensors, "lm.transformer.")
    arrays = prefixed("image_prefix", image_prefix)
    arrays |= prefixed("transformer.embeddings", embeddings)
    for i in range(transformer.layers):
        block = DecoderBlock.mapping(transformer, tensors, f"lm.transformer.h.{i}.")
        arrays |= prefixed(f"transformer.decoder.{i}", block)
    arrays |= prefixed("lm_head", LMHead.mapping(transformer, tensors, "lm."))
    _check_left_over(config, tensors)
    return arrays


class _UsedOnce(Mapping[str, np.ndarray]):
    """A checkpoint that remembers what was read and gives nothing twice."""

    def __init__(self, checkpoint: Arrays):
        self._checkpoint = checkpoint
        self.used: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        assert name not in self.used, f"two variables are made of {name}"
        self.used.add(name)
        return self._checkpoint[name]

    def __contains__(self, name: object) -> bool:
        return name in self._checkpoint

    def __iter__(self) -> Iterator[str]:
        return iter(self._checkpoint)

    def __len__(self) -> int:
        return len(self._checkpoint)


def _check_left_over(config: MagmaConfig, tensors: _UsedOnce) -> None:
    """Names a tensor that no variable was made of, unless it is known to be superfluous."""
    optional = {name for name, row in expected_tensors(config).items() if not row.kind.required}
    known = tensors.used | optional
    surplus = [name for name in tensors if name not in known and not is_ignored(name)]
    if surplus:
        raise UserError(
            f"the checkpoint has {len(surplus)} tensors that this configuration does not use, "
            f"such as {surplus[0]}; choose the configuration that it was trained with"
        )
