"""llama.cpp for benchmarks of generation, through the package xllamacpp.

It has no GPT-J. Its "phi2" has the same cost: attention and MLP side by side behind one norm,
rotary positions in a part of each head. So a file of that kind with GPT-J's sizes and random
weights is timed; what it says is not looked at.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines import Times
from config.config import MagmaConfig

POSITIONS = 2048
RANDOM_VALUES = 1 << 22
SPREAD = 0.02


def write_gguf(
    path: Path, config: MagmaConfig, packages: Path | None, storage: str = "F16"
) -> None:
    """Writes a model file of a configuration's sizes.

    Args:
        path: The file.
        config: Sizes.
        packages: Folder with the packages, if they are not installed.
        storage: Of all matrices, word embedding and head included: "F16", "Q8_0" or "Q4_0".
    """
    import_from(packages)
    import gguf

    writer = gguf.GGUFWriter(path, "phi2")
    _describe(writer, config, gguf.LlamaFileType[f"MOSTLY_{storage}"])
    kind = gguf.GGMLQuantizationType[storage]
    random = np.random.default_rng(0).standard_normal((1, RANDOM_VALUES), np.float32) * SPREAD
    stored = gguf.quants.quantize(random, kind)

    def stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], shape[-1] * stored.size // RANDOM_VALUES)

    shapes = _shapes(config)
    for name, shape in shapes.items():
        if len(shape) == 2:
            of_stored = stored_shape(shape)
            size = math.prod(of_stored) * stored.itemsize
            writer.add_tensor_info(name, of_stored, stored.dtype, size, raw_dtype=kind)
        else:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * shape[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape in shapes.items():
        if len(shape) == 2:
            writer.write_tensor_data(np.resize(stored, stored_shape(shape)))
        else:
            value = 1.0 if name.endswith("norm.weight") else 0.0
            writer.write_tensor_data(np.full(shape, value, np.float32))
    writer.close()


def _describe(writer: Any, config: MagmaConfig, file_type: int) -> None:
    """Writes everything but tensors."""
    import gguf

    lm = config.transformer
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(lm.hidden_size)
    writer.add_feed_forward_length(lm.inner_size)
    writer.add_block_count(lm.layers)
    writer.add_head_count(lm.attention.heads)
    writer.add_head_count_kv(lm.attention.heads)
    writer.add_layer_norm_eps(1e-5)
    writer.add_rope_dimension_count(lm.attention.rotary_dim)
    writer.add_file_type(file_type)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"<{i}>" for i in range(lm.embedding.vocab_size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * lm.embedding.vocab_size)
    writer.add_token_merges(["< 0"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def _shapes(config: MagmaConfig) -> dict[str, tuple[int, ...]]:
    """Of all tensors by name; matrices are (out, in)."""
    lm = config.transformer
    h, inner, vocabulary = lm.hidden_size, lm.inner_size, lm.embedding.vocab_size
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, h)}
    for i in range(lm.layers):
        for name, out, width in (
            ("attn_qkv", 3 * h, h),
            ("attn_output", h, h),
            ("ffn_up", inner, h),
            ("ffn_down", h, inner),
        ):
            shapes[f"blk.{i}.{name}.weight"] = (out, width)
            shapes[f"blk.{i}.{name}.bias"] = (out,)
        shapes |= {f"blk.{i}.attn_norm.{part}": (h,) for part in ("weight", "bias")}
    shapes |= {f"output_norm.{part}": (h,) for part in ("weight", "bias")}
    return {**shapes, "output.weight": (vocabulary, h), "output.bias": (vocabulary,)}


class Llama:
    """See :class:`benchmarks.engines.Engine`; one sequence, no :meth:`more`, times as it says."""

    def __init__(
        self,
        path: Path,
        config: MagmaConfig,
        threads: int,
        packages: Path | None,
        positions: int = POSITIONS,
    ) -> None:
        """Maps a model file; what is not needed for that is not read.

        Args:
            path: Written by :func:`write_gguf`.
            config: Sizes.
            threads: To compute with.
            packages: As for :func:`write_gguf`.
            positions: For which there is memory.
        """
        import_from(packages)
        import xllamacpp

        self._image_tokens = config.image_tokens
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = positions
        params.n_parallel = 1
        params.warmup = False
        params.n_gpu_layers = 0
        params.cpuparams.n_threads = threads
        params.cpuparams_batch.n_threads = threads
        params.cache_prompt = False
        params.cache_ram_mib = 0
        params.verbosity = -1
        self._server = xllamacpp.Server(params)

    def run(self, prompts: list[list[int]], new_tokens: int, picture: bool) -> Times:
        """See :class:`benchmarks.engines.Engine`."""
        (prompt,) = prompts
        if picture:
            prompt = [*range(1, self._image_tokens + 1), *prompt]
        answer: dict[str, Any] = self._server.handle_completions(
            {
                "prompt": prompt,
                "n_predict": new_tokens,
                "temperature": 0.0,
                "top_k": 1,
                "ignore_eos": True,
                "cache_prompt": False,
            }
        )
        times = answer["timings"]
        if times["prompt_n"] != len(prompt) or times["predicted_n"] != new_tokens:
            raise RuntimeError(f"llama.cpp did not do what it was asked for: {times}")
        prefill_s = times["prompt_ms"] / 1e3
        # The first token comes out of the prompt's run; the mean is all that it tells.
        step_s = times["predicted_ms"] / 1e3 / (new_tokens - 1)
        return Times(prefill_s, 0.0, prefill_s, [step_s] * (new_tokens - 1))


def import_from(packages: Path | None) -> None:
    """Lets packages of a folder be imported."""
    # Behind all others, so that nothing there replaces what is installed.
    if packages is not None and str(packages) not in sys.path:
        sys.path.append(str(packages))
