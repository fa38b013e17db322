"""The plan of a run before anything is loaded: usable layouts and missing images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seg2any.attention.settings import ConditionSettings
from seg2any.generate.options import Options
from seg2any.generate.plan import batches, make_plan
from seg2any.generate.preflight import ModelFacts
from seg2any.generate.recipe import save_image
from seg2any.generate.run import discard_panel
from seg2any.generate.survey import survey_layouts
from seg2any.layout import Layout
from seg2any.system.errors import UserError
from tests.infer_command import files, layout, three_layouts

FACTS = ModelFacts(pixels_per_token=16, count_tokens=lambda text: len(text.split()) + 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return three_layouts(tmp_path)


class TestSurvey:
    def options(self, folder: Path, **changes: object) -> Options:
        return Options(seg_mask_path=folder, output_path=folder.parent / "out", **changes)

    def test_strict_turns_warnings_into_failure(self, folder: Path):
        pixels = np.array(Image.open(folder / "a.png"))
        pixels[:5, -5:] = [9, 200, 9]
        Image.fromarray(pixels).save(folder / "a.png")
        survey = survey_layouts(self.options(folder), ConditionSettings(), FACTS)
        assert len(survey.warnings) == 1 and "colour [9, 200, 9] (25 pixels) is not in the JSON" in survey.warnings[0]
        survey.stop_at_problems(strict=False)
        with pytest.raises(UserError, match="not in the JSON"):
            survey.stop_at_problems(strict=True)

    def test_paper_passes_strict_and_snapped_colours_do_not(self, folder: Path):
        image = Image.open(folder / "a.png")
        pixels = np.array(image)
        pixels[(pixels == 0).all(axis=2)] = 255
        Image.fromarray(pixels).save(folder / "a.png")
        a = folder / "a.json"
        survey = survey_layouts(self.options(a, strict=True), ConditionSettings(), FACTS)
        survey.stop_at_problems(strict=True)
        assert survey.warnings == [] and "paper" in survey.notes[0]
        assert "  note: [255, 255, 255] fills" in str(survey.layouts[0].report)
        assert survey.layouts[0].report.to_json()["notes"] == survey.layouts[0].report.notes

        Image.fromarray(pixels).resize((256, 256), Image.Resampling.BICUBIC).save(folder / "a.png")
        survey = survey_layouts(self.options(a), ConditionSettings(), FACTS)
        assert survey.warnings == [] and "nearest colour" in survey.notes[0] and "paper" in survey.notes[1]
        survey = survey_layouts(self.options(a, strict=True), ConditionSettings(), FACTS)
        with pytest.raises(UserError, match="use --snap_colors to merge them"):
            survey.stop_at_problems(strict=True)
        survey = survey_layouts(self.options(a, strict=True, snap_colors=True), ConditionSettings(), FACTS)
        survey.stop_at_problems(strict=True)

    def test_many_notes_are_counted(self, folder: Path):
        for n in range(6):
            colors = Image.new("RGB", (64, 64), "white")
            colors.paste((200, 0, 0), (8, 8, 40, 40))
            colors.save(folder / f"n{n}.png")
            (folder / f"n{n}.json").write_text('{"segments_info": [{"color": "#c80000", "text": "a"}]}')
        notes = survey_layouts(self.options(folder), ConditionSettings(), FACTS).notes
        assert len(notes) == 4 and notes[0].startswith("n0: ") and notes[3].startswith("3 more notes")

    def test_colliding_names_and_images_below_a_token_are_errors(self, folder: Path):
        layout("a").write(folder / "a.npz")
        layout("d", side=20).write(folder / "d.json")
        survey = survey_layouts(self.options(folder), ConditionSettings(cond_scale_factor=2), FACTS)
        tiny, collision = survey.errors
        assert "d.json: 20x20 is smaller than one token" in tiny
        assert "a.json" in collision and "a.npz" in collision and "rename one" in collision
        assert [layout.report.name for layout in survey.layouts] == ["b", "c"] and survey.found == 5
        (flat,) = survey_layouts(self.options(folder / "b.json", height=8), ConditionSettings(), FACTS).errors
        assert "b.json: 64x8 is smaller than one token" in flat

    @pytest.mark.parametrize(
        ("flags", "one", "several"),
        [({}, False, True), ({"strict": True}, False, False), ({"keep_going": False}, False, False)],
    )
    def test_a_folder_goes_on_after_a_bad_layout(self, folder: Path, flags: dict, one: bool, several: bool):
        (folder / "a.png").write_bytes(b"")
        for path, goes_on in ((folder, several), (folder / "b.json", one)):
            options = self.options(path, **flags)
            survey = survey_layouts(options, ConditionSettings(), FACTS)
            assert survey.goes_on(options) is goes_on
        options = self.options(folder / "a.json", keep_going=True)
        assert not survey_layouts(options, ConditionSettings(), FACTS).goes_on(options), "no layout is left"

    def test_plain_flux_needs_a_global_caption(self, folder: Path):
        Layout(np.ones((1, 64, 64), dtype=bool), ("a",)).write(folder / "d.json")
        plain = ConditionSettings(attention_mask_method="none")
        (error,) = survey_layouts(self.options(folder), plain, FACTS).errors
        assert "d.json: caption is missing" in error

    def test_image_sizes_are_multiples_of_a_condition_token(self, folder: Path):
        survey = survey_layouts(self.options(folder, height=100, width=70), ConditionSettings(), FACTS)
        assert {item.report.image_size for item in survey.layouts} == {(96, 64)}
        survey = survey_layouts(self.options(folder), ConditionSettings(cond_scale_factor=2), FACTS)
        assert [item.report.image_size for item in survey.layouts] == [(64, 64), (64, 64), (64, 64)]

    def test_sizes_that_no_memory_holds_are_refused_before_masks_are_drawn_at_them(self, folder: Path):
        survey = survey_layouts(self.options(folder, height=2**16, width=2**16), ConditionSettings(), FACTS)
        assert len(survey.errors) == 1 and "65536x65536" in survey.errors[0]


class TestPlan:
    def plan(self, folder: Path, **changes: object):
        options = Options(seg_mask_path=folder, output_path=folder.parent / "out", **changes)
        return make_plan(survey_layouts(options, ConditionSettings(), FACTS).layouts, options, {"model": "m"})

    def test_seeds_come_from_the_layout_or_count_up_from_the_flag(self, folder: Path):
        assert [job.seed for job in self.plan(folder).to_do] == [3, 0, 3]
        jobs = self.plan(folder, num_images_per_prompt=2, seed=2**63 - 1).to_do
        assert [job.seed for job in jobs] == [2**63 - 1, 0] * 3
        assert [job.path.name for job in jobs[:3]] == ["a_0.png", "a_1.png", "b_0.png"]

    def test_batches_have_one_size(self, folder: Path):
        layout("d").write(folder / "d.json")
        jobs = self.plan(folder, num_images_per_prompt=2).to_do
        names = [[job.path.stem for job in batch] for batch in batches(jobs, 4)]
        assert names == [["a_0", "a_1", "b_0", "b_1"], ["d_0", "d_1"], ["c_0", "c_1"]]

    def test_images_of_other_programs_are_not_overwritten(self, folder: Path):
        out = folder.parent / "out"
        out.mkdir()
        Image.new("RGB", (64, 64)).save(out / "a.png")
        plan = self.plan(folder)
        assert [job.path.name for job in plan.finished] == ["a.png"] and "not made by this program" in plan.remarks[0]
        assert len(self.plan(folder, overwrite=True).to_do) == 3

    def test_a_folder_in_the_place_of_an_image_is_known_before(self, folder: Path):
        (folder.parent / "out" / "b.png").mkdir(parents=True)
        with pytest.raises(UserError, match="b.png: is a folder"):
            self.plan(folder)

    def test_captions_that_do_not_fit_a_jpeg_are_known_before(self, folder: Path):
        columns = np.arange(64) // 8 == np.arange(8)[:, None]
        masks = np.repeat(columns[:, None], 64, 1)
        Layout(masks, ("x" * 9000,) * 8, name="a").write(folder / "a.json")
        with pytest.raises(UserError, match="a.jpg: the captions are too long .* use --format png"):
            self.plan(folder, format="jpg")
        assert len(self.plan(folder).to_do) == 3

    def test_a_layout_called_like_the_panel_of_another(self, folder: Path):
        layout("a_panel").write(folder / "a_panel.json")
        options = Options(seg_mask_path=folder, output_path=folder.parent / "out")
        (collision,) = survey_layouts(options, ConditionSettings(), FACTS).errors
        assert "a.json" in collision and "would both write a_panel.png" in collision

    def test_only_panels_made_by_this_program_are_discarded(self, folder: Path):
        job, other, _ = self.plan(folder).to_do
        save_image(Image.new("RGB", (8, 8)), {"panel": {}}, job.panel_path)
        save_image(Image.new("RGB", (8, 8)), {}, other.panel_path)
        discard_panel(job)
        discard_panel(other)
        assert files(folder.parent / "out") == ["b_panel.png"]

    def test_layouts_are_never_overwritten(self, folder: Path):
        options = Options(seg_mask_path=folder, output_path=folder, overwrite=True)
        with pytest.raises(UserError, match="is where the layouts are"):
            survey_layouts(options, ConditionSettings(), FACTS)
