"""transformers' GPT-J for benchmarks of generation: eager attention, the only one it has."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache, GPTJForCausalLM
from transformers import GPTJConfig as PeerConfig
from transformers.models.gptj.modeling_gptj import create_sinusoidal_positions

from benchmarks.engines import Times
from config.config import MagmaConfig

POSITIONS = 2048
RANDOM_VALUES = 1 << 20
SPREAD = 0.02


def random_gptj(config: MagmaConfig, dtype: torch.dtype) -> GPTJForCausalLM:
    """GPT-J of a configuration's sizes, without adapters."""
    lm = config.transformer
    sizes = PeerConfig(
        vocab_size=lm.embedding.vocab_size,
        n_positions=POSITIONS,
        n_embd=lm.hidden_size,
        n_layer=lm.layers,
        n_head=lm.attention.heads,
        rotary_dim=lm.attention.rotary_dim,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",
    )
    with torch.device("meta"):
        model = GPTJForCausalLM(sizes)
    model = model.to(dtype).to_empty(device="cpu")
    values = torch.randn(RANDOM_VALUES).mul_(SPREAD).to(dtype)
    for parameter in model.parameters():
        flat = parameter.data.view(-1)
        for piece in flat.split(RANDOM_VALUES):
            piece.copy_(values[: len(piece)])
    for block in model.transformer.h:
        table = create_sinusoidal_positions(POSITIONS, lm.attention.rotary_dim)
        block.attn.embed_positions = table.to(dtype)
    return model.eval().requires_grad_(False)


class Greedy:
    """Continues prompts with a model and its key/value cache, logits of the last position only."""

    def __init__(self, model: GPTJForCausalLM) -> None:
        """Keeps the model."""
        self._model = model

    @torch.inference_mode()
    def start(self, prompts: list[list[int]]) -> None:
        """Reads prompts of one length and chooses the first new ids."""
        self._cache = DynamicCache(config=self._model.config)
        self._ids: list[list[int]] = []
        self._step(torch.tensor(prompts))

    @torch.inference_mode()
    def more(self, tokens: int) -> list[float]:
        """Seconds of each of some more tokens."""
        marks = [time.perf_counter()]
        for _ in range(tokens):
            self._step(self._newest[:, None])
            marks.append(time.perf_counter())
        return [b - a for a, b in pairwise(marks)]

    def ids(self) -> list[list[int]]:
        """New ids of each sequence."""
        return np.transpose(self._ids).tolist()

    def _step(self, ids: torch.Tensor) -> None:
        out = self._model(input_ids=ids, past_key_values=self._cache, logits_to_keep=1)
        self._newest = out.logits[:, -1].argmax(-1)
        self._ids.append(self._newest.tolist())


class Transformers:
    """See :class:`benchmarks.engines.Engine`.

    The picture's encoder is open_clip's in float32, which is its fastest precision here. Its
    result is not used: a picture's positions are ids, which takes no less time.
    """

    def __init__(self, config: MagmaConfig, encoder: bool, threads: int | None = None) -> None:
        """Makes the models.

        Args:
            config: Sizes.
            encoder: Whether to have the image encoder.
            threads: Of torch; None for its default.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        self._config = config
        self._greedy = Greedy(random_gptj(config, torch.bfloat16))
        self._encoder = _random_encoder(config) if encoder else None

    def run(self, prompts: list[list[int]], new_tokens: int, picture: bool) -> Times:
        """See :class:`benchmarks.engines.Engine`."""
        if picture:
            prompts = [[*range(self._config.image_tokens), *ids] for ids in prompts]
        start = time.perf_counter()
        if picture and self._encoder is not None:
            side = self._config.visual.image_resolution
            with torch.inference_mode():
                self._encoder(torch.zeros(self._config.batch, 3, side, side))
        encoded = time.perf_counter()
        self._greedy.start(prompts)
        first = time.perf_counter()
        step_s = self._greedy.more(new_tokens - 1)
        return Times(first - start, encoded - start, first - encoded, step_s, self._greedy.ids())

    def more(self, tokens: int) -> list[float]:
        """See :class:`benchmarks.engines.Engine`."""
        return self._greedy.more(tokens)


class TransformersSeveral:
    """Runs of several numbers of sequences, by a key, with one model."""

    def __init__(self, configs: dict[int, MagmaConfig], threads: int | None = None) -> None:
        """Makes the model; see :class:`Transformers`."""
        if threads is not None:
            torch.set_num_threads(threads)
        model = random_gptj(next(iter(configs.values())), torch.bfloat16)
        self._runs = {key: Greedy(model) for key in configs}

    def run(self, key: int, prompts: list[list[int]], new_tokens: int) -> None:
        """Reads prompts and makes tokens."""
        self._runs[key].start(prompts)
        self._runs[key].more(new_tokens - 1)

    def more(self, key: int, tokens: int) -> list[float]:
        """See :class:`benchmarks.engines.Engine`."""
        return self._runs[key].more(tokens)


def _random_encoder(config: MagmaConfig) -> nn.Module:
    from tests.reference.resnet import modified_resnet

    visual = config.visual
    network = modified_resnet(visual.layers, visual.width, visual.image_resolution)
    return network.eval().requires_grad_(False)


class Adapted(Greedy):
    """transformers' GPT-J with adapters and the weights of a checkpoint, for comparing ids."""

    def __init__(self, path: Path, config: MagmaConfig) -> None:
        """Reads the weights in float32."""
        from tests.reference.magma import ReferenceMagma

        super().__init__(ReferenceMagma.from_checkpoint(path, config).lm)

    def run(self, prompts: list[list[int]], new_tokens: int, picture: bool) -> Times:
        """See :class:`benchmarks.engines.Engine`, without pictures."""
        if picture:
            raise ValueError("this engine has no pictures")
        start = time.perf_counter()
        self.start(prompts)
        first_s = time.perf_counter() - start
        return Times(first_s, 0.0, first_s, self.more(new_tokens - 1), self.ids())
