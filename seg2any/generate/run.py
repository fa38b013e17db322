"""Carry out `generate`: survey the layouts, plan the images, load the model, make the images."""

from __future__ import annotations

import os
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
from seg2any.generate.folder import Batch, make_images, open_folder
from seg2any.generate.made import with_circumstances
from seg2any.generate.model import adapter_folder, read_adapter_card, read_facts
from seg2any.generate.options import Options
from seg2any.generate.plan import Job, Plan, batches, make_plan
from seg2any.generate.recipe import BrokenImage, read_recipe, save_image
from seg2any.generate.session import ImageOptions, Loading, Session
from seg2any.generate.survey import read_layout, read_quietly, survey_layouts, write_report
from seg2any.layout import Layout
from seg2any.layout.draw import panel
from seg2any.layout.images import load_image
from seg2any.system.allocator import keep_freed_memory
from seg2any.system.console import warn
from seg2any.system.device import choose_device, device_name
from seg2any.system.precision import choose_dtype
from seg2any.system.processes import Process


def run(options: Options) -> None:
    """Carry out what the command line asks for.

    Raises UserError for bad input, and MemoryError that names what saves memory.
    """
    process = Process.of(os.environ)
    if not process.is_first and (options.check or options.estimate):
        return None
    model = read_facts(options.pretrained_model_name_or_path, options.base_parts)
    adapter = adapter_folder(options.pretrained_model_name_or_path, options.lora_ckpt_path, options.fold)
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
        warn(survey.left_out)
        report = write_report(survey, settings, options.output_path)
        print(*(layout.report for layout in survey.layouts), f"report: {report}", sep="\n")
        return survey.stop_at_problems(options.strict)
    if not options.strict and process.is_first:
        warn(survey.warnings)
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
    with explained_memory(options, settings, machine):
        carry_out(plan, options, settings, machine, process.is_first)
    print(f"{process}images are in {options.output_path}")


def carry_out(plan: Plan, options: Options, settings: ConditionSettings, machine: Machine, shown: bool) -> None:
    """Make the images to do, and the panels that finished images lack. shown: progress bars."""
    if plan.to_do:
        names = ("fold", "memory", "vae_tiling", "compile", "base_parts")
        loading = Loading(options.lora_ckpt_path, **{name: getattr(options, name) for name in names})
        session = Session.open(options.pretrained_model_name_or_path, machine.dtype, machine.device, loading)
        names = ("num_inference_steps", "guidance_scale", "height", "width", "step_cache")
        sampling = ImageOptions(settings, **{name: getattr(options, name) for name in names})
        groups = (with_circumstances(jobs, options, machine) for jobs in batches(plan.to_do, options.batch_size))
        todo = [Batch(jobs, jobs) for jobs in groups]
        make_images(session, todo, sampling, partial(layout_of, options), partial(save, options), shown)
    for job in plan.finished:
        if options.save_panels and not job.panel_path.exists():
            save_panel(job, read_quietly(job.layout.path, options)[0], load_image(job.path))


def layout_of(options: Options, job: Job) -> Layout:
    """Read the layout of a job."""
    return read_layout(job.layout.path, options)


def save(options: Options, job: Job, layout: Layout, image: Image.Image) -> None:
    """Write an image with its recipe, and its panel if one is asked for."""
    discard_panel(job)
    save_image(image, job.recipe, job.path)
    if options.save_panels:
        save_panel(job, layout, image)


def save_panel(job: Job, layout: Layout, image: Image.Image) -> None:
    """Write contour, masks and image side by side, with the recipe of the image."""
    save_image(panel(layout, image), {"panel": job.recipe}, job.panel_path)


def discard_panel(job: Job) -> None:
    """Remove the panel of an earlier image, which would not show the image beside it."""
    try:
        recipe = read_recipe(job.panel_path) if os.path.exists(job.panel_path) else None  # the name may be too long
    except BrokenImage:
        return
    if recipe is not None and "panel" in recipe:  # another picture under this name stays
        job.panel_path.unlink()
