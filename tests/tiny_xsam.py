"""Build an X-SAM of a few thousand parameters for scenes of shapes, and runs that train it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from seg2any.data.shapes import ShapesDataset
from seg2any.data.words import Words, words_of
from seg2any.segment.xsam.conversation import CHATS, Encoder
from seg2any.segment.xsam.spans import Marks
from seg2any.training.tasks.xsam_writing import Writer

SAM = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
    "window_size": 2, "global_attn_indexes": [1], "mlp_ratio": 2.0, "output_channels": 8, "num_pos_feats": 4,
    "initializer_range": 0.02,
}  # fmt: skip
MASK = {
    "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 32,
    "dim_feedforward": 32, "encoder_layers": 1, "decoder_layers": 3, "num_attention_heads": 2, "num_queries": 5,
    "dropout": 0.0, "feature_strides": [8, 16, 32], "common_stride": 4,
}  # fmt: skip
SIGLIP = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
    "intermediate_size": 16,
}  # fmt: skip
MARKS = {"seg_token_id": 4, "phrase_start_id": 5, "phrase_end_id": 6}
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def config(**changes) -> dict:
    """Return the configuration of the whole model."""
    text = {
        "model_type": "phi3", "vocab_size": 256 + 16, "hidden_size": 16, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0,
        "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return {
        "model_type": "xsam",
        "sam_config": SAM,
        "mask_config": MASK,
        "siglip_config": SIGLIP,
        "text_config": text,
        "connector_layers": [1, 2, 2],
        "connector_scales": [2, 1, 0.5],
        "connector_channels": 8,
        "max_length": 1024,
        **MARKS,
        **changes,
    }


def tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer of bytes with the marks of X-SAM."""
    special = ["<pad>", "<s>", "<|end|>", "<|user|>", "<SEG>", "<p>", "</p>", "<|assistant|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    found = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="<|end|>", pad_token="<pad>")
    found.add_tokens(special[3:], special_tokens=True)
    return found


def write_model(folder: Path, **changes) -> Path:
    """Write configuration and tokenizer of a model without weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(**changes)))
    tokenizer().save_pretrained(folder)
    return folder


def arguments(task: str, model: Path, folder: Path, *options: str) -> list[str]:
    """Return the command line of a short run."""
    return [
        *(f"--task={task}", f"--xsam.model={model}", f"--project.output_dir={folder}", "--mixed_precision=no"),
        *("--data.train.type=shapes", "--data.train.params={n_scenes: 12, entities: [2, 4], size: 64}"),
        *("--trainer.train_batch_size=2", "--trainer.gradient_accumulation_steps=2", "--trainer.learning_rate=1e-3"),
        *("--trainer.gradient_checkpointing=false", "--trainer.ema_decay=0.5", "--trainer.max_train_steps=4"),
        *("--trainer.checkpointing_steps=2", "--trainer.log_steps=1", "--xsam.points=32"),
        *options,
    ]


def fit(words: list[str]):
    """Train in this process; return the trainer."""
    from seg2any.training import config as configs
    from seg2any.training.tasks.choose import make_task
    from seg2any.training.trainer import Trainer

    settings = configs.load(words)
    trainer = Trainer(settings, make_task(settings))
    trainer.fit()
    return trainer


def words() -> Words:
    """Open a dozen small scenes with what can be asked of them."""
    return words_of(ShapesDataset("train", 12, entities=(2, 4), size=64))


def writer(words: Words) -> Writer:
    """Build the writer of conversations for the tiny model."""
    encoder = Encoder(tokenizer(), CHATS["phi3"], Marks(*MARKS.values()), 1024)
    return Writer(encoder, words.categories, SAM["image_size"], SIGLIP["image_size"])


def generator(seed: int = 0) -> torch.Generator:
    """Make a generator with a seed."""
    return torch.Generator().manual_seed(seed)
