"""Sections of the report: typed results in, blocks out. A section never sees a model, and knows nothing of HTML.

A new section is one new file in this folder.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

from headscope._support.registry import Registry
from headscope.reporting.blocks import Block
from headscope.reporting.reportable import Reportable

__all__ = ["SECTIONS", "Section"]


class Section(ABC):
    """One part of the page under a heading.

    Class facts, each tested:
        title: its heading.
        order: place on the page; lower comes first. The built-in ones are tens, so that others fit between.
    """

    title: ClassVar[str]
    order: ClassVar[int]

    @abstractmethod
    def blocks(self, analysis: Reportable) -> Iterable[Block]:
        """What the section has to say of an analysis; nothing at all leaves the section out of the page."""


SECTIONS: Registry[Section] = Registry("section", "headscope.reporting.sections")
