"""Compare transformer inputs, denoising steps and images with golden pipeline runs.

Each run is repeated twice: with the recorded text embeddings, so that only arithmetic can differ, and with our
own T5 and CLIP.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from seg2any.attention.pattern import additive_mask
from seg2any.attention.settings import Attention
from seg2any.bases.base import Condition
from tests.parity.pipeline_defects import DEFECTS, shown_run
from tests.parity.pipeline_runs import EMBEDDINGS, FED, OWN, VELOCITY, Run, assert_close, quiet

RECORDED_MASKS = {Attention.SAA: "attention_mask", Attention.AIA: "hard_attention_mask"}
WRONG = "BUG_"  # prefix of runs that recorded a defect


def cases(root: Path) -> dict[str, Callable[[], None]]:
    folder = root / "pipeline"
    if not (folder / "index.json").is_file():
        return {}
    index = json.loads((folder / "index.json").read_text())
    found: dict[str, Callable[[], None]] = {}
    for name, case in index["cases"].items():
        if not (folder / "cases" / f"{name}.safetensors").is_file():
            continue  # the committed subset lacks some cases
        run = partial(Run, folder, name, case)
        if case.get("error"):
            found[f"pipeline/{name}/runs"] = partial(check_runs, run)
        elif name.startswith(WRONG):
            found[f"pipeline/{name}/pairs correctly"] = partial(check_pairing, run)
        else:
            found[f"pipeline/{name}/inputs"] = partial(check_inputs, run)
            found[f"pipeline/{name}/text"] = partial(check_text, run)
            found[f"pipeline/{name}/fed"] = partial(check_result, run, is_fed=True, tolerance=FED)
            found[f"pipeline/{name}/own text"] = partial(check_result, run, is_fed=False, tolerance=OWN)
    for defect in index.get("bugs_demo", {}):
        check = next((check for words, check in DEFECTS.items() if words in defect), None)
        if check is not None and shown_run(folder):
            found[f"pipeline/bugs_demo/{defect}"] = partial(check, folder)
    return found


def pending(root: Path) -> dict[str, str]:
    """List recorded defects that no check here covers."""
    index = root / "pipeline" / "index.json"
    defects = json.loads(index.read_text()).get("bugs_demo", {}) if index.is_file() else {}
    if defects and not shown_run(root / "pipeline"):
        return {f"pipeline/bugs_demo/{defect}": "the set has no usual run to show it on" for defect in defects}
    unknown = [defect for defect in defects if not any(words in defect for words in DEFECTS)]
    return {f"pipeline/bugs_demo/{defect}": "a new kind of defect" for defect in unknown}


def check_inputs(make: Callable[[], Run]) -> None:
    """Compare the transformer's first inputs.

    These are condition tokens, positions, timestep, masks and schedule.
    """
    run = make()
    result, recorded = run(run.texts(), num_inference_steps=run.case["opts"]["num_inference_steps"]), run.recorded
    condition = result.call["joint_attention_kwargs"]["condition"]
    tokens = condition.tokens
    assert_close("embeddings", condition.text, recorded["enc/prompt_embeds"], 0)
    assert_close("pooled", condition.pooled, recorded["enc/pooled"], 0)
    assert_close("latents", result.call["hidden_states"], recorded["mid/latents0"], 1e-6)
    assert_close("timestep", result.call["timestep"], recorded["mid/timestep"], 1e-6)
    image = tokens.positions[:, tokens.n_text :][:, : tokens.n_image]
    assert_close("img_ids", image, recorded["mid/img_ids"].expand_as(image), 0)
    assert not tokens.positions[:, : tokens.n_text].any() and not recorded["enc/text_ids"].any()
    if "mid/cond_hidden_states" in recorded:
        cond_ids = tokens.positions[:, tokens.n_text + tokens.n_image :]
        assert_close("cond_ids", cond_ids, recorded["mid/cond_ids"].expand_as(cond_ids), 0)
        assert_close("cond", condition.cond, recorded["mid/cond_hidden_states"], 1e-5)
    else:
        assert condition.cond is None
    check_masks(run, condition)
    assert_close("timesteps", torch.stack(result.timesteps), recorded["out/timesteps"], 1e-6)
    assert_close("sigmas", run.pipe.scheduler.sigmas, recorded["out/sigmas"], 1e-6)


def check_masks(run: Run, condition: Condition) -> None:
    """Compare checksums of the masks inside and outside the blocks of attribute isolation."""
    for attention, key in RECORDED_MASKS.items():
        recorded = run.case[f"{key}_sha256_head0"]
        if recorded is not None:
            mask = additive_mask(condition.tokens, attention, condition.settings).squeeze(1).contiguous().numpy()
            assert hashlib.sha256(mask.tobytes()).hexdigest() == recorded, key


def check_text(make: Callable[[], Run]) -> None:
    """Compare our text embeddings alone, before an error can grow over the steps."""
    run = make()
    expected, found = run.texts(), {}
    with quiet():
        run(found, num_inference_steps=1)
    assert found.keys() == expected.keys()
    for key, embeds in found.items():
        assert_close(f"{key}", embeds, expected[key], EMBEDDINGS)


def check_result(make: Callable[[], Run], is_fed: bool, tolerance: float) -> None:
    """Compare the first velocity, the latents after every step, and the images."""
    run = make()
    texts = run.texts() if is_fed else {}
    n_known = len(texts)
    result = run(texts)
    assert not is_fed or len(texts) == n_known, "not every recorded embedding was used"
    assert_close("noise_pred0", result.velocity, run.recorded["mid/noise_pred0"], VELOCITY)
    assert_close("latents", torch.stack(result.steps), run.recorded["out/latents_per_step"], tolerance)
    assert_close("images", torch.from_numpy(result.images), run.recorded["out/images"], tolerance)


def check_runs(make: Callable[[], Run]) -> None:
    """Check that a call at which the published code fails gives images."""
    run = make()
    with quiet():
        images = run({}).images
    assert len(images) == len(run.layouts) * run.images_per_prompt and torch.from_numpy(images).isfinite().all()


def check_pairing(make: Callable[[], Run]) -> None:
    """Check several images for each of several layouts.

    Ours equal each image made alone; the recorded ones do not.
    """
    run = make()
    together = run(run.texts())
    latents = run.recorded["in/latents"]
    is_recorded = []
    for image, final in enumerate(together.steps[-1]):
        layout = run.layouts[image // run.images_per_prompt]
        alone = run(run.texts(), layouts=layout, num_images_per_prompt=1, latents=latents[image : image + 1])
        assert_close(f"image {image}", final, alone.steps[-1][0], FED)
        recorded = run.recorded["out/latents_per_step"][-1, image]
        is_recorded.append(bool((final - recorded).abs().max() <= FED * recorded.abs().max()))
    # The defect tiles the condition tokens [a, b, a, b] against prompts [a, a, b, b]: some images come out right.
    count, per = len(run.layouts), run.images_per_prompt
    assert is_recorded == [image % count == image // per for image in range(count * per)]
