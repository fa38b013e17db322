"""Carry out `generate`: survey the layouts, plan the images, load the model, make the images."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from PIL import Image

from seg2any.attention.settings import ConditionSettings
from seg2any.generate.choices import (
    PLAIN_WORDS,
    Machine,
    check_modes,
    choose_settings,
    explained_memory,
    overlap_remarks,
    shared_recipe,
    size_remarks,
)
from seg2any.generate.estimate import describe
from seg2any.generate.failures import Failures
from seg2any.generate.folder import Batch, make_images, open_folder
from seg2any.generate.made import with_circumstances
from seg2any.generate.model import adapter_folder, read_adapter_card, read_facts
from seg2any.generate.options import Options
from seg2any.generate.plan import Job, Plan, batches, make_plan
from seg2any.generate.recipe import BrokenImage, read_recipe, save_image
from seg2any.generate.self_check import SelfCheck, with_overlaps
from seg2any.generate.session import ImageOptions, Loading, Session
from seg2any.generate.survey import Survey, read_layout, read_quietly, survey_layouts, write_report
from seg2any.layout import Layout
from seg2any.layout.draw import panel
from seg2any.layout.images import load_image
from seg2any.system.allocator import keep_freed_memory
from seg2any.system.console import warn
from seg2any.system.device import choose_device, device_name
from seg2any.system.errors import UserError
from seg2any.system.precision import choose_dtype
from seg2any.system.processes import Process, wait_for_all

ESTIMATED = (
    "note: no model is named, so sizes are those of FLUX.1 and tokens of captions (~) are estimates, off by 9 % on "
    "average; --pretrained_model_name_or_path counts them"
)


def run(options: Options) -> None:
    """Carry out what the command line asks for.

    Raises UserError for bad input, Incomplete if layouts had to be left out, and MemoryError that names what saves
    memory.
    """
    process = Process.of(os.environ)
    if not process.is_first and (options.check or options.estimate):
        return None
    model = read_facts(options.pretrained_model_name_or_path if options.check else options.model, options.base_parts)
    adapter = adapter_folder(options.model, options.lora_ckpt_path, options.fold)
    card = read_adapter_card(adapter)
    settings, remarks = choose_settings(options, card)
    if process.is_first:
        warn(remarks)
    if options.check:
        open_folder(options.output_path)
    survey = survey_layouts(options, settings, model)
    if process.is_first:
        warn(overlap_remarks([layout.report.overlap for layout in survey.layouts], card))
        unit = model.pixels_per_token * settings.cond_scale_factor
        warn(size_remarks([layout.report.image_size for layout in survey.layouts], card, unit))
    if options.check:
        return show(survey, options, settings, model.are_counted)
    if process.is_first:
        print(*(f"note: {text}" for text in survey.notes), sep="\n", end="\n" if survey.notes else "")
        warn(survey.warnings if not options.strict else ())
    goes_on = survey.goes_on(options)
    if not goes_on:
        survey.stop_at_problems(options.strict)

    device = choose_device(device_name(process, options.device))
    machine = Machine(device, choose_dtype(options.weight_dtype, device))
    if options.estimate:
        return print(describe(survey, options, settings, machine))
    check_modes(options, machine)
    if device.type == "cpu":
        keep_freed_memory()
    plan = make_plan(survey.layouts, options, shared_recipe(options, settings, machine), process)
    if plan.to_do or options.save_panels:
        open_folder(options.output_path)
    warn(plan.remarks)
    print(f"{process}{machine.work(len(plan.to_do), len(plan.finished))}", flush=True)
    if settings.is_plain and process.is_first:
        print(PLAIN_WORDS, flush=True)
    failures = Failures(partial(explained_memory, options, settings, machine))
    failures.add_layouts(survey.errors, shown=process.is_first)
    with explained_memory(options, settings, machine):
        carry_out(plan, options, (settings, machine), failures.add_image if goes_on else None, process.is_first)
    print(f"{process}images are in {options.output_path}")
    wait_for_all(process, os.environ)
    failures.report()


def show(survey: Survey, options: Options, settings: ConditionSettings, are_counted: bool) -> None:
    """Print and write the report of --check. Raises UserError for what is wrong, and for warnings if strict."""
    warn(survey.left_out)
    if not are_counted:
        print(ESTIMATED)
    report = write_report(survey, settings, options.output_path)
    print(*(layout.report for layout in survey.layouts), f"report: {report}", sep="\n")
    survey.stop_at_problems(options.strict)


def carry_out(
    plan: Plan,
    options: Options,
    chosen: tuple[ConditionSettings, Machine],
    failed: Callable[[Job, Exception], None] | None,
    shown: bool,
) -> None:
    """Make the images to do, and the panels that finished images lack.

    failed  as for `make_images`
    shown   show progress bars
    """
    settings, machine = chosen
    if plan.to_do:
        names = ("fold", "memory", "vae_tiling", "compile", "base_parts")
        loading = Loading(options.lora_ckpt_path, **{name: getattr(options, name) for name in names})
        session = Session.open(options.model, machine.dtype, machine.device, loading)
        names = ("num_inference_steps", "guidance_scale", "height", "width", "step_cache")
        sampling = ImageOptions(settings, **{name: getattr(options, name) for name in names})
        groups = (with_circumstances(jobs, options, machine) for jobs in batches(plan.to_do, options.batch_size))
        todo = [Batch(jobs, jobs) for jobs in groups]
        checked = SelfCheck(session) if options.self_check else None
        read, write = partial(layout_of, options), partial(save, options)
        make_images(session, todo, sampling, read, write, shown, failed, checked)
    for job in plan.finished:
        if options.save_panels and not job.panel_path.exists():
            try:
                layout, _ = read_quietly(job.layout.path, options)
            except UserError as error:
                if failed is None:
                    raise
                failed(job, error)
            else:
                save_panel(options, job, layout, load_image(job.path))


def layout_of(options: Options, job: Job) -> Layout:
    """Read the layout of a job."""
    return read_layout(job.layout.path, options)


def save(options: Options, job: Job, layout: Layout, image: Image.Image) -> None:
    """Write an image with its recipe, unless none is wanted, and its panel if one is asked for."""
    discard_panel(job)
    save_image(image, None if options.no_recipe else job.recipe, job.path)
    if options.save_panels:
        save_panel(options, job, layout, image)


def save_panel(options: Options, job: Job, layout: Layout, image: Image.Image) -> None:
    """Write contour, masks and image side by side, with the recipe of the image unless none is wanted."""
    recipe = None if options.no_recipe else {"panel": job.recipe}
    save_image(panel(with_overlaps(layout, job.recipe), image), recipe, job.panel_path)


def discard_panel(job: Job) -> None:
    """Remove the panel of an earlier image, which would not show the image beside it."""
    try:
        recipe = read_recipe(job.panel_path) if os.path.exists(job.panel_path) else None  # the name may be too long
    except BrokenImage:
        return
    if recipe is not None and "panel" in recipe:  # another picture under this name stays
        job.panel_path.unlink()
