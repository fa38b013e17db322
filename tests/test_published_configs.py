"""Published configs as they are in config/, run on small copies of the data."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from seg2any.training import config
from tests import tiny_run
from tests.golden_root import golden_root
from tests.synthetic_data import make_ade20k, make_coco_stuff, make_sacap_1m
from tests.tiny_run import losses

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[1] / "config"
# Only what the recorded model's size requires; data folders, data sets and method come from the file.
SMALL = (
    f"--model.pretrained_model_name_or_path={golden_root() / 'pipeline' / 'model'}",
    *("--resolution=64", "--model.rank=4", "--model.hard_attn_block_range=[1,2]", "--model.num_inference_steps=2"),
    *("--mixed_precision=no", "--trainer.train_batch_size=2", "--dataloader_num_workers=0"),
    *("--trainer.num_validation_images=1", "--trainer.num_validation_samples=2", "--trainer.log_steps=1"),
)
# Settings of the published runs: resolution, contour factor, mask method, tokens of a region.
PUBLISHED = {
    "ade20k": (512, 1, "base", 10),
    "coco_stuff": (512, 1, "base", 10),
    "sacap_1m": (1024, 2, "hard", 50),
}


def make_data(name: str, folder: Path) -> None:
    if name == "ade20k":
        make_ade20k(folder, split="training")
        make_ade20k(folder, split="validation")
    elif name == "coco_stuff":
        make_coco_stuff(folder, split="train2017")
        make_coco_stuff(folder, split="val2017")
    else:
        make_sacap_1m(folder)
        make_sacap_1m(folder / "test", n=2, groups=0, seed=1)
        test, final = folder / "test" / "SACap-1M", folder / "SACap-1M"
        shutil.move(test / "raw", final / "test")
        shutil.move(test / "annotations" / "anno_train.parquet", final / "annotations" / "anno_test.parquet")


@pytest.mark.filterwarnings(
    "ignore::seg2any.bases.flux1.text.TruncationWarning"
)  # the recorded tokenizer spells letter by letter
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_starts_trains_and_resumes(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the data folders of the config are relative
    make_data(name, tmp_path / "data")
    command = [str(CONFIGS / f"seg2any_{name}.yaml"), *SMALL]
    run = tmp_path / "runs" / name
    tiny_run.trainer([*command, "--trainer.max_train_steps=2"]).fit()
    assert (run / "checkpoint-2" / "cond" / "pytorch_lora_weights.safetensors").is_file()
    resumed = tiny_run.trainer([*command, "--trainer.max_train_steps=3", "--resume_from_checkpoint=latest"])
    resumed.fit()
    assert resumed.progress.step == 3 and sorted(losses(run)) == [1, 2, 3]
    assert len(list((run / "gen_imgs").glob("step-3/*.png"))) == 1


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_a_published_config_has_the_published_settings(name, published):
    ours = config.load([str(CONFIGS / f"seg2any_{name}.yaml")])
    model, trainer, adam = ours.model, ours.trainer, ours.optimizer
    condition = model.condition
    assert (
        ours.resolution,
        condition.cond_scale_factor,
        condition.attention_mask_method,
        condition.regional_max_sequence_length,
    ) == published
    assert (model.rank, model.lora_alpha, condition.hard_attn_block_range) == (64, None, (19, 37))
    assert (condition.max_sequence_length, model.num_inference_steps, model.weighting_scheme) == (512, 32, "none")
    assert (trainer.train_batch_size, trainer.max_train_steps, trainer.learning_rate) == (4, 20000, 1e-4)
    assert (trainer.guidance_scale, trainer.gradient_checkpointing, ours.mixed_precision) == (1.0, True, "bf16")
    assert (adam.adam_beta1, adam.adam_beta2, adam.adam_weight_decay, adam.adam_epsilon) == (0.9, 0.999, 1e-2, 1e-8)
    assert (adam.max_grad_norm, ours.scheduler.lr_scheduler) == (1.0, "constant")
