"""Let FLUX.1's transformer take a `Condition`.

The stock class is subclassed; no code is copied and no weight is added. Stock weights, quantisation, offloading, caches
and LoRA loaders of diffusers keep working. Without a condition the output is bit for bit the stock model's, and the
adapter `cond` is not used.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_flux import FluxAttention
from diffusers.utils import apply_lora_scale
from peft import PeftConfig
from torch import nn

from seg2any.adapters.fold import is_folded, unfold
from seg2any.adapters.low_rank import forget
from seg2any.adapters.routing import COND, DEFAULT, Rows, linear, refuse_unroutable
from seg2any.attention.names import check_backend
from seg2any.bases.flux1.blocks import RegionalAttnProcessor, RegionalDoubleBlock, RegionalSingleBlock
from seg2any.bases.flux1.context import BlockContext
from seg2any.bases.flux1.inputs import condition_of, control_residuals, stock_positions, with_condition_rows
from seg2any.bases.flux1.ulysses import Ulysses
from seg2any.system.errors import UserError

CONDITION_LAYERS = {
    "transformer_blocks": (
        *("norm1.linear", "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.0.proj", "ff.net.2"),
    ),
    "single_transformer_blocks": ("norm.linear", "proj_mlp", "proj_out", "attn.to_q", "attn.to_k", "attn.to_v"),
}


class Seg2AnyTransformer2DModel(FluxTransformer2DModel):
    """The transformer of Seg2Any (paper section 3).

    `forward` has the stock signature; the condition arrives as `joint_attention_kwargs={"condition": Condition}`.

    ulysses        the processes that share an image, for `seg2any.bases.flux1.base.velocity`; None: this one alone
    cond_adapters  names of the adapters that act on condition tokens; all others act on text and image tokens
    """

    _no_split_modules = ["RegionalDoubleBlock", "RegionalSingleBlock"]
    _repeated_blocks = ["RegionalDoubleBlock", "RegionalSingleBlock"]
    _cp_plan = None  # its hooks would split the sequence without the mask; see enable_parallelism

    ulysses: Ulysses | None = None
    cond_adapters: frozenset[str] = frozenset({COND})

    @functools.wraps(FluxTransformer2DModel.__init__)  # from_config reads the signature
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._adopt_blocks()

    @classmethod
    def adopt(cls, stock: FluxTransformer2DModel) -> Seg2AnyTransformer2DModel:
        """Turn a stock transformer into this class in place; leave one of this class unchanged."""
        if not isinstance(stock, cls):
            stock.__class__ = cls
            stock._adopt_blocks()
        return stock

    @property
    def blocks(self) -> list[nn.Module]:
        """Return the attention blocks in order: double blocks, then single blocks."""
        return [*self.transformer_blocks, *self.single_transformer_blocks]

    def _adopt_blocks(self) -> None:
        for block in self.transformer_blocks:
            block.__class__ = RegionalDoubleBlock
        for block in self.single_transformer_blocks:
            block.__class__ = RegionalSingleBlock
        for module in self.modules():
            if isinstance(module, FluxAttention):
                module.set_processor(RegionalAttnProcessor())
        for block_class in (RegionalDoubleBlock, RegionalSingleBlock):  # diffusers' step caches look here
            TransformerBlockRegistry.register(block_class, TransformerBlockMetadata(1, 0))

    @property
    def adapter_layers(self) -> dict[str, list[str]]:
        """Return the names of the Linear layers of each adapter (paper eq. 4).

        `default` is on every Linear of the blocks, `cond` on `x_embedder` and on those that condition tokens pass.
        """
        default = [
            f"{stack}.{name.removesuffix('.base_layer')}"
            for stack in CONDITION_LAYERS
            for name, module in getattr(self, stack).named_modules()
            if isinstance(module, nn.Linear) and ".lora_" not in name
        ]
        cond = [
            f"{stack}.{block}.{layer}"
            for stack, layers in CONDITION_LAYERS.items()
            for block in range(len(getattr(self, stack)))
            for layer in layers
        ]
        return {DEFAULT: default, COND: ["x_embedder", *cond]}

    def set_attention_backend(self, backend: str) -> None:
        """Refuse every backend but "native": most of diffusers' kernels ignore the regions.

        Our backends are a setting, `ConditionSettings.attention_backend`. Raises UserError.
        """
        if backend != "native":
            check_backend(backend)
            how = f'settings=pipe.settings.override({{"attention_backend": "{backend}"}})'
            raise UserError(f"set_attention_backend: {backend!r} would ignore the regions; call pipe(.., {how})")

    def enable_parallelism(self, *, config: Any, cp_plan: Any = None) -> None:
        """Share the generation of every image among processes.

        All of them call the pipeline with equal arguments.

        config  `ContextParallelConfig(ulysses_degree=n)` of diffusers

        Raises UserError for other configurations: ring attention and plans split the sequence without the mask.
        """
        if self.ulysses is not None or cp_plan is not None:
            raise UserError("enable_parallelism: already enabled, or cp_plan given; call it once, without cp_plan")
        self.ulysses = Ulysses(config, self.config.num_attention_heads, self.device)

    def add_adapter(self, adapter_config: PeftConfig, adapter_name: str = DEFAULT) -> None:
        """Add an adapter as in diffusers; active adapters stay active.

        Raises UserError for an adapter that cannot be routed.
        """
        refuse_unroutable(adapter_config.to_dict(), adapter_name)
        active = self._active()
        with several_adapters():
            super().add_adapter(adapter_config, adapter_name)
        self.set_adapter([*active, adapter_name])

    def load_lora_adapter(self, pretrained_model_name_or_path_or_dict, prefix="transformer", hotswap=False, **kwargs):
        """Load an adapter as in diffusers; active adapters stay active.

        Raises UserError for an adapter that cannot be routed.
        """
        source, name = pretrained_model_name_or_path_or_dict, kwargs.get("adapter_name") or "LoRA"
        options = {key.removeprefix(f"{prefix}."): value for key, value in (kwargs.get("metadata") or {}).items()}
        refuse_unroutable(options, name, source if isinstance(source, dict) else ())
        active, known = self._active(), set(getattr(self, "peft_config", ()))
        forget(self)  # a hot swap writes into weights without a trace
        with several_adapters():
            super().load_lora_adapter(source, prefix=prefix, hotswap=hotswap, **kwargs)
        loaded = [name for name in getattr(self, "peft_config", ()) if name not in known]
        for name in loaded:
            refuse_unroutable(self.peft_config[name].to_dict(), name)
        if loaded:
            self.set_adapter([*active, *loaded])

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Delete adapters as in diffusers; a folded one is subtracted from the weights first."""
        if DEFAULT in ([adapter_names] if isinstance(adapter_names, str) else adapter_names) and is_folded(self):
            unfold(self)
        super().delete_adapters(adapter_names)

    def unload_lora(self) -> None:
        """Unload all adapters as in diffusers; a folded one is subtracted from the weights first."""
        if is_folded(self):
            unfold(self)
        super().unload_lora()

    def _apply(self, fn: Callable, recurse: bool = True) -> Seg2AnyTransformer2DModel:
        """Move or convert all weights; stacks made of them would keep the old ones' memory."""
        forget(self)
        return super()._apply(fn, recurse)

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
        """Predict the velocity [B, I, channels].

        hidden_states          image tokens [B, I, channels]
        encoder_hidden_states  text tokens [B, T, D_text]
        pooled_projections     [B, P]
        timestep, guidance     [B]; timestep in [0, 1]
        txt_ids, img_ids       unused with a condition, which has positions of its own
        """
        condition, tap = condition_of(joint_attention_kwargs)
        if condition is None:
            visual, positions = hidden_states, stock_positions(txt_ids, img_ids)
        else:
            visual = with_condition_rows(condition, hidden_states, encoder_hidden_states)
            positions = condition.positions[:, : encoder_hidden_states.shape[1] + visual.shape[1]]
        n_image = hidden_states.shape[1]
        rows = Rows(visual.shape[1] - n_image, self.cond_adapters)

        # in the dtype of the input: under autocast x_embedder returns 16 bit, which would round the time to 1/250
        temb = self._time_embedding(timestep.to(hidden_states.dtype), guidance, pooled_projections, rows)
        visual, text = linear(self.x_embedder, visual, rows), self.context_embedder(encoder_hidden_states)
        rotation = self._rotation(positions)
        plan, cond_keys = (condition.plan, condition.cond_keys) if condition else (None, None)
        residuals = self._residuals(controlnet_block_samples, controlnet_single_block_samples, controlnet_blocks_repeat)
        for number, (block, residual) in enumerate(zip(self.blocks, residuals, strict=True)):
            context = BlockContext(number, rows, plan, cond_keys, tap)
            text, visual = self._run(block, visual, text, temb, rotation, context)
            if residual is not None:
                visual = visual + F.pad(residual, (0, 0, 0, rows.n_cond))

        sample = self.proj_out(self.norm_out(visual[:, :n_image], temb[:, 0]))
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _run(
        self,
        block: nn.Module,
        visual: torch.Tensor,
        text: torch.Tensor,
        temb: torch.Tensor,
        rotation: torch.Tensor,
        context: BlockContext,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run a block, with gradient checkpointing if it is on; return new text and visual rows."""
        given = {"context": context}
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, visual, text, temb, rotation, given)
        return block(
            hidden_states=visual,
            encoder_hidden_states=text,
            temb=temb,
            image_rotary_emb=rotation,
            joint_attention_kwargs=given,
        )

    def _residuals(
        self, double: Sequence[torch.Tensor] | None, single: Sequence[torch.Tensor] | None, repeat: bool
    ) -> Iterator[torch.Tensor | None]:
        """Yield the ControlNet residual to add to the image rows after each block, or None."""
        yield from control_residuals(double, len(self.transformer_blocks), repeat)
        yield from control_residuals(single, len(self.single_transformer_blocks))

    def _time_embedding(
        self, timestep: torch.Tensor, guidance: torch.Tensor | None, pooled: torch.Tensor, rows: Rows
    ) -> torch.Tensor:
        """Embed time, guidance and pooled text: [B, 1, D], or [B, 2, D] with a condition (time 0)."""
        guidances = () if guidance is None else (guidance.to(timestep.dtype) * 1000,)
        times = [timestep * 1000, torch.zeros_like(timestep)][: 1 + rows.of_modulation.n_cond]
        return torch.stack([self.time_text_embed(time, *guidances, pooled) for time in times], 1)

    def _rotation(self, positions: torch.Tensor) -> torch.Tensor:
        """Compute RoPE of positions [B or 1, L, 3]: cos and sin [B or 1, L, 1, d / 2, 2]."""
        cos, sin = self.pos_embed(positions.flatten(0, 1))
        return torch.stack([cos[:, ::2], sin[:, ::2]], -1).unflatten(0, positions.shape[:2])[:, :, None]


@contextlib.contextmanager
def several_adapters() -> Iterator[None]:
    """Silence peft's warning about a second adapter: here it is always intended."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        yield
