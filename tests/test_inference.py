"""The benchmark program: one line of numbers, counted honestly."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from config.parsing import load_preset
from inference import inference, main, random_inputs
from modelling.clip_resnet.resnet import convolution_flops
from tests.reference.resnet import modified_resnet
from tests.small_configs import small_config
from utils.checkpoint_writer import write_random_checkpoint
from utils.errors import UserError

LINE = r"Duration: \d+\.\d+ s Throughput: \d+\.\d+ samples/s TFLOPS/s: \d+\.\d+\n"
SMALL = ["--config", "tiny", "--sequence_length", "8"]


def test_prints_one_line_of_numbers(capsys: pytest.CaptureFixture[str]):
    assert main(SMALL) == 0
    assert re.fullmatch(LINE, capsys.readouterr().out)


def test_takes_weights_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "weights.pt"
    write_random_checkpoint(path, load_preset("tiny"))
    assert main([*SMALL, "--checkpoint", str(path), "--trace", str(tmp_path / "t.json")]) == 0
    assert re.fullmatch(LINE, capsys.readouterr().out)
    assert (tmp_path / "t.json").exists()


def test_errors_of_the_user_are_one_line(capsys: pytest.CaptureFixture[str]):
    assert main(["--config", "tinny"]) == 2
    assert re.fullmatch(r"error: unknown config 'tinny'.*'tiny'.*\n", capsys.readouterr().err)


def test_an_unfit_configuration_is_refused_before_building():
    config = small_config()
    config.transformer.execution.tensor_parallel = 3
    with pytest.raises(UserError, match="tensor_parallel is 3"):
        inference(config)


@pytest.mark.parametrize("resolution", [64, 96, 70])
def test_convolutions_are_counted_as_torch_counts_them(resolution: int):
    visual = small_config(image_resolution=resolution).visual
    network = modified_resnet(visual.layers, visual.width, resolution).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, resolution, resolution))
    assert convolution_flops(visual) == counter.get_total_flops()


@pytest.mark.parametrize("r", [1, 2])
def test_random_ids_are_words_of_the_vocabulary_on_their_replica(r: int):
    config = small_config(tensor_parallel=r)
    session = inference(config)
    words = random_inputs(session, config)[session.inputs.words].reshape(r, -1)
    rows = config.transformer.embedding_rows_per_shard
    ids = words + np.arange(r)[:, None] * rows
    assert (ids == ids[0]).all()
    assert ids.min() >= 0
    assert ids.max() < config.transformer.embedding.real_vocab_size
