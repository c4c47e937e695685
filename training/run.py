"""A run from its settings: tokenizer, starting weights, data, loop."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from training.checkpoint import find_training_state, step_of
from training.config import TrainConfig
from training.dataset import ImgCptDataset
from training.loop import Trainer
from training.model import Magma
from training.samples import Grouped, Joined, Texts, read_texts, split
from training.weights import load_clip, load_gptj, load_magma
from utils.errors import UserError
from utils.tokenizer import (
    HUB_REPOSITORY,
    SMALL_TOKENIZER,
    SMALL_VOCAB_SIZE,
    load_tokenizer,
    tokenizer_for,
)

if TYPE_CHECKING:
    from transformers import GPT2Tokenizer

_log = logging.getLogger(__name__)


def train(config: TrainConfig) -> Trainer:
    """Trains as the settings say, from the beginning or from a checkpoint.

    Returns:
        The finished run, with its losses.

    Raises:
        UserError: one line for whatever is wrong with settings, files or data.
    """
    config.validate()
    _require_sources(config)
    tokenizer = _tokenizer(config)
    samples, eval_samples = _data(config, tokenizer)
    model, state = _starting_point(config)
    trainer = Trainer(model, config, tokenizer, samples, eval_samples, state)
    trainer.run()
    return trainer


def _require_sources(config: TrainConfig) -> None:
    """A model of the real size takes minutes to build: what is missing is said before."""
    for name in ("load", "checkpoint", "lm_checkpoint", "encoder_checkpoint"):
        path = getattr(config, name)
        # Path.exists raises for some names.
        if path is not None and not os.path.exists(path):  # noqa: PTH110
            raise UserError(f"{name}: {path}: no such file or folder")


def _starting_point(config: TrainConfig) -> tuple[Magma, dict[str, Any] | None]:
    """The model with its weights, and the state of the run that it continues, if any."""
    torch.manual_seed(config.seed)
    model = Magma(config.model, config.layout, config.image_embed_dropout_prob)
    continued = config.save is not None and (Path(config.save) / "latest").is_file()
    source = config.save if continued else config.load
    if source is not None:
        load_magma(model, source)
        if not continued and not config.load_optimizer:
            _log.info("weights of %s; the run begins at step 0", source)
            return model, None
        state = find_training_state(source) or {"step": step_of(source)}
        _log.info("continuing %s after step %d", source, state["step"])
        return model, state
    if config.checkpoint is not None:
        load_magma(model, config.checkpoint)
    if config.lm_checkpoint is not None:
        load_gptj(model, config.lm_checkpoint)
    if config.encoder_checkpoint is not None:
        load_clip(model, config.encoder_checkpoint)
    return model, None


def _tokenizer(config: TrainConfig) -> GPT2Tokenizer:
    rows = config.model.transformer.embedding.real_vocab_size
    places = (config.save, config.load, config.checkpoint, config.lm_checkpoint)
    beside = next((Path(place) for place in places if place and Path(place).exists()), None)
    if config.tokenizer is not None:
        tokenizer = load_tokenizer(config.tokenizer)
    elif beside is not None:
        tokenizer = tokenizer_for(beside, rows)
    else:
        tokenizer = load_tokenizer(SMALL_TOKENIZER if rows <= SMALL_VOCAB_SIZE else HUB_REPOSITORY)
    if len(tokenizer) > rows:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} entries, the word embedding only {rows} rows; "
            "set model: transformer: embedding: real_vocab_size"
        )
    return tokenizer


def _data(config: TrainConfig, tokenizer: GPT2Tokenizer) -> tuple[Joined, Joined]:
    """Training and evaluation samples."""
    on_text = bool(config.train_text_files)
    if on_text == bool(config.train_dataset_dir):
        raise UserError(
            "name the data to train on: either train_dataset_dir (pictures with captions) or "
            "train_text_files (text alone)"
        )
    names, eval_names = (
        (config.train_text_files, config.eval_text_files)
        if on_text
        else (config.train_dataset_dir, config.eval_dataset_dir)
    )
    samples = Joined([_open(name, config, tokenizer, on_text) for name in names])
    if not len(samples):
        raise UserError(f"{', '.join(names)}: no samples; name another dataset")
    if eval_names:
        return samples, Joined([_open(name, config, tokenizer, on_text) for name in eval_names])
    return split(samples, config.eval_dataset_pct, config.seed)


def _open(name: str, config: TrainConfig, tokenizer: GPT2Tokenizer, on_text: bool) -> Grouped:
    limit = config.model.text_tokens
    if on_text:
        return Texts(read_texts(Path(name)), tokenizer, limit, name)
    resolution = config.model.visual.image_resolution
    return ImgCptDataset(name, tokenizer, resolution, limit, skip_bad=config.skip_bad)
