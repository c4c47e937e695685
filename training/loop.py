"""The training loop.

A run's state is its weights, the optimiser's moments and the number of steps: samples are drawn by
their number (`training.samples`), and each step seeds dropout by its own number. So a run that was
killed goes on from its last checkpoint with the losses of an unbroken one.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from torch import nn
from torch.utils.data import DataLoader

from training.checkpoint import keep_tokenizer, save_checkpoint
from training.config import TrainConfig
from training.model import Magma
from training.optimiser import freeze, make_optimiser, set_learning_rate
from training.run_log import RunLog, trackers
from training.samples import Collate, Draws, Samples, encode
from utils.errors import UserError

if TYPE_CHECKING:
    from transformers import GPT2Tokenizer

_log = logging.getLogger(__name__)


class _Loss(nn.Module):
    """What accelerate prepares; it would mark and change the model itself, which outlives it."""

    def __init__(self, magma: Magma) -> None:
        super().__init__()
        self.magma = magma

    def forward(self, **batch: torch.Tensor) -> torch.Tensor:
        return self.magma(**batch)


class Trainer:
    """Trains one model on one dataset.

    Attributes:
        step: optimiser steps done.
        losses: the training loss of each step of this process's life, in order.
        eval_losses: (step, loss) of each evaluation.
    """

    def __init__(
        self,
        model: Magma,
        config: TrainConfig,
        tokenizer: GPT2Tokenizer,
        samples: Samples,
        eval_samples: Samples | None = None,
        resume_from: dict[str, Any] | None = None,
    ) -> None:
        """Prepares a run.

        Args:
            model: the model with its starting weights.
            config: settings; paths of data and of starting weights are not looked at here.
            tokenizer: for sample captions; its end-of-text token pads and ends captions.
            samples: what to train on.
            eval_samples: what to evaluate on; None for no evaluation.
            resume_from: what `training.checkpoint.find_training_state` gave.

        Raises:
            UserError: an empty dataset, or a batch that cannot be divided.
        """
        if len(samples) == 0:
            raise UserError("the training data has no samples; name another dataset")
        self._config = config
        self._tokenizer = tokenizer
        self._save = None if config.save is None else Path(config.save)
        self._accelerator = _accelerator(config)
        self.step = 0
        self.losses: list[float] = []
        self.eval_losses: list[tuple[int, float]] = []
        self._draws = Draws(samples, config.seed, config.skip_bad)
        self._eval_samples = (
            eval_samples if eval_samples is not None and len(eval_samples) else None
        )
        self._micro = _micro_batch(config, self._accelerator)
        freeze(model, config)
        model.blind = config.run_blind
        if config.gradient_checkpointing:
            model.lm.activation_checkpointing_enable({"use_reentrant": False})
        self._plain = model
        self._optimiser = make_optimiser(model, config)
        if resume_from is not None:
            self._resume(resume_from)
        kind = self._accelerator.distributed_type
        if kind is DistributedType.DEEPSPEED:
            plugin = self._accelerator.state.deepspeed_plugin
            plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = self._micro
        # Each process holds a part of the moments then, in a form of the library's own.
        self._sharded = kind in (DistributedType.DEEPSPEED, DistributedType.FSDP)
        self._model, self._optimiser = self._accelerator.prepare(_Loss(model), self._optimiser)

    def run(self) -> None:
        """Trains up to the last step, with evaluations, sample captions and checkpoints.

        Raises:
            UserError: a sample cannot be read, the loss is not finite, or a file cannot be written.
        """
        config = self._config
        if self._save is None:
            _log.warning("nothing of this run is kept: no folder to save in was named (save)")
        self._log = RunLog(config, self._accelerator, self.step)
        batches = self._batches(self._draws, self.step * config.batch_size, config.train_steps)
        frozen = _checksums(self._plain)
        first = self.step
        while self.step < config.train_steps:
            loss = self._train_step(batches)
            self.losses.append(loss)
            self.step += 1
            self._log.advance(loss)
            if self.step == first + 1:
                _require_unchanged(self._plain, frozen)
            self._after_step(loss)
        self._log.close()

    def _after_step(self, loss: float) -> None:
        config, step = self._config, self.step
        last = step == config.train_steps
        if step % config.log_every == 0 or last:
            rate = self._optimiser.param_groups[0]["lr"]
            self._log.write(step, {"train/loss": loss, "train/lr": rate})
        if self._eval_samples is not None and (step % config.eval_every == 0 or last):
            eval_loss = self.evaluate()
            self.eval_losses.append((step, eval_loss))
            self._log.write(step, {"eval/loss": eval_loss})
            if self._accelerator.is_main_process:
                self._log.captions(step, self.captions(self._eval_samples, config.sample_count))
        if self._save is not None and (step % config.save_every == 0 or last):
            self._save_checkpoint(self._save)

    def _train_step(self, batches: Iterator[dict[str, torch.Tensor]]) -> float:
        """One optimiser step; returns the loss, the mean over its parts and over processes."""
        config, accelerator = self._config, self._accelerator
        set_learning_rate(self._optimiser, self.step, config)
        self._model.train()
        total = torch.zeros((), device=accelerator.device)
        for part in range(config.gradient_accumulation_steps):
            batch = next(batches)
            # Dropout depends on the step, whatever was drawn before, and differs by process.
            place = f"{config.seed}/{self.step}/{part}/{accelerator.process_index}"
            torch.manual_seed(random.Random(place).getrandbits(63))
            with accelerator.accumulate(self._model):
                loss = self._model(**batch)
                total += loss.detach() / config.gradient_accumulation_steps
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    mean = float(accelerator.reduce(total, "mean"))
                    self._require_finite("loss", mean)
                    self._clip()
                self._optimiser.step()
                self._optimiser.zero_grad()
        return mean

    def _clip(self) -> None:
        limit = self._config.gradient_clipping or math.inf
        norm = self._accelerator.clip_grad_norm_(self._model.parameters(), limit)
        if norm is not None and self._accelerator.mixed_precision != "fp16":
            # In fp16 an overflow is no failure: the step is left out and the scale halved.
            self._require_finite("norm of the gradient", float(norm))

    def _require_finite(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        size, step = self._config.batch_size, self.step
        names = ", ".join(self._draws.name(step * size + i) for i in range(min(size, 3)))
        kept = "no checkpoint was written"
        if self._save is not None and (self._save / "latest").is_file():
            kept = f"the last good checkpoint is {self._save / (self._save / 'latest').read_text()}"
        raise UserError(
            f"step {step + 1}: the {what} is {value} (its batch begins with {names}); {kept}; "
            "lower lr, or mixed_precision: no"
        )

    @torch.no_grad()
    def evaluate(self) -> float:
        """The mean loss over the first batches of the evaluation data, always the same ones."""
        assert self._eval_samples is not None
        config = self._config
        steps = min(config.eval_steps, -(-len(self._eval_samples) // self._whole_batch))
        draws = Draws(self._eval_samples, config.seed, config.skip_bad)
        self._model.eval()
        losses = [
            self._accelerator.reduce(self._model(**batch), "mean")
            for batch in self._batches(draws, 0, steps, parts=1)
        ]
        return float(torch.stack(losses).mean())

    @torch.no_grad()
    def captions(self, samples: Samples, count: int) -> list[tuple[str, str]]:
        """(expected, found) texts of the first samples, found greedily after the sample prompt."""
        config, tokenizer = self._config, self._tokenizer
        self._plain.eval()
        prompt = encode(tokenizer, config.sample_prompt, self._plain.config.text_tokens)
        limit = min(config.sample_tokens, self._plain.config.text_tokens - len(prompt))
        draws = Draws(samples, config.seed, config.skip_bad)
        found = []
        for k in range(min(count, len(samples))):
            sample = draws[k]
            start = prompt or ([] if sample.pixels is not None else sample.ids[:1])
            ids = torch.tensor([start], dtype=torch.long, device=self._accelerator.device)
            pixels = sample.pixels
            if pixels is not None:
                pixels = pixels.to(ids.device)
            with self._accelerator.autocast():
                answer = self._plain.generate(ids, pixels, limit, tokenizer.eos_token_id)[0]
            found.append((str(tokenizer.decode(sample.ids)), str(tokenizer.decode(start + answer))))
        return found

    @property
    def _whole_batch(self) -> int:
        return self._micro * self._accelerator.num_processes

    def _batches(
        self, draws: Draws, start: int, steps: int, parts: int | None = None
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of this process: draws from ``start`` up to the end of step ``steps``."""
        parts = self._config.gradient_accumulation_steps if parts is None else parts
        loader = DataLoader(
            draws,
            batch_size=self._micro,
            sampler=range(start, steps * parts * self._whole_batch),
            num_workers=self._config.num_workers,
            collate_fn=Collate(self._tokenizer.eos_token_id, self._plain.config.text_tokens),
        )
        return iter(self._accelerator.prepare_data_loader(loader))

    def _resume(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        optimiser = state.get("optimiser")
        if optimiser is None:
            _log.warning("the checkpoint has no optimiser that can be read here: moments are new")
            return
        try:
            self._optimiser.load_state_dict(optimiser)
        except ValueError as error:
            raise UserError(
                f"the checkpoint's optimiser has other parameters than this run ({error}); "
                "continue with the same settings, or with load_optimizer: false"
            ) from error
        if self._accelerator.scaler is not None and state.get("scaler"):
            self._accelerator.scaler.load_state_dict(state["scaler"])

    def _save_checkpoint(self, folder: Path) -> None:
        accelerator = self._accelerator
        state_dict = accelerator.get_state_dict(self._model)
        model_state = {name.removeprefix("magma."): t for name, t in state_dict.items()}
        if accelerator.is_main_process:
            scaler = accelerator.scaler
            state = {
                "optimiser": None if self._sharded else self._optimiser.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
            }
            saved = save_checkpoint(folder, self.step, model_state, state)
            keep_tokenizer(folder, self._tokenizer)
            _log.info("checkpoint %s", saved)
        accelerator.wait_for_everyone()


def _accelerator(config: TrainConfig) -> Accelerator:
    with_deepspeed = bool(os.environ.get("ACCELERATE_USE_DEEPSPEED"))
    if with_deepspeed and importlib.util.find_spec("deepspeed") is None:
        raise UserError("DeepSpeed was asked for and is not installed: pip install deepspeed")
    if config.mixed_precision == "fp16" and not torch.accelerator.is_available():
        # accelerate would train in float32 then, and not say so.
        raise UserError("mixed_precision is fp16, which needs a GPU; on a CPU take bf16 or no")
    # accelerate keeps the precision of a process's first run; ours is the run's own.
    AcceleratorState._reset_state()
    precision = config.mixed_precision
    if precision == "auto":
        on_gpu = torch.cuda.is_available()
        precision = ("bf16" if torch.cuda.is_bf16_supported() else "fp16") if on_gpu else "no"
    parts = config.gradient_accumulation_steps
    return Accelerator(
        mixed_precision=precision,
        # Without this, processes on a machine without accelerator would not find each other.
        cpu=not torch.accelerator.is_available() and not with_deepspeed,
        log_with=trackers(config) or None,
        project_dir=None if config.save is None else str(Path(config.save) / "tensorboard"),
        # The end of a loader, such as the evaluation's, ends no batch here.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=parts, sync_with_dataloader=False
        ),
    )


def _micro_batch(config: TrainConfig, accelerator: Accelerator) -> int:
    parts = config.gradient_accumulation_steps * accelerator.num_processes
    if config.batch_size % parts:
        raise UserError(
            f"batch_size is {config.batch_size}; it must be a multiple of {parts} "
            f"(gradient_accumulation_steps × {accelerator.num_processes} processes)"
        )
    return config.batch_size // parts


def _checksums(model: Magma) -> dict[str, int]:
    """A sum over the bits of every frozen parameter."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {
        name: int(parameter.detach().view(kinds[parameter.element_size()]).sum(dtype=torch.int64))
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad
    }


def _require_unchanged(model: Magma, before: dict[str, int]) -> None:
    after = _checksums(model)
    changed = [name for name in before if before[name] != after.get(name)]
    if changed:
        raise RuntimeError(f"frozen parameters changed in the first step: {', '.join(changed[:3])}")
