"""AirLLM for benchmarks of memory: a layer's weights are read, used, and dropped.

It has no GPT-J. Two things are patched from outside: where its layers lie, and that the table of
rotary positions, which is no weight, outlives a layer's end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from airllm import AirLLMBaseModel
from transformers import DynamicCache, GenerationConfig
from transformers.models.gptj.modeling_gptj import create_sinusoidal_positions

from benchmarks.engine_memory import Stepping
from benchmarks.engine_transformers import POSITIONS, random_gptj
from config.config import MagmaConfig


class _GPTJ(AirLLMBaseModel):
    """AirLLM with the names of GPT-J's layers, and without a tokenizer."""

    def set_layer_names_dict(self) -> None:
        self.layer_names_dict = {
            "embed": "transformer.wte",
            "layer_prefix": "transformer.h",
            "norm": "transformer.ln_f",
            "lm_head": "lm_head",
        }

    def get_tokenizer(self, hf_token: str | None = None) -> None:
        return None

    def get_generation_config(self) -> GenerationConfig:
        return GenerationConfig()

    def _pre_hook(self, module: Any, args: Any) -> None:
        super()._pre_hook(module, args)
        if hasattr(module, "attn"):
            module.attn.embed_positions = self.positions


class AirLLM(Stepping):
    """See :class:`benchmarks.engine_memory.Engine`."""

    def __init__(self, config: MagmaConfig, folder: Path, threads: int) -> None:
        """Opens the model.

        Args:
            config: Sizes.
            folder: Of :func:`write_folder`.
            threads: Of torch.
        """
        torch.set_num_threads(threads)
        self._airllm = _GPTJ(str(folder), device="cpu", dtype=torch.float16)
        width = config.transformer.attention.rotary_dim
        self._airllm.positions = create_sinusoidal_positions(POSITIONS, width).half()

        super().__init__(self._read, self._run)

    def _read(self, prompts: list[list[int]]) -> None:
        self._cache = DynamicCache(config=self._airllm.config)
        self._ids = torch.tensor(prompts)
        self._run()

    @torch.inference_mode()
    def _run(self) -> None:
        answer = self._airllm(self._ids, past_key_values=self._cache, logits_to_keep=1)
        self._ids = answer.logits[:, -1:].argmax(-1)


def write_folder(folder: Path, config: MagmaConfig) -> None:
    """Writes a model of random weights in float16, as one file and as AirLLM's file a layer."""
    model = random_gptj(config, torch.float16)
    model.save_pretrained(folder)
    del model
    _GPTJ(str(folder), device="cpu", dtype=torch.float16)
