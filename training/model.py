"""MAGMA for training: transformers' GPT-J with adapters, behind CLIP's ResNet as image prefix.

Its modules are nested so that `training.weights` gives every parameter its name in the published
checkpoint by three rules.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, GPTJConfig, GPTJForCausalLM

from config.config import MagmaConfig
from training.adapters import adapt_attention, adapt_mlp
from training.resnet import ModifiedResNet
from utils.checkpoint_layout import AdapterLayout, configured_layout

IGNORED = -100
"""Label of a position that is no target."""


def caption_labels(ids: torch.Tensor, eos_id: int) -> torch.Tensor:
    """What each text position has to be predicted as: the ids, but for the padding.

    Captions are padded with the end-of-text token. Its first occurrence is the target that ends a
    caption; what follows is no target. A caption that fills its row has no end.

    Args:
        ids: [b, t], padded on the right with ``eos_id``.
        eos_id: the end-of-text token.

    Returns:
        [b, t], `IGNORED` after the first end of each row.
    """
    ends = (ids == eos_id).long()
    return ids.masked_fill(ends.cumsum(1) - ends > 0, IGNORED)


class ImagePrefix(nn.Module):
    """A picture as i positions of the language model: [b, 3, y, x] -> [b, i, h]."""

    def __init__(self, config: MagmaConfig, dropout: float = 0.0) -> None:
        """Encoder, projection, dropout, layer norm."""
        super().__init__()
        hidden = config.transformer.hidden_size
        self.enc = ModifiedResNet(config.visual.layers, config.visual.width)
        self.proj = nn.Linear(config.visual.embed_dim, hidden)
        self.dropout = nn.Dropout(dropout)
        self.ln = nn.LayerNorm(hidden, eps=1e-5)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """See the class; positions go row by row over the picture."""
        # Channels last is how convolutions are fastest on CPUs, and on GPUs in half precision.
        features = self.enc(pixels.contiguous(memory_format=torch.channels_last))
        return self.ln(self.dropout(self.proj(features.flatten(2).transpose(1, 2))))


def _language_model(config: MagmaConfig, layout: AdapterLayout) -> GPTJForCausalLM:
    text, hidden = config.transformer, config.transformer.hidden_size
    lm = GPTJForCausalLM(
        GPTJConfig(
            vocab_size=text.embedding.vocab_size,
            n_positions=config.total_tokens,
            n_embd=hidden,
            n_layer=text.layers,
            n_head=text.attention.heads,
            rotary_dim=text.attention.rotary_dim,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
            tie_word_embeddings=False,
            attn_implementation="eager",  # type: ignore[call-arg]
        )
    )
    rows = text.embedding.real_vocab_size
    lm.transformer.wte = nn.Embedding.from_pretrained(
        lm.transformer.wte.weight.detach()[:rows].clone(), freeze=False
    )
    for block in lm.transformer.h:
        block.mlp = adapt_mlp(block.get_submodule("mlp"), hidden, layout.mlp)
        block.attn = adapt_attention(block.get_submodule("attn"), hidden, layout.attention)
    return lm


class Magma(nn.Module):
    """The whole model, with random weights until `training.weights` loads others.

    Attributes:
        config: its sizes.
        layout: its adapters.
        blind: whether pictures are replaced by zeros, to see what the text alone gives away.
    """

    def __init__(
        self,
        config: MagmaConfig,
        layout: AdapterLayout | None = None,
        image_dropout: float = 0.0,
    ) -> None:
        """A fresh model.

        Args:
            config: sizes of the model.
            layout: where the adapters sit; by default where ``config`` says.
            image_dropout: share of the image positions' channels that training sets to zero.
        """
        super().__init__()
        self.config = config
        self.layout = configured_layout(config) if layout is None else layout
        self.blind = False
        self.lm = _language_model(config, self.layout)
        self.image_prefix = ImagePrefix(config, image_dropout)

    def train(self, mode: bool = True) -> Magma:
        """As torch's, but a frozen encoder keeps its batch norms' statistics."""
        super().train(mode)
        encoder = self.image_prefix.enc
        encoder.train(mode and any(p.requires_grad for p in encoder.parameters()))
        return self

    def embed(self, ids: torch.Tensor, pixels: torch.Tensor | None = None) -> torch.Tensor:
        """The language model's input: the picture's positions, if any, then the text's.

        Args:
            ids: [b, t].
            pixels: [b, 3, y, x], preprocessed.

        Returns:
            [b, i + t, h].
        """
        words = self.lm.transformer.wte(ids)
        if pixels is None:
            return words
        prefix = self.image_prefix(torch.zeros_like(pixels) if self.blind else pixels)
        return torch.cat((prefix.to(words.dtype), words), dim=1)

    def logits(self, ids: torch.Tensor, pixels: torch.Tensor | None = None) -> torch.Tensor:
        """Next-token logits at every position: [b, i + t, v]; arguments as for `embed`."""
        return self.lm(inputs_embeds=self.embed(ids, pixels), use_cache=False).logits

    def forward(
        self, ids: torch.Tensor, labels: torch.Tensor, pixels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The caption loss: mean cross-entropy over the targets, in float32; 0 if there are none.

        Args:
            ids: [b, t].
            labels: [b, t], see `caption_labels`.
            pixels: [b, 3, y, x], or None for text alone, whose first token is no target then.
        """
        x = self.embed(ids, pixels)
        hidden = self.lm.transformer(inputs_embeds=x, use_cache=False).last_hidden_state
        if pixels is None:
            labels = labels[:, 1:]
        # A position predicts the one after it, so the last image position predicts the first word.
        hidden = hidden[:, -1 - labels.shape[1] : -1]
        targets = labels != IGNORED
        # Only positions with a target meet the head, which is the widest matrix.
        logits = self.lm.lm_head(hidden[targets]).float()
        total = cross_entropy(logits, labels[targets], reduction="sum")
        return total / targets.sum().clamp(min=1)

    @torch.no_grad()
    def generate(
        self, ids: torch.Tensor, pixels: torch.Tensor | None, n: int, eos_id: int
    ) -> list[list[int]]:
        """The most probable continuation of each row, without the end-of-text token.

        Args:
            ids: [b, t], the prompts, all of one length; t may be 0 where there are pictures.
            pixels: [b, 3, y, x] or None.
            n: tokens at most.
            eos_id: the token that ends a row.
        """
        cache = DynamicCache(config=self.lm.config)
        x = self.embed(ids, pixels)
        tokens = self.config.transformer.embedding.real_vocab_size
        rows: list[torch.Tensor] = []
        ended = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for _ in range(n):
            answer = self.lm(
                inputs_embeds=x, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            # The head has more columns than there are tokens.
            chosen = answer.logits[:, -1, :tokens].argmax(-1)
            ended |= chosen == eos_id
            rows.append(chosen.masked_fill(ended, eos_id))
            if ended.all():
                break
            x = self.embed(chosen[:, None])
        found = torch.stack(rows, dim=1).tolist() if rows else [[] for _ in range(len(x))]
        return [row[: row.index(eos_id)] if eos_id in row else row for row in found]
