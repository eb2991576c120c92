"""A CycloneDX bill of what is installed here: for whoever has to know what an artifact was made with."""

from __future__ import annotations

import json
from importlib.metadata import distributions
from typing import Any

from compressor.errors import MissingExtraError


def environment_sbom() -> dict[str, Any]:
    """CycloneDX 1.6, JSON: every installed distribution, with its version, package URL and licence as it states it.

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
    ours = next(one for one in bom.components if one.name == "autoglm-compress")
    bom.metadata.component = ours
    bom.register_dependency(ours, bom.components - {ours})
    told: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    return told


def _installed() -> set[tuple[str, str, str]]:
    """Name, version, and licence in one line (empty where none is stated)."""
    found = set()
    for one in distributions():
        told = one.metadata.json
        stated = str(told.get("license_expression") or told.get("license") or "").strip()
        found.add((str(told["name"]), one.version, stated.splitlines()[0][:80] if stated else ""))
    return found
