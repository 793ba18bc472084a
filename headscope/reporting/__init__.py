"""Reporting: an analysis as a page that people want to look at. It sees tables and facts, never a model."""

from headscope.reporting.blocks import Block, Column, Figure, Heading, Table, Text
from headscope.reporting.render import render
from headscope.reporting.reportable import Reportable
from headscope.reporting.sections import SECTIONS, Section

__all__ = [
    "SECTIONS",
    "Block",
    "Column",
    "Figure",
    "Heading",
    "Reportable",
    "Section",
    "Table",
    "Text",
    "render",
]
