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

from benchmarks.engine_memory import Steps, measured_steps
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


class AirLLM:
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

    def steps(self, prompts: list[list[int]], tokens: int, warm_up: int) -> Steps:
        """See :class:`benchmarks.engine_memory.Engine`."""
        cache = DynamicCache(config=self._airllm.config)

        def step(ids: list[list[int]]) -> list[list[int]]:
            with torch.inference_mode():
                answer = self._airllm(torch.tensor(ids), past_key_values=cache, logits_to_keep=1)
            return answer.logits[:, -1].argmax(-1)[:, None].tolist()

        return measured_steps(step, prompts, tokens, warm_up)


def write_folder(folder: Path, config: MagmaConfig) -> None:
    """Writes a model of random weights in float16, as one file and as AirLLM's file a layer."""
    model = random_gptj(config, torch.float16)
    model.save_pretrained(folder)
    del model
    _GPTJ(str(folder), device="cpu", dtype=torch.float16)
