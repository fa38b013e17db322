"""Write a stock FLUX transformer as other programs do: in Black Forest Labs' names, in 8-bit floats, as GGUF.

Independent of `seg2any.bases.flux1.bfl_names`: layers are taken from the modules, not from their names.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor, nn

COMFY = "model.diffusion_model."


def bfl_weights(model: FluxTransformer2DModel) -> dict[str, Tensor]:
    """Return the weights under the names of Black Forest Labs' own code."""
    embed, found = model.time_text_embed, {}

    def put(name: str, *layers: nn.Linear) -> None:
        for kind in ("weight", "bias"):
            found[f"{name}.{kind}"] = torch.cat([getattr(layer, kind).detach() for layer in layers])

    def put_norms(name: str, query: nn.Module, key: nn.Module) -> None:
        found[f"{name}.query_norm.scale"] = query.weight.detach().clone()
        found[f"{name}.key_norm.scale"] = key.weight.detach().clone()

    put("img_in", model.x_embedder)
    put("txt_in", model.context_embedder)
    steps = [("time_in", embed.timestep_embedder), ("vector_in", embed.text_embedder)]
    if model.config.guidance_embeds:
        steps.append(("guidance_in", embed.guidance_embedder))
    for name, step in steps:
        put(f"{name}.in_layer", step.linear_1)
        put(f"{name}.out_layer", step.linear_2)
    for n, block in enumerate(model.transformer_blocks):
        begin, attn = f"double_blocks.{n}.", block.attn
        put(f"{begin}img_mod.lin", block.norm1.linear)
        put(f"{begin}txt_mod.lin", block.norm1_context.linear)
        put(f"{begin}img_attn.qkv", attn.to_q, attn.to_k, attn.to_v)
        put(f"{begin}txt_attn.qkv", attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        put_norms(f"{begin}img_attn.norm", attn.norm_q, attn.norm_k)
        put_norms(f"{begin}txt_attn.norm", attn.norm_added_q, attn.norm_added_k)
        put(f"{begin}img_attn.proj", attn.to_out[0])
        put(f"{begin}txt_attn.proj", attn.to_add_out)
        for name, mlp in (("img_mlp", block.ff), ("txt_mlp", block.ff_context)):
            put(f"{begin}{name}.0", mlp.net[0].proj)
            put(f"{begin}{name}.2", mlp.net[2])
    for n, block in enumerate(model.single_transformer_blocks):
        begin, attn = f"single_blocks.{n}.", block.attn
        put(f"{begin}modulation.lin", block.norm.linear)
        put(f"{begin}linear1", attn.to_q, attn.to_k, attn.to_v, block.proj_mlp)
        put(f"{begin}linear2", block.proj_out)
        put_norms(f"{begin}norm", attn.norm_q, attn.norm_k)
    put("final_layer.linear", model.proj_out)
    for kind, tensor in (("weight", model.norm_out.linear.weight), ("bias", model.norm_out.linear.bias)):
        scale, shift = tensor.detach().chunk(2)
        found[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
    return found


def save(weights: dict[str, Tensor], path: Path, prefix: str = "", dtype: torch.dtype | None = None) -> Path:
    """Write weights as safetensors, their names behind a prefix."""
    save_file({prefix + name: tensor.to(dtype or tensor.dtype).contiguous() for name, tensor in weights.items()}, path)
    return path


def in_scaled_fp8(weights: dict[str, Tensor], scale_name: str, per_row: bool = False) -> dict[str, Tensor]:
    """Store matrices as float8_e4m3 between -448 and 448 with their scales beside them, as ComfyUI does."""
    found = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)} if scale_name == "scale_weight" else {}
    for name, tensor in weights.items():
        if tensor.ndim < 2:
            found[name] = tensor
            continue
        most = tensor.abs().amax(1, keepdim=True) if per_row else tensor.abs().max()
        scale, layer = (most / 448).float(), name.removesuffix(".weight")
        found[name] = (tensor / scale).to(torch.float8_e4m3fn)
        found[f"{layer}.{scale_name}"] = scale
        found[f"{layer}.{'scale_input' if scale_name == 'scale_weight' else 'input_scale'}"] = torch.ones(())
    return found


def save_gguf(weights: dict[str, Tensor], path: Path, packing: str) -> Path:
    """Write weights as GGUF: what can be packed is, floats of 16 bits for biases too; the rest is F32."""
    import gguf

    kind = gguf.GGMLQuantizationType[packing]
    block, _ = gguf.GGML_QUANT_SIZES[kind]
    writer = gguf.GGUFWriter(path, "flux")
    for name, tensor in weights.items():
        numbers = tensor.float().numpy()
        if block == 1 or (tensor.ndim == 2 and tensor.shape[1] % block == 0):
            writer.add_tensor(name, gguf.quantize(numbers, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
