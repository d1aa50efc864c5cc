"""Chat templates that read the clock get one date, which is a setting, never the real time.

With the real time, the same command would render other prompts on the next day, under the same ids. The date is the one
that is asked for, else that of the work that is continued, else the day on which the work begins. It is midnight then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import date, datetime, time
from pathlib import Path
from typing import TypeVar

from prefdata.errors import UsageError
from prefdata.models.files import ModelFiles
from prefdata.specs.chat import ChatSpec, TemplateChoice
from prefdata.storage.artifact import Artifact

NAME = "strftime_now"
"""The function by which a template reads the clock: transformers and vLLM give it to every template."""

_TEMPLATES = ("chat_template.jinja", "additional_chat_templates/*.jinja", "chat_template.json", "tokenizer_config.json")
"""Files of a model that may hold chat templates."""

S = TypeVar("S", bound=ChatSpec)


def frozen(day: str) -> Callable[[str], str]:
    """Return the function that a template reads the clock with, on that day (YYYY-MM-DD)."""
    moment = datetime.combine(date.fromisoformat(day), time())

    def strftime_now(format: str) -> str:
        return moment.strftime(format)

    return strftime_now


def unset(model: str) -> Callable[[str], str]:
    """Return the clock function for an unknown date: calling it is an error."""

    def strftime_now(format: str) -> str:
        raise UsageError(
            f"the chat template of {model} reads the clock, and its prompts would differ tomorrow. Give the date "
            f"that it should read: --chat-template-date {today()}."
        )

    return strftime_now


def today() -> str:
    """Return the date of today, where this runs."""
    return date.today().isoformat()


def dated(spec: S, models: Iterable[ModelFiles], began: str | None = None) -> S:
    """Return the spec with the date that its chat templates read, if one of them reads the clock.

    Args:
        spec: as it was given.
        models: those whose chat templates render something.
        began: the date of the work that is continued (`began_on`).

    Raises:
        UsageError: a date is given, and no template uses it.
    """
    choice = with_date(spec.template_choice, models, began)
    given = spec.chat_template_date
    return spec if choice.date == given else spec.model_copy(update={"chat_template_date": choice.date})


def with_date(choice: TemplateChoice, models: Iterable[ModelFiles], began: str | None = None) -> TemplateChoice:
    """Return the choice with the date that the templates read; see `dated`."""
    from prefdata.chat.template import template_of  # which renders by this module's clocks

    naming = [files for files in models if _names_the_clock(files, choice)]
    if choice.date is not None and not naming:
        raise UsageError(
            "--chat-template-date changes nothing: no chat template that is used here reads the clock. Leave it out."
        )
    if choice.date is not None:
        return choice
    templates = (template_of(files, choice) for files in naming)
    reads = any(template is not None and template.reads_clock for template in templates)
    return replace(choice, date=began or today()) if reads else choice


def began_on(folders: Iterable[Artifact]) -> str | None:
    """Return the date with which the first of these folders began that has one."""
    lineages = (folder.lineage() for folder in folders)
    dates = (lineage.spec.get("chat_template_date") for lineage in lineages if lineage is not None)
    return next((day for day in dates if day), None)


def _names_the_clock(files: ModelFiles, choice: TemplateChoice) -> bool:
    """Whether a template's text names the clock: only then can it read the clock, and the tokenizer is loaded."""
    own = Path(choice.named or "")
    folder = files.text_folder()
    texts = [own] if choice.named and own.is_file() else [p for name in _TEMPLATES for p in folder.glob(name)]
    return any(NAME.encode() in path.read_bytes() for path in texts)
