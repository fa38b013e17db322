"""Open the data sets of a run, encode them now or at their steps, and drop networks that caches replace."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from accelerate.utils.memory import clear_device_cache
from torch import Tensor
from tqdm.auto import tqdm

from seg2any.bases.base import Base
from seg2any.bases.text import TextKey
from seg2any.data.catalog import data_set_name, open_data_set
from seg2any.data.dataset import ClosedSet, DataSet, SampleError
from seg2any.layout import Layout
from seg2any.system.errors import UserError
from seg2any.system.processes import Process
from seg2any.training.batches import TrainingSet, is_usable
from seg2any.training.config import Config
from seg2any.training.samples import EncodedSample
from seg2any.training.sources import DataSources
from seg2any.training.task import Plan


@dataclass(frozen=True, eq=False)
class RawData:
    """The data sets of a run, as they are on the disk."""

    train: DataSet
    val: DataSet | None


class Encoders:
    """The frozen networks that caches replace; `release` frees them when neither of their users needs them any more."""

    def __init__(self, release: Callable[[], None]):
        self.release, self.users = release, {"training", "validation"}

    def done(self, user: str) -> None:
        """Note that everything of `user`, training or validation, is encoded."""
        if user in self.users:
            self.users.remove(user)
            if not self.users:
                self.release()


@dataclass(frozen=True, eq=False)
class RunData:
    """The samples of a run.

    train        to train on
    encode_val   encodes what `val` returns
    shown        layouts to draw for validation images
    shown_texts  embeddings of their captions
    encoders     whether networks that caches replace are still there
    """

    train: TrainingSet
    encode_val: Callable[[], list[EncodedSample] | None]
    shown: list[Layout]
    shown_texts: dict[TextKey, Tensor]
    encoders: Encoders

    @cached_property
    def val(self) -> list[EncodedSample] | None:
        """Encode the samples of the validation loss, the first time; None without validation data.

        All processes encode them together.
        """
        samples = self.encode_val()
        self.encoders.done("validation")
        return samples


def open_data(config: Config) -> RawData:
    """Open the configured data sets, by `type` or by the published class path. Raises UserError."""
    train, val = (data_set_name(section.type, section.target) for section in (config.data.train, config.data.val))
    if train is None:
        raise UserError("data.train.type: no data set chosen; for example --data.train.type=shapes")
    return RawData(
        train=open_data_set(train, config.data.train.params, config.data.on_error),
        val=open_data_set(val, config.data.val.params, config.data.on_error) if val else None,
    )


Planned = Callable[[TrainingSet], Plan]  # which samples a run reads


def load_data(
    raw: RawData,
    config: Config,
    base: Base,
    process: Process,
    planned: Planned | None = None,
    has_room: Callable[[TrainingSet], bool] = lambda _: False,
) -> RunData:
    """Count tokens, and encode the training samples and what validation needs, or let the run's steps do so.

    Steps do it with trainer.cache=plan, if `has_room` says that the device holds the encoders beside the training: see
    `seg2any.training.first_use`; validation samples are then encoded before the first validation. Otherwise the caches
    are completed here, for the samples of `planned`, or for all without it or with trainer.cache=all.

    When everything is encoded, the base loses its text encoders if all embeddings are cached, all but that of pooled
    vectors if only class names are ever read, and its VAE goes to the CPU if latents are cached: only validation images
    still need it.
    """
    sources = DataSources(config, base, process)
    encoders = Encoders(lambda: _let_go(base, raw.train, config))
    train, shown = sources.training_set(raw.train), []
    plan = planned(train) if planned and config.trainer.cache == "plan" else None
    is_later = plan is not None and has_room(train) and _is_to_encode(train, plan)
    if is_later:
        sources.complete_on_first_use(train, plan, lambda: encoders.done("training"))
    else:
        indices = range(len(raw.train)) if plan is None else plan.all.tolist()
        if plan and process.is_first and len(train.reader.missing(indices)):
            tqdm.write("caches: the encoders have no room beside the training, so everything is encoded before step 1")
        sources.complete(train, indices)
        encoders.done("training")
    if raw.val is not None:
        wanted = config.trainer.num_validation_images
        if wanted > len(raw.val):
            warnings.warn(
                f"trainer.num_validation_images: {wanted} images wanted, but data.val has {len(raw.val)} samples",
                stacklevel=2,
            )
        shown = _first_layouts(raw.val, wanted, config.data.on_error == "skip")
    prompts = [base.caption_keys(layout.caption, layout.captions, config.model.condition) for layout in shown]
    shown_texts = dict(base.encode_text(list({key for prompt in prompts for key in prompt})))
    data = RunData(train, lambda: _validation_samples(sources, raw.val), shown, shown_texts, encoders)
    if raw.val is None or not is_later:
        _ = data.val
    return data


def _is_to_encode(train: TrainingSet, plan: Plan) -> bool:
    """Tell whether networks are still needed for any sample of the plan: always, without caches."""
    reader = train.reader
    return not (reader.latents or reader.texts) or len(reader.missing(plan.all.tolist())) > 0


def _validation_samples(sources: DataSources, data: DataSet | None) -> list[EncodedSample] | None:
    return None if data is None else sources.samples(data, min(sources.options.num_validation_samples, len(data)))


def _first_layouts(data: DataSet, count: int, skips: bool) -> list[Layout]:
    """Read the layouts of the first `count` usable samples."""
    found: list[Layout] = []
    for index in range(len(data)):
        if len(found) == count:
            break
        try:
            found.append(data[index].layout)
        except SampleError as error:
            is_usable(error, skips, "validation images")
    return found


def _let_go(base: Base, train: DataSet, config: Config) -> None:
    """Remove the networks that caches replace."""
    cached = config.trainer.cache_text
    if cached == "all":
        base.release_text_encoders()
    elif cached == "classes" and isinstance(train, ClosedSet):
        base.release_text_encoders(but_pooled=True)
    if config.trainer.cache_latents:
        base.release_image_encoder()
    clear_device_cache(garbage_collection=True)
