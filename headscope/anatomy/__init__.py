"""Anatomy: where a model's heads are, read off by a probe, and routes that overhear attention. It measures nothing."""

from headscope.anatomy.descriptions import Description, describe
from headscope.anatomy.discovery import discover
from headscope.anatomy.fitting import anatomy_of
from headscope.anatomy.route import ROUTES, Call, Place, Route

__all__ = ["ROUTES", "Call", "Description", "Place", "Route", "anatomy_of", "describe", "discover"]
