"""The training config: defaults, files and command line, and its one-line mistakes."""

import json
from pathlib import Path

import pytest
import yaml

from seg2any.system.errors import UserError
from seg2any.training import config
from seg2any.training.config import Config
from tests.golden_root import golden_root

REPOSITORY = Path(__file__).parents[1]
GOLDEN = golden_root()


def test_defaults_files_and_command_line_in_that_order(tmp_path):
    (tmp_path / "a.yaml").write_text("resolution: 64\nmodel: {rank: 4, hard_attn_block_range: [2, 4]}\n")
    (tmp_path / "b.yaml").write_text("model: {rank: 8}\n")
    loaded = config.load([str(tmp_path / "a.yaml"), "--resolution=96", str(tmp_path / "b.yaml"), "--seed", "7"])
    assert isinstance(loaded, Config)
    assert (loaded.resolution, loaded.model.rank, loaded.model.condition.hard_attn_block_range) == (96, 8, (2, 4))
    assert (loaded.seed, loaded.trainer.learning_rate, loaded.dry_run) == (7, 1e-4, False)


def test_command_line_values_get_their_types():
    arguments = ["--trainer.learning_rate=1e-3", "--data.train.params.entities=[1,4]", "--data.train.type", "shapes"]
    loaded = config.load([*arguments, "--resume_from_checkpoint", "latest", "--dry_run"])
    assert loaded.trainer.learning_rate == 1e-3 and loaded.dry_run is True
    assert loaded.data.train.params == {"entities": [1, 4]} and loaded.data.train.type == "shapes"
    assert loaded.resume_from_checkpoint == "latest"


def test_an_unquoted_no_stays_a_string_as_precision(tmp_path):
    (tmp_path / "a.yaml").write_text("mixed_precision: no\n")
    assert config.load([str(tmp_path / "a.yaml")]).mixed_precision == "no"
    assert config.load(["--mixed_precision=no"]).mixed_precision == "no"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--model.rnak=4", "unknown key 'model.rnak'; did you mean 'model.rank'?"),
        ("--learning_rate=1", "unknown key 'learning_rate'; did you mean 'trainer.learning_rate'?"),
        ("--trainer.train_batchsize=1", "did you mean 'trainer.train_batch_size'?"),
        ("--model.rank=many", "--model.rank: model.rank: Value 'many'"),
        ("--model=3", "'model' is a section"),
        ("--model.rank=0", "model.rank: 0 is not possible; it must be at least 1"),
        ("--model.rank=[", "--model.rank: not readable as yaml"),
        ("--model.rank=${", "--model.rank: "),
        ("--seed=-1", "seed: -1 is not possible; it must be at least 0"),
        ("--trainer.validation_steps=0", "trainer.validation_steps: 0 is not possible; it must be at least 1"),
        ("--trainer.validation_loss_steps=0", "trainer.validation_loss_steps: 0 is not possible"),
        ("--trainer.max_train_steps=0", "trainer.max_train_steps: 0 is not possible; it must be at least 1"),
        ("--trainer.learning_rate=0", "trainer.learning_rate: 0.0 is not possible; it must be positive"),
        ("--trainer.learning_rate=nan", "trainer.learning_rate: nan is not possible"),
        ("--optimizer.adam_beta1=1", "optimizer.adam_beta1: 1.0 is not possible; it must be at least 0 and less than"),
        ("--trainer.caption_dropout=1.1", "trainer.caption_dropout: 1.1 is not possible; it must lie in [0, 1]"),
        ("--trainer.ema_decay=1.5", "trainer.ema_decay: 1.5 is not possible"),
        ("--mixed_precision=fp8", "choose one of auto, no, fp16, bf16"),
        ("--model.use_lora_bias=true", "model.use_lora_bias"),
        ("--model.hard_attn_block_range=[1]", "hard_attn_block_range"),
        ("--seed=null", "--seed: seed"),
        ("--seed=9223372036854775808", "seed: 9223372036854775808 is not possible; it must be less than 2^63"),
        ("--model.hard_attn_block_range.0=3", "; give a list such as [19,37]"),
        ("--model.hard_attn_block_range=19,37", "is '19,37'; give a list such as [19,37]"),
        ("--data.train.params=[1]", "'data.train.params' is [1]; give names with values such as {split: val}"),
        ("--data.train.params=null", "'data.train.params' is None; give names"),
        ("--project.report_to=none", "choose one of null, tensorboard, wandb"),
        ("--scheduler.lr_power=nan", "scheduler.lr_power: nan is not possible"),
        ("--scheduler.lr_num_cycles=-1", "scheduler.lr_num_cycles: -1 is not possible; it must be at least 1"),
        ("--model.logit_std=-1", "model.logit_std: -1.0 is not possible"),
        ("--model.logit_mean=nan", "model.logit_mean: nan is not possible; it must be finite"),
        ("--model.lora_dropout=1", "model.lora_dropout: 1.0 is not possible; it must be at least 0 and less than 1"),
        ("missing.yaml", "missing.yaml: "),
    ],
)
def test_mistakes_are_one_line_that_names_key_and_fix(argument, message):
    with pytest.raises(UserError) as caught:
        config.load([argument])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_broken_yaml_names_the_file(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("model: [1, {")
    with pytest.raises(UserError, match="broken.yaml: not readable as yaml") as caught:
        config.load([str(path)])
    assert "\n" not in str(caught.value)


def test_a_dotted_key_in_a_file_is_refused_with_the_nested_spelling(tmp_path):
    (tmp_path / "a.yaml").write_text("model.rank: 4\n")
    with pytest.raises(UserError, match="a.yaml: unknown key 'model.rank': in a file, write it as a section, such as"):
        config.load([str(tmp_path / "a.yaml")])


def test_saved_config_loads_as_the_same_config(tmp_path):
    loaded = config.load(["--model.rank=3", "--data.train.params.split=val", "--optimizer.max_grad_norm=0.5"])
    loaded.save(tmp_path / "config.yaml")
    assert config.load([str(tmp_path / "config.yaml")]) == loaded


OLD = ("--data.train.type=shapes", "--data.train.params={split: val, n_scenes: 3}")


@pytest.mark.parametrize(
    ("later", "params"),
    [
        (("--data.train.type=folder", "--data.train.params.image_root=a"), {"image_root": "a"}),
        (("--data.train.params.image_root=a", "--data.train.type=folder"), {"image_root": "a"}),
        (("--data.train.target=x.Y", "--data.train.type=folder"), {}),
        (("--data.train.type=shapes", "--data.train.params.n_scenes=4"), {"split": "val", "n_scenes": 4}),
        (("--data.val.type=folder", "--data.val.params.image_root=a"), {"split": "val", "n_scenes": 3}),
    ],
)
def test_another_data_set_does_not_inherit_parameters(later: tuple, params: dict, tmp_path):
    config.load(OLD).save(tmp_path / "old.yaml")
    assert config.load([str(tmp_path / "old.yaml"), *later]).data.train.params == params


def test_of_two_data_sets_on_a_command_line_the_later_has_the_parameters_behind_it():
    later = ["--data.train.type=folder", "--data.train.params.image_root=a"]
    assert config.load([*OLD, *later]).data.train.params == {"image_root": "a"}


def test_the_name_of_a_published_class_is_the_same_data_set(tmp_path):
    published = ["--data.train.target=dataset.ade20k_dataset.ADE20KDataset", "--data.train.params.image_root=a"]
    assert config.load([*published, "--data.train.type=ade20k"]).data.train.params == {"image_root": "a"}
    (tmp_path / "new.yaml").write_text("data: {train: {type: coco_stuff}}")
    assert config.load([*published, str(tmp_path / "new.yaml")]).data.train.params == {}


RUNS = [*(REPOSITORY / "config").glob("seg2any_*.yaml"), *(REPOSITORY / "config").glob("ablation_*.yaml")]
SHAPES = REPOSITORY / "config" / "seg2any_shapes.yaml"
LATER = {
    "seg2any_shapes_edges": (),
    "seg2any_shapes_sizes": (),
    "seg2any_shapes_coloring": (),
    "seg2any_shapes_isolated": (SHAPES.with_stem("seg2any_shapes_edges"),),
}


@pytest.mark.parametrize("path", sorted(RUNS), ids=lambda path: path.stem)
def test_shipped_configs_load_and_hold_only_what_differs(path):
    over_shapes = path.stem in LATER or path.stem.startswith("ablation_")
    below = [str(SHAPES), *map(str, LATER.get(path.stem, ()))] if over_shapes else []
    config.load([*below, str(path)])
    default = yaml.safe_load(config.load(below).to_yaml())

    def repeated(content, reference, prefix=""):
        for key, value in content.items():
            if isinstance(value, dict) and key != "params":
                yield from repeated(value, reference[key], f"{prefix}{key}.")
            elif value == reference[key]:
                yield f"{prefix}{key}"

    assert not list(repeated(yaml.safe_load(path.read_text()), default))


@pytest.mark.parametrize("index", sorted(GOLDEN.glob("train/*/index.json")), ids=lambda path: path.parent.name)
def test_published_configs_keep_working(index, tmp_path):
    published = json.loads(index.read_text())["cfg"]
    (tmp_path / "published.yaml").write_text(yaml.safe_dump(published))
    loaded = config.load([str(tmp_path / "published.yaml")])
    assert loaded.model.rank == published["model"]["rank"]
    assert loaded.trainer.learning_rate == published["trainer"]["learning_rate"]
    assert loaded.data.train.target == published["data"]["train"]["target"]
