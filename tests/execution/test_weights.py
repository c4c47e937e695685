"""Variables of a session get all their values, and no others."""

from __future__ import annotations

import numpy as np
import pytest

from execution.program import build_program
from execution.weights import load_weights
from modelling.mapping import model_weights
from tests.small_configs import small_config
from utils.errors import UserError
from utils.random_tensors import RandomTensors


@pytest.fixture(scope="module")
def config():
    return small_config(tensor_parallel=2)


@pytest.fixture(scope="module")
def arrays(config) -> dict[str, np.ndarray]:
    return model_weights(config, RandomTensors(config))


@pytest.fixture(scope="module")
def session(config):
    return build_program(config)


def test_mapping_and_variables_agree_in_names_shapes_and_dtypes(session, arrays):
    variables = session.state.fwd.to_dict()
    assert variables.keys() == arrays.keys()
    for key, array in arrays.items():
        assert variables[key].shape_on_host == array.shape, key
        assert variables[key].dtype.as_numpy() == array.dtype, key


def test_loaded_values_come_back(session, arrays):
    load_weights(session, arrays)
    variables = session.state.fwd.to_dict()
    for key in (
        "transformer.decoder.1.attention.heads.qkv.weight",
        "image_prefix.enc.stem.bn2.bias",
    ):
        np.testing.assert_array_equal(session.get_tensor_data(variables[key]), arrays[key])


def test_a_forgotten_weight_is_named(session, arrays):
    short = {key: array for key, array in arrays.items() if key != "lm_head.ln_f.bias"}
    with pytest.raises(UserError, match=r"no value for 1 of .* lm_head\.ln_f\.bias"):
        load_weights(session, short)


def test_a_surplus_weight_is_named(session, arrays):
    with pytest.raises(UserError, match=r"no variable for 1 of .* lm_head\.extra"):
        load_weights(session, {**arrays, "lm_head.extra": np.zeros(1, np.float32)})
