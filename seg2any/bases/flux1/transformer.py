"""FLUX.1 that takes a `Condition`: the stock transformer, subclassed; nothing is copied and no weight is added.

Stock weights, quantisation, offloading, caches and LoRA loaders of diffusers keep working. Without a condition the
output is bit for bit the stock model's, and the `cond` adapter is never met.
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_flux import FluxAttention
from diffusers.utils import apply_lora_scale
from peft import PeftConfig

from seg2any.adapters.fold import is_folded, unfold
from seg2any.adapters.routing import COND, DEFAULT, Rows, linear, refuse_unroutable
from seg2any.attention.names import check_backend
from seg2any.bases.base import Condition
from seg2any.bases.flux1.blocks import BlockContext, RegionalAttnProcessor, RegionalDoubleBlock, RegionalSingleBlock
from seg2any.bases.flux1.ulysses import SharedCondition, Ulysses
from seg2any.system.errors import UserError


class Seg2AnyTransformer2DModel(FluxTransformer2DModel):
    """The transformer of Seg2Any (paper section 3). `forward` has the stock signature; the condition arrives as
    `joint_attention_kwargs={"condition": Condition}`.

    cond_adapters: names of the adapters that act on condition tokens; all others act on text and image tokens
    """

    _no_split_modules = ["RegionalDoubleBlock", "RegionalSingleBlock"]
    _repeated_blocks = ["RegionalDoubleBlock", "RegionalSingleBlock"]
    _cp_plan = None  # hooks that would cut the sequence without its mask; see enable_parallelism

    ulysses: Ulysses | None = None  # the processes that make an image together
    cond_adapters: frozenset[str] = frozenset({COND})

    @functools.wraps(FluxTransformer2DModel.__init__)  # from_config reads the signature
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._adopt_blocks()

    @classmethod
    def adopt(cls, stock: FluxTransformer2DModel) -> Seg2AnyTransformer2DModel:
        """Turn a stock transformer into this class, in place and without copying; one of ours is returned as it is."""
        if not isinstance(stock, cls):
            stock.__class__ = cls
            stock._adopt_blocks()
        return stock

    def _adopt_blocks(self) -> None:
        for block in self.transformer_blocks:
            block.__class__ = RegionalDoubleBlock
        for block in self.single_transformer_blocks:
            block.__class__ = RegionalSingleBlock
        for module in self.modules():
            if isinstance(module, FluxAttention):
                module.set_processor(RegionalAttnProcessor())
        for block_class in (RegionalDoubleBlock, RegionalSingleBlock):  # where the caches of diffusers look
            TransformerBlockRegistry.register(block_class, TransformerBlockMetadata(1, 0))

    def set_attention_backend(self, backend: str) -> None:
        """Refused but for diffusers' default: most of its kernels lose the regions, and ours belong to the settings."""
        if backend != "native":
            check_backend(backend)
            how = f'settings=pipe.settings.override({{"attention_backend": "{backend}"}})'
            raise UserError(f"set_attention_backend({backend!r}) does not reach the regions; call pipe(.., {how})")

    def enable_parallelism(self, *, config: Any, cp_plan: Any = None) -> None:
        """Make every image with several processes: `ContextParallelConfig(ulysses_degree=n)`, to generate. All of them
        run the pipeline with the same arguments, and get the same images.

        Raises UserError for other configurations: ring attention and plans cut the sequence without its mask.
        """
        if self.ulysses is not None or cp_plan is not None:
            raise UserError("enable_parallelism: is on already, or was given a plan of its own; neither can be")
        self.ulysses = Ulysses(config, self.config.num_attention_heads, self.device)

    def add_adapter(self, adapter_config: PeftConfig, adapter_name: str = DEFAULT) -> None:
        """As in diffusers, but adapters that were active stay active."""
        refuse_unroutable(adapter_config.to_dict(), adapter_name)
        active = self._active()
        with several_adapters():
            super().add_adapter(adapter_config, adapter_name)
        self.set_adapter([*active, adapter_name])

    def load_lora_adapter(self, pretrained_model_name_or_path_or_dict, prefix="transformer", hotswap=False, **kwargs):
        """As in diffusers, but adapters that were active stay active, and those that cannot be routed are refused."""
        source, name = pretrained_model_name_or_path_or_dict, kwargs.get("adapter_name") or "LoRA"
        options = {key.removeprefix(f"{prefix}."): value for key, value in (kwargs.get("metadata") or {}).items()}
        refuse_unroutable(options, name, source if isinstance(source, dict) else ())
        active, known = self._active(), set(getattr(self, "peft_config", ()))
        with several_adapters():
            super().load_lora_adapter(source, prefix=prefix, hotswap=hotswap, **kwargs)
        loaded = [name for name in getattr(self, "peft_config", ()) if name not in known]
        for name in loaded:
            refuse_unroutable(self.peft_config[name].to_dict(), name)
        if loaded:
            self.set_adapter([*active, *loaded])

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """As in diffusers; a folded adapter is taken out of the base weights first."""
        if DEFAULT in ([adapter_names] if isinstance(adapter_names, str) else adapter_names) and is_folded(self):
            unfold(self)
        super().delete_adapters(adapter_names)

    def unload_lora(self) -> None:
        """As in diffusers; a folded adapter is taken out of the base weights first."""
        if is_folded(self):
            unfold(self)
        super().unload_lora()

    def _active(self) -> list[str]:
        return list(self.active_adapters()) if getattr(self, "peft_config", None) else []

    @apply_lora_scale("joint_attention_kwargs")
    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor = None,
        pooled_projections: torch.Tensor = None,
        timestep: torch.LongTensor = None,
        img_ids: torch.Tensor = None,
        txt_ids: torch.Tensor = None,
        guidance: torch.Tensor = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        controlnet_block_samples: Sequence[torch.Tensor] | None = None,
        controlnet_single_block_samples: Sequence[torch.Tensor] | None = None,
        return_dict: bool = True,
        controlnet_blocks_repeat: bool = False,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict the velocity. hidden_states [B, I, channels], encoder_hidden_states [B, T, D_text],
        pooled_projections [B, P], timestep and guidance [B], timestep in [0, 1] -> [B, I, channels].

        With a condition its token positions replace `txt_ids` and `img_ids`, which may then be None.
        """
        condition = condition_of(joint_attention_kwargs)
        if self.ulysses is not None and not isinstance(condition, SharedCondition):
            rest = {"timestep": timestep, "guidance": guidance, "pooled_projections": pooled_projections}
            controlled = controlnet_block_samples is not None or controlnet_single_block_samples is not None
            sample = self.ulysses.run(self, hidden_states, condition, controlled, **rest)
            return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)
        if condition is None:
            x, positions = hidden_states, stock_positions(txt_ids, img_ids)
        else:
            x = with_condition_rows(condition, hidden_states, encoder_hidden_states)
            positions = condition.tokens.positions[:, : encoder_hidden_states.shape[1] + x.shape[1]]
        rows = Rows(x.shape[1] - hidden_states.shape[1], self.cond_adapters)

        # in the dtype of the input: that of x_embedder's output, 16 bit under autocast, would round the time to 1/250
        temb = self._time_embedding(timestep.to(hidden_states.dtype), guidance, pooled_projections, rows)
        image, text = linear(self.x_embedder, x, rows), self.context_embedder(encoder_hidden_states)
        rotation = self._rotation(positions)
        plan, cond_keys = (condition.plan, condition.cond_keys) if condition else (None, None)

        doubles, singles = self.transformer_blocks, self.single_transformer_blocks
        residuals = [
            *control_residuals(controlnet_block_samples, len(doubles), controlnet_blocks_repeat),
            *control_residuals(controlnet_single_block_samples, len(singles)),
        ]
        for number, (block, residual) in enumerate(zip([*doubles, *singles], residuals, strict=True)):
            context = {"context": BlockContext(number, rows, plan, cond_keys)}
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                text, image = self._gradient_checkpointing_func(block, image, text, temb, rotation, context)
            else:
                text, image = block(
                    hidden_states=image,
                    encoder_hidden_states=text,
                    temb=temb,
                    image_rotary_emb=rotation,
                    joint_attention_kwargs=context,
                )
            if residual is not None:
                image = image + F.pad(residual, (0, 0, 0, rows.n_cond))

        sample = self.proj_out(self.norm_out(image[:, : hidden_states.shape[1]], temb[:, 0]))
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _time_embedding(
        self, timestep: torch.Tensor, guidance: torch.Tensor | None, pooled: torch.Tensor, rows: Rows
    ) -> torch.Tensor:
        """[B, 1, D] of time, guidance and pooled text; [B, 2, D] with a condition, whose time is 0."""
        guidances = () if guidance is None else (guidance.to(timestep.dtype) * 1000,)
        times = [timestep * 1000, torch.zeros_like(timestep)][: 1 + rows.of_modulation.n_cond]
        return torch.stack([self.time_text_embed(time, *guidances, pooled) for time in times], 1)

    def _rotation(self, positions: torch.Tensor) -> torch.Tensor:
        """RoPE of token positions [B or 1, L, 3] as complex numbers of length 1, [B or 1, L, 1, d / 2]."""
        cos, sin = self.pos_embed(positions.flatten(0, 1))
        return torch.complex(cos[:, ::2], sin[:, ::2]).unflatten(0, positions.shape[:2])[:, :, None]


@contextlib.contextmanager
def several_adapters() -> Iterator[None]:
    """Without peft's warning that a second adapter may not be intended: here it always is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        yield


def condition_of(joint_attention_kwargs: dict[str, Any] | None) -> Condition | None:
    """What the transformer is called with; None: plain FLUX. Raises UserError for keys that nothing here reads."""
    given = dict(joint_attention_kwargs or {})
    condition = given.pop("condition", None)
    if given:
        raise UserError(f"joint_attention_kwargs {', '.join(given)}: only 'condition' and 'scale' are supported")
    return condition


def with_condition_rows(condition: Condition, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """[B, I + C, channels]: the image tokens, then the condition's if their keys are not known already."""
    tokens = condition.tokens
    given, expected = (*text.shape[:2], image.shape[1]), (tokens.batch_size, tokens.n_text, tokens.n_image)
    if given != expected:
        raise UserError(f"(batch, text, image) tokens are {given} but the condition was prepared for {expected}")
    if condition.cond_hidden_states is None or (condition.cond_keys and condition.cond_keys.of_block):
        return image
    return torch.cat([image, condition.cond_hidden_states.to(image.dtype)], 1)


def stock_positions(txt_ids: torch.Tensor, img_ids: torch.Tensor) -> torch.Tensor:
    """[1, T + I, 3] from ids [T, 3] and [I, 3], or the older [B, T, 3] and [B, I, 3] whose rows are equal."""
    return torch.cat([ids[0] if ids.ndim == 3 else ids for ids in (txt_ids, img_ids)])[None]


def control_residuals(
    samples: Sequence[torch.Tensor] | None, n_blocks: int, repeat: bool = False
) -> list[torch.Tensor | None]:
    """What a ControlNet adds to the image rows after each block: its outputs, each for a run of blocks or in turns."""
    if samples is None:
        return [None] * n_blocks
    run = math.ceil(n_blocks / len(samples))
    return [samples[i % len(samples) if repeat else i // run] for i in range(n_blocks)]
