"""Base class of capabilities: the small typed records that passes build on."""

from __future__ import annotations

from typing import ClassVar, TypeVar


class Capability:
    """A property of a model that passes build on, such as its cuttable axes.

    A pass lists the capabilities that it needs (``Pass.needs``). A model has a capability if its
    family provides it (``Family.capabilities``), or if it can be derived from the signature or
    discovered from the module (``capabilities/discovery.py``).

    Subclasses are frozen dataclasses, one per module of this package. Importing them must not
    import torch: planning looks capabilities up.
    """

    __slots__ = ()
    label: ClassVar[str]
    """Name in reports and messages, such as ``cuttable axes``."""
    remedy: ClassVar[str]
    """Change that would give the capability to a model that lacks it."""
    in_config: ClassVar[bool] = False
    """True if passes write the capability into the model's config, such as smaller sizes: what is
    discovered is of use only if the family can describe it there (``Family.adopt``)."""


C = TypeVar("C", bound=Capability)
