"""The data sets of a run: named in the config, opened, encoded."""

from __future__ import annotations

from dataclasses import dataclass

from accelerate import Accelerator
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from seg2any.config import Config
from seg2any.config import DataSet as DataSetConfig
from seg2any.data.catalog import DataSet, open_data_set
from seg2any.errors import UserError
from seg2any.layout import Layout
from seg2any.prepare import Encoders
from seg2any.settings import ConditionSettings
from seg2any.training.cache import EncodedDataSet, cached_data_set

PUBLISHED_TARGETS = {
    "dataset.ade20k_dataset.ADE20KDataset": "ade20k",
    "dataset.coco_stuff_dataset.COCOStuffDataset": "coco_stuff",
    "dataset.sacap_1m_dataset.SACap_1M_Dataset": "sacap_1m",
}


def data_set_name(config: DataSetConfig) -> str | None:
    return config.type or PUBLISHED_TARGETS.get(config.target or "", config.target)


@dataclass(frozen=True, eq=False)
class RawData:
    """The data sets of a run as they are on the disk."""

    train: DataSet
    val: DataSet | None


@dataclass(frozen=True, eq=False)
class RunData:
    """Encoded samples to train and to validate on, and the layouts that are drawn as images."""

    train: EncodedDataSet
    lengths: list[int]  # tokens of each training sample
    val: EncodedDataSet | None
    shown: list[Layout]


def open_data(config: Config) -> RawData:
    """The configured data sets; the published class paths are understood."""
    train, val = (data_set_name(section) for section in (config.data.train, config.data.val))
    if train is None:
        raise UserError("data.train.type: no data set chosen; for example --data.train.type=shapes")
    return RawData(
        train=open_data_set(train, config.data.train.params),
        val=open_data_set(val, config.data.val.params) if val else None,
    )


def encode_data(
    raw: RawData, config: Config, encoders: Encoders, settings: ConditionSettings, accelerator: Accelerator
) -> RunData:
    """Encode everything, or read it from `trainer.cache_dir`."""
    options = config.trainer

    def encode(samples: DataSet, what: str) -> EncodedDataSet:
        # Read in order by `dataloader_num_workers` processes; `list` keeps samples of any size side by side.
        reader = DataLoader(
            samples, options.cache_batch_size, num_workers=config.dataloader_num_workers, collate_fn=list
        )
        bar = tqdm(reader, desc=f"encode {what}", unit="batch", disable=not accelerator.is_main_process)
        with accelerator.main_process_first():
            return cached_data_set(samples, bar, config.resolution, encoders, settings, options.cache_dir)

    train = encode(raw.train, "train")
    lengths = [sum(train[i].lengths) for i in range(len(train))]
    if raw.val is None:
        return RunData(train, lengths, None, [])
    shown = [raw.val[i].layout for i in range(min(options.num_validation_images, len(raw.val)))]
    subset = Subset(raw.val, range(min(options.num_validation_samples, len(raw.val))))
    return RunData(train, lengths, encode(subset, "val"), shown)
