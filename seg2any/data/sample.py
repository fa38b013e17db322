"""What a data set hands out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from seg2any.layout import Layout
from seg2any.system.errors import UserError


class SampleError(UserError):
    """A sample that cannot be used; the others can. The message names its file."""


@dataclass(frozen=True, eq=False)
class Sample:
    """An image uint8 [H, W, 3] and the layout that describes it, masks at the image's own size."""

    image: np.ndarray
    layout: Layout
