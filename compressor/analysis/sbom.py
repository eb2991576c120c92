"""CycloneDX bill of materials (SBOM) of the installed Python distributions."""

from __future__ import annotations

import json
from importlib.metadata import distributions
from typing import Any

from compressor.errors import MissingExtraError


def environment_sbom() -> dict[str, Any]:
    """Return every installed distribution as CycloneDX 1.6: version, package URL, stated licence.

    Raises:
        MissingExtraError: `cyclonedx-python-lib` is not installed.
    """
    try:
        from cyclonedx.model.bom import Bom
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.model.license import DisjunctiveLicense
        from cyclonedx.output.json import JsonV1Dot6
        from packageurl import PackageURL
    except ImportError as error:
        raise MissingExtraError(
            "cyclonedx-python-lib", "a bill of materials", "provenance"
        ) from error
    bom = Bom()
    for name, version, licence in sorted(_installed()):
        component = Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version,
            purl=PackageURL("pypi", name=name.lower().replace("_", "-"), version=version),
            bom_ref=f"{name}=={version}",
            licenses=[DisjunctiveLicense(name=licence)] if licence else (),
        )
        bom.components.add(component)
    ours = next(part for part in bom.components if part.name == "autoglm-compress")
    bom.metadata.component = ours
    bom.register_dependency(ours, bom.components - {ours})
    document: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    return document


def _installed() -> set[tuple[str, str, str]]:
    """Return name, version, and licence in one line (empty if none is stated)."""
    installed = set()
    for distribution in distributions():
        metadata = distribution.metadata.json
        text = str(metadata.get("license_expression") or metadata.get("license") or "").strip()
        licence = text.splitlines()[0][:80] if text else ""
        installed.add((str(metadata["name"]), distribution.version, licence))
    return installed
