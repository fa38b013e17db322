"""The shipped model, asked to paint a scene that it has never seen."""

import numpy as np
import pytest
import torch

from seg2any.data.shapes import ShapesDataset
from seg2any.evaluation.shapes.judge import judge
from seg2any.generate.session import Loading, load_pipeline
from tests.infer_command import REPOSITORY

pytestmark = pytest.mark.slow

SHAPES = REPOSITORY / "examples" / "shapes"


@pytest.mark.parametrize(("name", "cond_attention"), [("lora", "bidirectional"), ("lora_isolated", "isolated")])
def test_shipped_adapters_paint_regions_where_and_as_they_are_asked_for(name, cond_attention):
    pipe = load_pipeline(str(SHAPES / "model"), torch.float32, torch.device("cpu"), Loading(SHAPES / name))
    pipe.set_progress_bar_config(disable=True)
    assert pipe.settings.cond_attention == cond_attention
    layouts = [sample.layout for sample in ShapesDataset("test", 2)]
    images = pipe(layouts, num_inference_steps=10, seeds=[1, 2]).images
    verdicts = [judge(np.asarray(image), layout) for image, layout in zip(images, layouts, strict=True)]
    regions = [region for verdict in verdicts for region in verdict.regions]
    assert len(regions) == 9 and all(region.colour_right and region.iou > 0.85 for region in regions)
