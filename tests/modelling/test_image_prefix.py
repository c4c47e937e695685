"""Encoder, projection and layer norm against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modelling.image_prefix import ImagePrefix, ImageProjection
from tests.modelling.one_module import equal_on_all, on_all, run_module
from tests.reference.resnet import flatten_row_major
from tests.small_configs import BATCHES, PRECISIONS, TENSOR_PARALLEL, small_config
from tests.tolerances import BY_PRECISION, assert_close


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tensor_parallel", TENSOR_PARALLEL)
def test_image_prefix(pair, rng, tensor_parallel, precision, batch):
    tensors, reference = pair(image_resolution=96)
    config = small_config(tensor_parallel, precision, batch, image_resolution=96)
    weights = ImagePrefix.mapping(config, tensors, "image_prefix.")
    image = rng.normal(size=(batch, 3, 1, 1)) + rng.normal(size=(batch, 3, 96, 96))
    ours = run_module(
        lambda: ImagePrefix(config),
        [on_all(image.astype(precision), tensor_parallel)],
        weights,
        tensor_parallel,
    )
    expected = reference.embed_image(torch.from_numpy(image).float()).numpy()
    assert expected.shape == (batch, 9, 64)
    assert_close(equal_on_all(ours), expected, BY_PRECISION[precision])


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_projection_takes_cells_row_by_row(pair, rng, precision, batch):
    """A map that is not square tells rows from columns."""
    tensors, reference = pair(image_resolution=96)
    config = small_config(precision=precision, batch=batch, image_resolution=96)
    weights = ImageProjection.mapping(config, tensors, "image_prefix.")
    x = rng.normal(size=(batch, config.visual.embed_dim, 2, 5)).astype(np.float32)
    ours = run_module(lambda: ImageProjection(config), [on_all(x.astype(precision), 1)], weights)
    with torch.no_grad():
        expected = reference.ln(reference.proj(flatten_row_major(torch.from_numpy(x))))
    assert_close(equal_on_all(ours), expected.numpy(), BY_PRECISION[precision])
