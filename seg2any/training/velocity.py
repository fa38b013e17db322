"""The network as the loss sees it: v(x_s, s, y)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seg2any.bases.base import Condition


class Velocity(nn.Module):
    """Predicts dx/ds from x_s [B, I, D], s [B] and a condition y; [B, I, D] in fp32.

    Computes in `dtype` where autocast allows it, while the weights keep the precision they have.
    """

    def __init__(self, transformer: nn.Module, guidance_scale: float, dtype: torch.dtype):
        super().__init__()
        self.transformer, self.guidance_scale, self.dtype = transformer, guidance_scale, dtype

    def forward(self, x: Tensor, s: Tensor, condition: Condition) -> Tensor:
        """x [B, I, D] at noise levels s [B] in 0..1 -> [B, I, D] in fp32, on the transformer's device."""
        device = self.transformer.device
        condition = condition.to(device, torch.float32)
        guidance = None
        if self.transformer.config.guidance_embeds:
            guidance = torch.full(s.shape, self.guidance_scale, device=device)
        with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.transformer(
                hidden_states=x.to(device),
                timestep=s.to(device),
                guidance=guidance,
                encoder_hidden_states=condition.prompt_embeds,
                pooled_projections=condition.pooled_prompt_embeds,
                joint_attention_kwargs={"condition": condition},
                return_dict=False,
            )[0].float()
