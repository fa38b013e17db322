"""The run: survey the layouts, plan the images, load the model, make the images."""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from seg2any.attention.settings import ConditionSettings
from seg2any.bases.text import TextCache, TruncationWarning
from seg2any.generate.choices import Machine, check_modes, choose_settings, shared_recipe
from seg2any.generate.estimate import describe
from seg2any.generate.memory import decode_in_parts, next_mode
from seg2any.generate.model import (
    adapter_folder,
    choose_device,
    choose_dtype,
    load_pipeline,
    read_adapter_card,
    read_facts,
)
from seg2any.generate.options import Options
from seg2any.generate.pipeline import Seg2AnyPipeline
from seg2any.generate.plan import Job, Plan, batches, make_plan
from seg2any.generate.recipe import BrokenImage, read_recipe, save_image
from seg2any.generate.survey import read_quietly, survey_layouts, write_report
from seg2any.layout.draw import panel
from seg2any.system.allocator import keep_freed_memory
from seg2any.system.console import warn
from seg2any.system.errors import UserError
from seg2any.system.processes import Process

MEMORY_WORDS = re.compile(r"out of memory|allocate memory|not enough memory", re.IGNORECASE)  # of MPS, CPU, Windows


def run(options: Options) -> None:
    """Do what `infer.py` was told. Raises UserError for bad input, and MemoryError that says what to turn on."""
    process = Process.of(os.environ)
    if not process.is_first and (options.check or options.estimate):
        return None
    model = read_facts(options.pretrained_model_name_or_path)
    adapter = adapter_folder(options.pretrained_model_name_or_path, options.lora_ckpt_path, options.fold)
    settings, remarks = choose_settings(options, read_adapter_card(adapter))
    if process.is_first:
        warn(remarks)
    if options.check:
        open_folder(options.output_path)
    survey = survey_layouts(options, settings, model)
    if options.check:
        warn(survey.left_out)
        report = write_report(survey, settings, options.output_path)
        print(*(layout.report for layout in survey.layouts), f"report: {report}", sep="\n")
        return survey.stop_at_problems(options.strict)
    if not options.strict and process.is_first:
        warn(survey.warnings)
    survey.stop_at_problems(options.strict)

    device = choose_device(process.device_name(options.device))
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
    print(f"{process}{len(plan.to_do)} images to make on {machine}, {len(plan.finished)} are there already", flush=True)
    with explained_memory(options, settings, machine):
        carry_out(plan, options, settings, machine, process.is_first)
    print(f"{process}images are in {options.output_path}")


def open_folder(folder: Path, flag: str = "--output_path") -> None:
    """Make a flag's folder. Raises UserError where nothing can be written: now, not after the first image is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        is_file = isinstance(error, (FileExistsError, NotADirectoryError))
        reason = "is a file or below one" if is_file else f"cannot be written to ({error.strerror})"
        raise UserError(f"{flag} {folder}: {reason}; give a folder that can be written to") from error


def carry_out(plan: Plan, options: Options, settings: ConditionSettings, machine: Machine, shown: bool) -> None:
    """Make what is to do, and the panels that finished images lack. shown: progress bars."""
    if plan.to_do:
        pipeline = load_pipeline(
            options.pretrained_model_name_or_path,
            options.lora_ckpt_path,
            machine.dtype,
            machine.device,
            options.fold,
            options.memory,
        )
        if options.vae_tiling:
            decode_in_parts(pipeline)
        if options.compile:
            pipeline.compile()
        make_images(plan.to_do, pipeline, options, settings, shown)
    for job in plan.finished:
        if options.save_panels and not job.panel_path.exists():
            with Image.open(job.path) as image:
                save_panel(job, image, options)


def make_images(
    jobs: Sequence[Job], pipeline: Seg2AnyPipeline, options: Options, settings: ConditionSettings, shown: bool
) -> None:
    """Batch by batch, each image written as soon as its batch is done."""
    pipeline.set_progress_bar_config(desc="steps", leave=False, unit="step", disable=not shown)
    known_texts = TextCache(pipeline.base)
    bar = tqdm(total=len(jobs), desc="images", unit="image", disable=not shown)
    with bar as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)  # pre-flight has said so
        for batch in batches(jobs, options.batch_size):
            images = pipeline(
                [read_quietly(job.layout.path, options.snap_colors)[0] for job in batch],
                height=options.height,
                width=options.width,
                num_inference_steps=options.num_inference_steps,
                guidance_scale=options.guidance_scale,
                seeds=[job.seed for job in batch],
                settings=settings,
                known_texts=known_texts,
                step_cache=options.step_cache,
            ).images
            for job, image in zip(batch, images, strict=True):
                discard_panel(job)
                save_image(image, job.recipe, job.path)
                if options.save_panels:
                    save_panel(job, image, options)
            progress.update(len(batch))


def save_panel(job: Job, image: Image.Image, options: Options) -> None:
    """Contour, masks and the image side by side, with the recipe of that."""
    layout, _ = read_quietly(job.layout.path, options.snap_colors)
    save_image(panel(layout, image), {"panel": job.recipe}, job.panel_path)


def discard_panel(job: Job) -> None:
    """Remove the panel of the image that was there before, so that none is beside an image that it does not show."""
    try:
        recipe = read_recipe(job.panel_path) if job.panel_path.exists() else None
    except BrokenImage:
        return
    if recipe is not None and "panel" in recipe:  # not a picture of someone else
        job.panel_path.unlink()


@contextmanager
def explained_memory(options: Options, settings: ConditionSettings, machine: Machine) -> Iterator[None]:
    """Turn running out of memory, which each device says in its own way, into a MemoryError with advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not MEMORY_WORDS.search(str(error)):
            raise
        advice = [f"--batch_size 1 (now {options.batch_size})"] if options.batch_size > 1 else []
        advice += ["--weight_dtype bf16"] if machine.dtype == torch.float32 else []
        advice += [f"--memory {smaller}"] if (smaller := next_mode(options.memory, machine.device)) else []
        advice += ["a smaller --height and --width"]
        advice += ["--cond_scale_factor 2"] if settings.is_use_cond_token and settings.cond_scale_factor == 1 else []
        advice += ["--device cpu"] if machine.device.type != "cpu" else []
        raise MemoryError(f"out of memory; turn on {', '.join(advice)}") from error
