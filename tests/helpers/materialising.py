"""Attention processors that write the softmax out and keep it: the oracle of what is seen while a pipeline draws."""

from typing import Any

import torch
from torch import Tensor


class KeepingProcessor:
    """In place of diffusers' `AttnProcessor2_0` (cross-attention) and `JointAttnProcessor2_0`.

    Attributes:
        kept: probabilities (B, H, S, n) of image queries on text keys, one for each call with text.
    """

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Any:
        joint = getattr(attn, "add_k_proj", None) is not None
        text = hidden_states if encoder_hidden_states is None or joint else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)
        query, key, value = (tensor.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for tensor in (query, key, value))
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        pixels = hidden_states.shape[1]
        if joint and encoder_hidden_states is not None:
            added = [layer(encoder_hidden_states) for layer in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)]
            added = [tensor.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for tensor in added]
            added[0] = added[0] if attn.norm_added_q is None else attn.norm_added_q(added[0])
            added[1] = added[1] if attn.norm_added_k is None else attn.norm_added_k(added[1])
            query, key, value = (torch.cat(pair, 2) for pair in zip((query, key, value), added, strict=True))
        logits = query @ key.transpose(-1, -2) * attn.scale
        if attention_mask is not None:
            mask = attn.prepare_attention_mask(attention_mask, key.shape[2], len(query))
            logits = logits + mask.view(len(query), attn.heads, -1, mask.shape[-1])
        probabilities = logits.softmax(-1)
        if encoder_hidden_states is not None:
            self.kept.append(probabilities[:, :, :pixels, pixels:] if joint else probabilities)
        output = (probabilities @ value).transpose(1, 2).flatten(2)
        if not joint:
            return attn.to_out[1](attn.to_out[0](output))
        image, rest = output[:, :pixels], output[:, pixels:]
        image = attn.to_out[1](attn.to_out[0](image))
        if encoder_hidden_states is None:
            return image
        return image, rest if attn.context_pre_only else attn.to_add_out(rest)
