"""train.py as a command: mistakes, dry runs, signals, logs."""

import signal
import time
from types import SimpleNamespace

import pytest
import torch

import train as command_line
from seg2any.data.shapes import ShapesDataset
from seg2any.system.errors import UserError
from seg2any.training import config, dry_run
from seg2any.training import log as run_log
from seg2any.training.dry_run import describe
from seg2any.training.log import start_trackers
from seg2any.training.tasks.generation import Generation
from seg2any.training.trainer import Trainer
from tests import tiny_run
from tests.golden_root import REPOSITORY
from tests.tiny_run import fit, losses, rows

pytestmark = pytest.mark.slow


def test_sigterm_leaves_a_checkpoint_that_the_next_run_continues(arguments, tmp_path):
    long = [*arguments, "--trainer.max_train_steps=100000", "--trainer.checkpointing_steps=100000"]
    running = tiny_run.start(long)
    log = tmp_path / "run" / "log.jsonl"
    while running.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= 2):
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    _, error = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM, error
    (folder,) = (tmp_path / "run").glob("checkpoint-*")
    step = int(folder.name.split("-")[1])
    assert step == max(losses(tmp_path / "run"))

    trainer = fit([*arguments, "--resume_from_checkpoint=latest", f"--trainer.max_train_steps={step + 1}"])
    assert trainer.progress.step == step + 1
    assert sorted(losses(tmp_path / "run")) == list(range(1, step + 2))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--model.rnak=4", "did you mean 'model.rank'"),
        ("--model.attention_mask_method=soft", "'soft'; use one of hard, base"),
        ("--model.weighting_scheme=lognormal", "'lognormal'; choose one of none, logit_normal"),
        ("--data.train.type=shape", "data set 'shape' does not exist; choose one of ade20k"),
        ("--data.train.params.colour=red", "unknown parameter 'colour'"),
        ("--model.pretrained_model_name_or_path=/nowhere", "model.pretrained_model_name_or_path: /nowhere"),
        ("--resume_from_checkpoint=/nowhere", "/nowhere is not a folder"),
        ("--trainer.compile=true", "trainer.compile: "),
        ("--trainer.base_quantization=nf4", "trainer.base_quantization: nf4 needs"),
    ],
)
def test_mistakes_are_one_line_and_no_traceback(arguments, capsys, extra, message):
    assert command_line.main([*arguments, extra]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py: ")]
    assert message in line


def test_a_mistake_ends_the_process_with_2(arguments):
    running = tiny_run.start([*arguments, "--seed=soon"])
    output, error = running.communicate(timeout=60)
    assert running.returncode == 2 and not output and error.startswith("train.py: --seed: ") and error.count("\n") == 1


def test_dry_run_prints_config_parameters_and_tokens(arguments, tmp_path):
    described = describe(config.load([*arguments, "--dry_run"]))
    assert "learning_rate: 0.01" in described and "image tokens per sample: 16 on average" in described
    assert "11 samples" in described and "4 steps" in described
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--resolution=72", "image size 72x72 .* multiples of 16"),
        (
            "--scheduler.lr_scheduler=cosin",
            "scheduler.lr_scheduler: 'cosin' .* linear, cosine,",
        ),
        ("--scheduler.lr_scheduler=piecewise_constant", "scheduler.lr_step_rules: .* 1:1000,0.1:2000,0.01"),
        ("--scheduler.lr_step_rules=1:10,0.1", "scheduler.lr_step_rules: .*piecewise_constant"),
        ("--resume_from_checkpoint=/nowhere", "resume_from_checkpoint: /nowhere is not a folder"),
        ("--model.attention_mask_method=none", "no contour tokens to train; set model.is_use_cond_token to false"),
    ],
)
def test_dry_run_refuses_what_a_run_would_refuse(arguments, extra, message):
    with pytest.raises(UserError, match=message):
        describe(config.load([*arguments, extra, "--dry_run"]))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--model.hard_attn_block_range=[90,99]", "model.hard_attn_block_range: "),
        ("--model.rank=4096", "model.rank: 4096 .* at most"),
        ("--model.default_lora_layers=regular_expression:.*to_k", "model.default_lora_layers: "),
        ("--model.cond_lora_layers=regular_expression:*to_k", "model.cond_lora_layers: "),
        ("--model.lora_ckpt_path=/nowhere", "/nowhere: default/"),
        (f"--model.lora_ckpt_path={REPOSITORY}/examples/shapes/lora", "lora"),
    ],
)
def test_a_dry_run_and_a_run_refuse_what_does_not_fit_the_model(arguments, extra, message):
    for start in (describe, lambda settings: Trainer(settings, Generation(settings))):
        with pytest.raises(UserError, match=message):
            start(config.load([*arguments, extra]))


def test_dry_run_warns_of_blocks_that_the_model_does_not_have(arguments):
    with pytest.warns(UserWarning, match="hard_attn_block_range 3 99 .* acts in"):
        describe(config.load([*arguments, "--model.hard_attn_block_range=[3,99]", "--dry_run"]))


def test_dry_run_takes_adapters_to_start_from(arguments, tmp_path, recwarn):
    fit([*arguments, "--trainer.max_train_steps=1", "--trainer.checkpointing_steps=1"])
    start = f"--model.lora_ckpt_path={tmp_path / 'run' / 'checkpoint-1'}"
    assert "default parameters" in describe(config.load([*arguments, start]))
    assert not [warning for warning in recwarn if "meta" in str(warning.message)]


def test_the_prediction_beside_the_peak_is_that_of_the_dry_run(arguments, monkeypatch):
    trainer = tiny_run.trainer(arguments)
    predicted = trainer.task.predicted_bytes(trainer.shares)
    tiny_run.forget_accelerate()
    monkeypatch.setattr(dry_run, "GIB", 1)  # to see every byte
    assert f"together {predicted:.2f} GiB" in " ".join(describe(config.load(arguments)).split())


def test_the_peak_stands_beside_its_prediction(tmp_path, monkeypatch):
    sent = []
    accelerator = SimpleNamespace(
        is_main_process=True,
        device=torch.device("cpu"),
        reduce=lambda sums: sums,
        log=lambda row, step: sent.append(row),
    )
    monkeypatch.setattr(run_log, "peak_bytes", lambda device: 3 * 2**30)
    log = run_log.RunLog(tmp_path / "log.jsonl", accelerator, 0, 4)
    log.expect_memory(lambda: 2**30)
    log.begin()
    log.measure(torch.tensor(1.0), [(1, 2, 3)])
    log.step(1, every=1)
    (row,) = rows(tmp_path)
    assert (row["peak_gib"], row["predicted_gib"]) == (3, 1) and sent[0]["peak_gib"] == 3
    assert "3.00 of 1.00" in str(log.bar)


@pytest.mark.parametrize("side", ["train", "val"])
def test_sizes_that_contradict_the_run_are_refused_whatever_the_data_set(side):
    for name, value in (("resolution", 64), ("cond_scale_factor", 2)):
        given = [f"--data.{side}.type=shapes", f"--data.{side}.params.{name}={value}"]
        with pytest.raises(UserError, match=f"data.{side}.params.{name}: {value} contradicts"):
            config.load(given)
        assert config.load([*given, f"--{name}={value}"])


def test_dry_run_reads_no_more_than_some_samples(arguments, monkeypatch):
    read, original = set(), ShapesDataset.annotation
    monkeypatch.setattr(ShapesDataset, "annotation", lambda self, i: read.add(i) or original(self, i))
    described = describe(config.load([*arguments, "--data.train.params.n_scenes=200000", "--dry_run"]))
    assert "200,000 samples, 100,000 batches" in described and "64 of them" in described
    assert len(read) == 64 and max(read) > 190000


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [(OSError(28, "No space left on device"), 2, "No space left"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_errors_that_end_a_run_are_one_line(arguments, capsys, monkeypatch, error, status, message):
    def stop(self):
        raise error

    monkeypatch.setattr(Trainer, "fit", stop)
    assert command_line.main(arguments) == status
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.py: ") and message in line]


def test_tensorboard_gets_numbers_and_pictures(arguments, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    val = ["--data.val.type=shapes", "--data.val.params={split: val, n_scenes: 3}", "--project.report_to=tensorboard"]
    few = ["--trainer.num_validation_images=1", "--trainer.num_validation_samples=1", "--model.num_inference_steps=1"]
    fit([*arguments, *val, *few, "--trainer.max_train_steps=1"])
    read = accumulator.EventAccumulator(str(tmp_path / "run" / "logs" / "seg2any")).Reload()
    assert {"loss", "lr", "images_per_s", "padded", "val_loss"} <= set(read.Tags()["scalars"])
    assert read.Tags()["images"] == ["validation/000"]


def test_wandb_writes_into_the_folder_of_the_run(tmp_path):
    """Use a stand-in for accelerate; the tests do not need W&B.

    The real one was tried offline, with numbers and images.
    """
    told = {}
    accelerator = SimpleNamespace(
        logging_dir=str(tmp_path / "run" / "logs"),
        init_trackers=lambda name, **options: told.update(options, name=name),
    )
    start_trackers(accelerator, config.load(["--project.report_to=wandb", "--model.rank=3"]))
    assert told["init_kwargs"] == {"wandb": {"dir": accelerator.logging_dir}} and (tmp_path / "run" / "logs").is_dir()
    assert told["name"] == "seg2any" and told["config"]["model.rank"] == 3


def test_a_tracker_that_is_not_installed_is_refused(arguments, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="wandb is not installed; pip install wandb"):
        tiny_run.trainer([*arguments, "--project.report_to=wandb"])


def test_the_log_says_where_a_run_ran_and_how_much_was_padding(arguments, tmp_path):
    fit([*arguments, "--trainer.max_train_steps=2"])
    (run,) = tiny_run.machines(tmp_path / "run")
    assert run["versions"]["torch"] == torch.__version__ and run["processes"] == 1 and "device" in run["machine"]
    assert all(0 <= row["padded"] < 1 and row["tokens_per_s"] > 0 for row in rows(tmp_path / "run") if "loss" in row)
