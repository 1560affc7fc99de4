"""Concept tokens beside a forward: they read the image in every block, and neither image nor text ever sees them.

After ConceptAttention (Helbling et al., ICML 2025). A concept goes through the text's half of each joint block; its queries
attend to all concepts and to the image, not to the text. Its attention output, compared with the image's own, says where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from goca.attention.tap import RawCall

Update = Callable[[Tensor], Tensor]


class TextBranch(Protocol):
    """How a family treats its text tokens in joint blocks; an adapter of the architecture."""

    image_attends: bool  # image vectors are taken from a call in which the image attends to concepts too (SD3)
    leading: int  # concepts before the words, such as a start token, that have no map
    unit: bool  # concept vectors are divided by their length before they meet the image
    temperature: float  # products of concepts and image are divided by it before a softmax over concepts

    def start(self) -> Tensor:
        """The concepts (B, C, D) as they enter the first block."""
        ...

    def enter(self, layer: str, concepts: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Update] | None:
        """Query, key and value (B, H, C, d) of the concepts in the block of this layer, and what turns their attention output
        (B, C, H * d) into the concepts of the next block. None for a layer without a text branch."""
        ...


@dataclass(frozen=True)
class Vectors:
    """Attention outputs of one block before the output projection: concepts (B, C, H * d) and image (B, S, H * d)."""

    concepts: Tensor
    image: Tensor


class ConceptStream:
    """Follows one forward: pass it every joint attention call in order, with the slice of keys that are image tokens.

    Args:
        branch: the family's text branch.
        attend: what concepts see: `both` concepts and image, one of the two, or `neither` (their own values).
    """

    def __init__(self, branch: TextBranch, attend: Literal["both", "image", "concepts", "neither"] = "both") -> None:
        self._branch, self._attend = branch, attend
        self._concepts: Tensor | None = None

    def __call__(self, raw: RawCall, image: slice) -> Vectors | None:
        """The vectors of this call's block; None where the block has no text branch of its own."""
        concepts = self._branch.start() if self._concepts is None else self._concepts
        entered = self._branch.enter(raw.layer, concepts)
        if entered is None:
            return None
        (query, key, value), update = entered
        own = raw.output[:, :, image]
        if self._branch.image_attends:
            pairs = zip(self._image(raw, image), (query, key, value), strict=True)
            q, k, v = (torch.cat(pair, 2) for pair in pairs)
            attended = scaled_dot_product_attention(q, k, v, scale=raw.scale)
            own, attended = attended[:, :, : -query.shape[2]], attended[:, :, -query.shape[2] :]
        else:
            attended = self._read(raw, image, query, key, value)
        vectors = Vectors(_joined(attended), _joined(own))
        self._concepts = update(vectors.concepts)
        return vectors

    @staticmethod
    def _image(raw: RawCall, image: slice) -> tuple[Tensor, Tensor, Tensor]:
        return raw.query[:, :, image], raw.key[:, :, image], raw.value[:, :, image]

    def _read(self, raw: RawCall, image: slice, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self._attend == "neither":
            return value
        keys = {"concepts": [key], "image": [raw.key[:, :, image]], "both": [key, raw.key[:, :, image]]}[self._attend]
        values = {"concepts": [value], "image": [raw.value[:, :, image]], "both": [value, raw.value[:, :, image]]}[self._attend]
        return scaled_dot_product_attention(query, torch.cat(keys, 2), torch.cat(values, 2), scale=raw.scale)


def _joined(heads: Tensor) -> Tensor:
    """(B, H, n, d) -> (B, n, H * d)."""
    return heads.transpose(1, 2).flatten(2)


def scores(concepts: Tensor, image: Tensor) -> Tensor:
    """Products of every concept (..., C, D) with every pixel (..., S, D): (..., C, S)."""
    return concepts @ image.transpose(-1, -2)


def heat_maps(scores: Tensor, softmax: bool = True) -> Tensor:
    """Mean over the leading axes but the last three of scores (..., B, C, S), each softmaxed over concepts before."""
    maps = scores.softmax(-2) if softmax else scores
    return maps.flatten(0, -4).mean(0) if maps.ndim > 3 else maps


def linear_normalised(concepts: Tensor) -> Tensor:
    """Each channel over the concepts (..., C, D): minimum 0, divided by the sum, which counts as 1 where it is 0."""
    shifted = concepts - concepts.amin(-2, keepdim=True)
    total = shifted.sum(-2, keepdim=True)
    return shifted / torch.where(total == 0, torch.ones_like(total), total)


# ----------------------------------------------------------------------------------------------------- families' text branches
class FluxBranch:
    """Double-stream blocks of FLUX.1: own modulation with a pooled text vector of zero; concepts stand at position 0.

    Args:
        net: a `FluxTransformer2DModel`.
        concepts: text embeddings (B, C, D), not yet embedded by the denoiser.
        modulation: (B, width) time (and guidance) embedding with the pooled vector zero.
    """

    image_attends, leading, unit, temperature = False, 0, False, 1.0

    def __init__(self, net: Any, concepts: Tensor, modulation: Tensor) -> None:
        self._net, self._embeddings, self._modulation = net, concepts, modulation

    def start(self) -> Tensor:
        return self._net.context_embedder(self._embeddings)

    def enter(self, layer: str, concepts: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Update] | None:
        block = self._net.get_submodule(layer.rpartition(".")[0])
        if not hasattr(block, "norm1_context"):
            return None  # single-stream
        state, gate, shift, scale, gate_mlp = block.norm1_context(concepts, emb=self._modulation)

        def update(attended: Tensor) -> Tensor:
            after = concepts + gate[:, None] * block.attn.to_add_out(attended)
            inner = block.norm2_context(after) * (1 + scale[:, None]) + shift[:, None]
            return after + gate_mlp[:, None] * block.ff_context(inner)

        return _projected(block.attn, state), update


class Flux2Branch:
    """Double-stream blocks of FLUX.2: one text modulation for all of them; every concept at one rotary position.

    Args:
        net: a `Flux2Transformer2DModel`.
        modulation: (B, 6 * width) of the text.
        position: the rotary position on the last axis.
    """

    image_attends, leading, unit, temperature = False, 0, False, 1000.0

    def __init__(self, net: Any, concepts: Tensor, modulation: Tensor, position: int) -> None:
        self._net, self._embeddings = net, concepts
        self._modulation = modulation[:, None].chunk(6, -1)
        ids = torch.tensor([[0, 0, 0, position]] * concepts.shape[1], device=concepts.device)
        self._rotary = net.pos_embed(ids)

    def start(self) -> Tensor:
        return self._net.context_embedder(self._embeddings)

    def enter(self, layer: str, concepts: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Update] | None:
        block = self._net.get_submodule(layer.rpartition(".")[0])
        if not hasattr(block, "norm1_context"):
            return None
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self._modulation
        state = block.norm1_context(concepts) * (1 + scale) + shift

        def update(attended: Tensor) -> Tensor:
            after = concepts + gate * block.attn.to_add_out(attended)
            return after + gate_mlp * block.ff_context(block.norm2_context(after) * (1 + scale_mlp) + shift_mlp)

        return _projected(block.attn, state, self._rotary), update


class SD3Branch:
    """Joint blocks of Stable Diffusion 3: the prompt's own modulation; image vectors come from a call with the concepts' keys.

    Args:
        net: an `SD3Transformer2DModel`.
        modulation: (B, width), of time and the prompt's pooled vector.
    """

    image_attends, leading, unit, temperature = True, 1, True, 1.0

    def __init__(self, net: Any, concepts: Tensor, modulation: Tensor) -> None:
        self._net, self._embeddings, self._modulation = net, concepts, modulation

    def start(self) -> Tensor:
        return self._net.context_embedder(self._embeddings)

    def enter(self, layer: str, concepts: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Update] | None:
        block = self._net.get_submodule(layer.rpartition(".")[0])
        if not layer.endswith(".attn"):
            return None
        if block.context_pre_only:  # the last block: its text is not used any further
            return _projected(block.attn, block.norm1_context(concepts, self._modulation)), lambda attended: concepts
        state, gate, shift, scale, gate_mlp = block.norm1_context(concepts, emb=self._modulation)

        def update(attended: Tensor) -> Tensor:
            after = concepts + gate[:, None] * block.attn.to_add_out(attended)
            inner = block.norm2_context(after) * (1 + scale[:, None]) + shift[:, None]
            return after + gate_mlp[:, None] * block.ff_context(inner)

        return _projected(block.attn, state), update


def _projected(attention: Any, state: Tensor, rotary: Any = None) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, value (B, H, C, d) by the text's projections and norms."""

    def heads(projection: Any, norm: Any = None, turn: bool = True) -> Tensor:
        values = projection(state).unflatten(-1, (attention.heads, -1))
        values = values if norm is None else norm(values)
        if rotary is not None and turn:
            from diffusers.models.embeddings import apply_rotary_emb

            values = apply_rotary_emb(values, rotary, sequence_dim=1)
        return values.transpose(1, 2)

    query = heads(attention.add_q_proj, attention.norm_added_q)
    key = heads(attention.add_k_proj, attention.norm_added_k)
    return query, key, heads(attention.add_v_proj, turn=False)
