"""Write the committed part of the recorded behaviour of X-SAM: `python -m tests.parity_xsam.make_subset`."""

from __future__ import annotations

import json
import shutil

from safetensors.torch import save_file

from tests.golden_root import XSAM_SUBSET
from tests.parity_xsam.recorded import ROOT, parameters, tensors_of

# Beginnings of the cases to keep of each file; files that are not named are left out.
KEPT: dict[str, tuple[str, ...]] = {
    "connector_projector": ("connector_layer_scale2", "pixel_shuffle_", "pad_", "seg_projector"),
    "region_sampler": ("",),
    "condition_embeddings": ("bg_embeds", "pool_", "process_", "region_assignment_", "generated_g"),
    "end_to_end": ("images/g/", "images/c/", "images/s/", "predict_genseg", "predict_gcgseg", "predict_imgconv"),
    "losses": ("one_image_without", "padded_conditions", "no_targets"),
    "metrics": ("",),
}
WHOLE = ("text.json", "tokenizer.json", "real_keys.json", "model_tiny_stage3.safetensors")


def main() -> None:
    """Copy what is kept, and the parameters of it."""
    assert ROOT != XSAM_SUBSET, "the whole set is not at hand"
    XSAM_SUBSET.mkdir(exist_ok=True)
    kept = {"meta": parameters()["meta"], "end_to_end": {"config": parameters()["end_to_end"]["config"]}}
    for file, begins in KEPT.items():
        tensors = {name: x for name, x in tensors_of(file).items() if name.startswith(begins)}
        save_file(tensors, XSAM_SUBSET / f"{file}.safetensors")
        about = parameters().get(file, {})
        kept[file] = kept.get(file, {}) | {name: about[name] for name in about if name.startswith((*begins, "config"))}
    (XSAM_SUBSET / "cases.json").write_text(json.dumps(kept), encoding="utf-8")
    for name in WHOLE:
        shutil.copyfile(ROOT / name, XSAM_SUBSET / name)


if __name__ == "__main__":
    main()
