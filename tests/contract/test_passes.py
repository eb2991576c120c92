"""Contract of every registered pass, of this project and of plugins."""

from __future__ import annotations

import subprocess
import sys

import pytest

from compressor.analysis.catalogue import find_entry
from compressor.config import discovery
from compressor.engine.contract import Pass, PassConfig
from compressor.engine.plan.capabilities import is_alias

PASSES = [name for name in discovery.names(discovery.PASSES) if not is_alias(name)]
SOURCES = discovery.names(discovery.SOURCES)
FAMILIES = discovery.names(discovery.FAMILIES)
FORMATS = discovery.names(discovery.FORMATS)


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_declares_name_version_formats_and_a_strict_config(name: str) -> None:
    pass_ = discovery.load(discovery.PASSES, name)
    assert isinstance(pass_, Pass)
    assert pass_.name == name
    assert pass_.version >= 1
    assert pass_.accepts <= set(FORMATS)
    assert pass_.produces in FORMATS
    assert issubclass(pass_.Config, PassConfig)
    assert pass_.Config.model_config["extra"] == "forbid"
    assert pass_.Config.model_config["frozen"]


@pytest.mark.parametrize("name", [*PASSES, *SOURCES, *FAMILIES])
def test_every_plugin_has_a_summary_and_every_field_a_description(name: str) -> None:
    plugin = find_entry(name)
    assert plugin.summary
    assert [field.name for field in plugin.fields if not field.description] == []


def test_the_catalogue_is_made_without_heavy_libraries() -> None:
    code = (
        "import sys\n"
        "from compressor.analysis.catalogue import list_entries\n"
        "list_entries()\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'PIL', 'qtawesome', 'espeakng_loader'}\n"
        "assert not heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
