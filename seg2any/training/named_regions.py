"""Give every sample of a data set a caption that joins the names of its regions, as the probe's texts do."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from seg2any.data.dataset import Annotation, DataSet, Sample


def joined_names(captions: Sequence[str], background: str | None) -> tuple[list[str], str]:
    """Return the different names of regions and background, sorted, and the text that joins them by spaces."""
    names = sorted({*captions, *([] if background is None else [background])})
    return names, " ".join(names)


class NamedRegions:
    """A data set like `data`, but for the samples' captions."""

    def __init__(self, data: DataSet, background: str | None):
        self.data, self.background = data, background

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        sample = self.data[index]
        text = joined_names(sample.layout.captions, self.background)[1]
        return replace(sample, layout=replace(sample.layout, caption=text))

    def key(self, index: int) -> str:
        """Return the sample's name."""
        return self.data.key(index)

    def annotation(self, index: int) -> Annotation:
        """Read everything but the image. Raises SampleError."""
        found = self.data.annotation(index)
        return replace(found, caption=joined_names(found.captions, self.background)[1])

    def photo_digest(self, index: int) -> str:
        """Return the photo's digest."""
        return self.data.photo_digest(index)

    def fingerprint(self) -> str:
        """Return a digest that changes with the data and with the background's name."""
        return hashlib.sha256(f"named {self.background!r} {self.data.fingerprint()}".encode()).hexdigest()
