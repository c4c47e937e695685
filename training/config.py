"""Settings of a training run, under the names that MAGMA's configuration files use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from config.config import MagmaConfig
from config.parsing import from_mapping, load_preset
from utils.checkpoint_layout import AdapterLayout, AdapterSpec, configured_layout
from utils.errors import UserError

ADAPTER_TYPES = ("normal", "parallel", "scaled_parallel")
PRECISIONS = ("auto", "no", "bf16", "fp16")


@dataclass
class AdapterOptions:
    """Adapters at one place of each block."""

    adapter_type: str = "normal"
    """normal, parallel or scaled_parallel"""
    downsample_factor: int = 4
    """hidden size over inner size"""
    add_layernorm: bool = False
    """whether the adapter begins with a layer norm"""


@dataclass
class AdapterPlaces:
    """Adapters behind or beside the MLP and the attention; None for a place without."""

    mlp: AdapterOptions | None = None
    attention: AdapterOptions | None = None


@dataclass
class TrainConfig:
    """A training run."""

    batch_size: int = 8
    """samples per optimiser step, over all processes and accumulated parts"""
    train_steps: int = 1000
    """optimiser steps in all"""
    model: MagmaConfig = field(default_factory=lambda: load_preset("tiny"))
    """sizes: name of a preset, or fields of the model's configuration"""
    adapter_config: AdapterPlaces | None = None
    """adapters (mlp, attention); by default those of the model's configuration"""
    seed: int = 0
    """of weights, order of samples, choice of captions, dropout"""

    checkpoint: str | None = None
    """MAGMA checkpoint to start from: file or folder"""
    lm_checkpoint: str | None = None
    """Hugging Face GPT-J folder to start the language model from"""
    encoder_checkpoint: str | None = None
    """CLIP RN50x16 file to start the image encoder from"""
    tokenizer: str | None = None
    """folder or hub name; by default as the model's size says: the small one or GPT-2's"""

    train_dataset_dir: tuple[str, ...] = ()
    """datasets of pictures and captions, as convert_dataset writes them"""
    eval_dataset_dir: tuple[str, ...] = ()
    """datasets for evaluation; without any, pictures with a share of the samples are kept aside"""
    eval_dataset_pct: float = 0.1
    """that share"""
    train_text_files: tuple[str, ...] = ()
    """.txt (a text per line) or .jsonl (key text): trains the language model on text alone"""
    eval_text_files: tuple[str, ...] = ()
    """the same for evaluation"""
    skip_bad: bool = False
    """leave out samples that cannot be read, instead of stopping"""
    num_workers: int = 0
    """processes that read pictures; 0: none besides the training itself"""

    lr: float = 8e-4
    """peak learning rate"""
    min_lr: float = 0.0
    """learning rate at the first step and at lr_decay_iters"""
    image_enc_lr: float | None = None
    """peak learning rate of the image encoder; by default lr"""
    lr_decay_iters: int | None = None
    """step at which the rate has come down to min_lr; by default it stays at its peak"""
    warmup_num_steps: int = 100
    """steps until the peak"""
    weight_decay: float = 0.0
    """of all matrices but embeddings; norms and biases never decay"""
    gradient_clipping: float = 1.0
    """largest norm of the gradient; 0: no limit"""
    gradient_accumulation_steps: int = 1
    """parts that a batch is computed in"""
    mixed_precision: str = "auto"
    """no, bf16 or fp16; auto: bf16 or fp16 on a GPU, no on a CPU"""
    gradient_checkpointing: bool = False
    """compute activations of the language model twice rather than keep them"""

    freeze_lm: bool = True
    """train only adapters of the language model"""
    freeze_img_encoder: bool = False
    """leave the image encoder as it is"""
    image_embed_dropout_prob: float = 0.0
    """share of the image positions' channels that training sets to zero"""
    run_blind: bool = False
    """replace pictures by zeros: what the text alone gives away"""

    save: str | None = None
    """folder for checkpoints and logs; a run continues with the latest checkpoint there"""
    load: str | None = None
    """folder to continue from (one with a file latest, or global_step<N> in it)"""
    load_optimizer: bool = True
    """continue step and optimiser too; otherwise only the weights are taken"""
    save_every: int = 2500
    """steps between checkpoints"""
    eval_every: int = 250
    """steps between evaluations"""
    eval_steps: int = 25
    """batches of an evaluation"""
    log_every: int = 1
    """steps between log entries"""
    sample_prompt: str = ""
    """text that sample captions continue"""
    sample_count: int = 2
    """pictures captioned at each evaluation"""
    sample_tokens: int = 32
    """tokens of a sample caption at most"""
    tensorboard: bool = True
    """write TensorBoard's files into save"""
    wandb_project: str | None = None
    """project of Weights & Biases to log to"""
    name: str = "magma"
    """name of the run in the logs"""

    @property
    def layout(self) -> AdapterLayout:
        """The adapters as the checkpoint's table has them."""
        places = self.adapter_config
        if places is None:
            return configured_layout(self.model)
        return AdapterLayout(mlp=self._spec(places.mlp), attention=self._spec(places.attention))

    def _spec(self, options: AdapterOptions | None) -> AdapterSpec | None:
        if options is None:
            return None
        inner = self.model.transformer.hidden_size // options.downsample_factor
        return AdapterSpec(options.adapter_type, inner, options.add_layernorm)

    def validate(self) -> None:
        """Checks every field.

        Raises:
            UserError: names the first field that is wrong, its value and what is allowed.
        """
        self.model.validate()
        for name in _POSITIVE:
            value = getattr(self, name)
            _require(0 < value < math.inf, name, value, "greater than 0")
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            _require(value is None or 0 <= value < math.inf, name, value, "0 or greater")
        _require(self.seed < _SEEDS, "seed", self.seed, f"below {_SEEDS}")
        for name in _SHARES:
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "in 0..1, below 1")
        _require(
            self.mixed_precision in PRECISIONS,
            "mixed_precision",
            self.mixed_precision,
            f"one of {', '.join(PRECISIONS)}",
        )
        decay = self.lr_decay_iters
        _require(
            decay is None or decay > self.warmup_num_steps,
            "lr_decay_iters",
            decay,
            f"greater than warmup_num_steps ({self.warmup_num_steps})",
        )
        self._validate_adapters()

    def _validate_adapters(self) -> None:
        for place, options in vars(self.adapter_config or AdapterPlaces()).items():
            if options is None:
                continue
            where, hidden = f"adapter_config: {place}", self.model.transformer.hidden_size
            kind, factor = options.adapter_type, options.downsample_factor
            _require(
                kind in ADAPTER_TYPES,
                f"{where}: adapter_type",
                kind,
                f"one of {', '.join(ADAPTER_TYPES)}",
            )
            _require(
                factor > 0 and hidden % factor == 0,
                f"{where}: downsample_factor",
                factor,
                f"a divisor of the hidden size {hidden}",
            )


_POSITIVE = (
    "batch_size",
    "train_steps",
    "gradient_accumulation_steps",
    "lr",
    "save_every",
    "eval_every",
    "eval_steps",
    "log_every",
    "sample_tokens",
)
_NOT_NEGATIVE = (
    "min_lr",
    "image_enc_lr",
    "weight_decay",
    "gradient_clipping",
    "num_workers",
    "warmup_num_steps",
    "sample_count",
    "seed",
)
_SEEDS = 2**62  # torch's end at 2**64, and each pass over the data takes the next one
_SHARES = ("eval_dataset_pct", "image_embed_dropout_prob")


def _require(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise UserError(f"{name} is {value}; it must be {allowed}")


def read_config(values: Mapping[str, Any], where: str) -> TrainConfig:
    """The validated settings that a mapping of field names holds.

    Args:
        values: as a YAML file gives them; ``model`` may be a preset's name, a folder or file may
            stand alone where several are allowed.
        where: what to call it in errors.

    Raises:
        UserError: unknown name (with the nearest one), wrong type or value.
    """
    values = dict(values)
    model = values.pop("model", "tiny")
    for entry in fields(TrainConfig):
        if entry.type == "tuple[str, ...]" and isinstance(values.get(entry.name), str):
            values[entry.name] = [values[entry.name]]
    config: TrainConfig = from_mapping(TrainConfig, values, where)
    config.model = (
        load_preset(model)
        if isinstance(model, str)
        else from_mapping(MagmaConfig, model, f"{where}: model")
    )
    config.validate()
    return config


def read_yaml(path: Path) -> dict[str, Any]:
    """The fields that a YAML file holds.

    Raises:
        UserError: the file is missing, or is no YAML with fields.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the configuration: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected fields of a training run, found {str(values)[:60]!r}")
    return values
