"""Every model type of transformers: a tiny random model of each, and what headscope makes of it."""

from headscope.studies.families.mechanisms import MECHANISMS, QUICK, WELL_KNOWN
from headscope.studies.families.results import Cut, Result, worse
from headscope.studies.families.running import Limits, all_types, run_types
from headscope.studies.families.table import FamilyTable
from headscope.studies.families.trying import try_type

__all__ = [
    "MECHANISMS",
    "QUICK",
    "WELL_KNOWN",
    "Cut",
    "FamilyTable",
    "Limits",
    "Result",
    "all_types",
    "run_types",
    "try_type",
    "worse",
]
