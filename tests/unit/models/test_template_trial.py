"""Chat templates of foreign models that do not end, or fill the memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.errors import DataError
from compressor.foreign_files import trials
from compressor.models.families.transformers import template_trial
from compressor.models.families.transformers.chat_templates import load_tokenizer
from compressor.models.families.transformers.planned_template import PlannedTemplate
from tests.support.processors import write_processor

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
FOLDED = "{{ 9 ** (9 ** 9) }}"


@pytest.mark.parametrize(
    ("template", "reason"),
    [(ENDLESS, "does not end"), (FOLDED, "does not end")],
)
def test_a_template_without_end_is_an_error(
    template: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "CPU_SECONDS", 1)
    write_processor(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    for open_template in (PlannedTemplate, load_tokenizer):
        with pytest.raises(DataError, match=f"the chat template {reason}"):
            open_template(tmp_path)


def test_a_template_that_fills_the_memory_is_an_error(tmp_path: Path) -> None:
    write_processor(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ 'a' * (messages|length * 10 ** 10) }}")
    with pytest.raises(DataError, match="needs more than 1024 MiB of memory"):
        PlannedTemplate(tmp_path)


def test_templates_that_end_are_not_refused(tmp_path: Path) -> None:
    write_processor(tmp_path)
    PlannedTemplate(tmp_path)
    for text in ("{% if", "{{ raise_exception('no') }}", "{{ messages[7].content.x.y }}", ""):
        template_trial.check_ends(text, {}, tmp_path)
