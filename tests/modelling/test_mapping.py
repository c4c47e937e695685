"""The mapping of a whole checkpoint: every tensor once, the published layout, few copies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from config.config import MagmaConfig
from modelling.mapping import model_weights
from tests.small_configs import TENSOR_PARALLEL, small_config
from utils.checkpoint_layout import expected_tensors
from utils.errors import UserError
from utils.random_tensors import RandomTensors

LAYER = "lm.transformer.h.1."


class Counting(Mapping[str, np.ndarray]):
    """A checkpoint that counts how often each tensor is read."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self.tensors, self.reads = tensors, Counter()

    def __getitem__(self, name: str) -> np.ndarray:
        self.reads[name] += 1
        return self.tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def tensors_of(config: MagmaConfig) -> dict[str, np.ndarray]:
    return dict(RandomTensors(config, positions=16))


@pytest.mark.parametrize("options", [{}, {"adapter_layer_norm": True}, {"adapter_mode": None}])
def test_every_parameter_is_read_once_and_no_buffer_at_all(options: dict):
    config = small_config(tensor_parallel=2, **options)
    checkpoint = Counting(tensors_of(config))
    model_weights(config, checkpoint)
    rows = expected_tensors(config)
    assert checkpoint.reads == {name: 1 for name, row in rows.items() if row.kind.required}


@pytest.mark.parametrize("r", TENSOR_PARALLEL)
def test_no_number_is_lost_or_invented(r: int):
    """The variables hold the checkpoint's numbers, once, and zeros that fill the embedding."""
    config = small_config(tensor_parallel=r)
    tensors = tensors_of(config)
    required = [tensors[n] for n, row in expected_tensors(config).items() if row.kind.required]
    ours = np.sort(np.concatenate([a.ravel() for a in model_weights(config, tensors).values()]))
    theirs = np.concatenate([a.ravel() for a in required])
    filling = np.zeros(ours.size - theirs.size, theirs.dtype)
    rows = config.transformer.embedding_rows_per_shard * r - 106
    assert filling.size == rows * config.transformer.hidden_size
    np.testing.assert_array_equal(ours, np.sort(np.concatenate([theirs, filling])))


@pytest.mark.parametrize("r", TENSOR_PARALLEL)
def test_columns_of_qkv_lie_per_head(r: int):
    config = small_config(tensor_parallel=r)
    tensors = tensors_of(config)
    key = "transformer.decoder.1.attention.heads.qkv.weight"
    shards = model_weights(config, tensors)[key].reshape(r, 64, 4 // r, 3, 16)
    for head in range(4):
        for which, name in enumerate(("q_proj", "k_proj", "v_proj")):
            rows = tensors[f"{LAYER}attn.attention.{name}.weight"][16 * head : 16 * head + 16]
            replica, local = divmod(head, 4 // r)
            np.testing.assert_array_equal(shards[replica, :, local, which], rows.T)


@pytest.mark.parametrize("r", TENSOR_PARALLEL)
def test_only_what_is_joined_or_filled_is_copied(r: int):
    config = small_config(tensor_parallel=r)
    tensors = tensors_of(config)
    arrays = model_weights(config, tensors)
    sources = list(tensors.values())
    copied = {
        key for key, a in arrays.items() if not any(np.may_share_memory(a, t) for t in sources)
    }
    expected = {f"transformer.decoder.{i}.attention.heads.qkv.weight" for i in range(2)}
    assert copied == expected | {"transformer.embeddings.word.weight"}


def test_precisions_of_encoder_and_language_model_are_kept_apart():
    config = small_config()
    config.visual.precision = type(config.visual.precision).float16
    arrays = model_weights(config, tensors_of(config))
    for key, array in arrays.items():
        half = key.startswith("image_prefix.enc.")
        assert array.dtype == (np.float16 if half else np.float32), key


def test_a_missing_tensor_is_named():
    config = small_config()
    tensors = tensors_of(config)
    del tensors[f"{LAYER}mlp.1.adapter.2.bias"]
    with pytest.raises(UserError, match=r"h\.1\.mlp\.1\.adapter\.2\.bias is missing"):
        model_weights(config, tensors)


def test_a_surplus_tensor_is_named():
    config = small_config()
    extra = {"lm.transformer.wpe.weight": np.zeros((4, 4), np.float32)}
    with pytest.raises(UserError, match=r"1 tensors .* not use, such as lm\.transformer\.wpe"):
        model_weights(config, {**tensors_of(config), **extra})


def test_harmless_surplus_is_ignored_by_name():
    config = small_config()
    extra = {"image_prefix.enc.attnpool.positional_embedding": np.zeros((2, 4), np.float32)}
    assert model_weights(config, {**tensors_of(config), **extra})
