"""One suite over every registered pass, ours and other people's."""

from __future__ import annotations

import subprocess
import sys

import pytest

from compressor.analysis.catalogue import entry
from compressor.config import discovery
from compressor.engine.contract import Pass, PassConfig
from compressor.engine.plan.capabilities import is_alias

PASSES = [name for name in discovery.names(discovery.PASSES) if not is_alias(name)]


@pytest.mark.parametrize("name", PASSES)
def test_what_a_pass_declares(name: str) -> None:
    found = discovery.load(discovery.PASSES, name)
    assert isinstance(found, Pass)
    assert found.name == name
    assert found.version >= 1
    assert found.accepts <= set(discovery.names(discovery.FORMATS))
    assert found.produces in discovery.names(discovery.FORMATS)
    assert issubclass(found.Config, PassConfig)
    assert found.Config.model_config["extra"] == "forbid"
    assert found.Config.model_config["frozen"]


@pytest.mark.parametrize(
    "name", [*PASSES, *discovery.names(discovery.SOURCES), *discovery.names(discovery.FAMILIES)]
)
def test_every_field_says_what_it_is_for(name: str) -> None:
    told = entry(name)
    assert told.summary
    assert [field.name for field in told.fields if not field.description] == []


def test_all_of_them_are_found_without_torch() -> None:
    code = (
        "import sys\nfrom compressor.analysis.catalogue import catalogue\ncatalogue()\n"
        "assert not {'torch', 'onnx', 'onnxruntime', 'PIL', 'qtawesome', 'espeakng_loader'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
