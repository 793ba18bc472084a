"""Planning: which heads go, decided from a table of scores. Nothing here sees a model, and nothing here cuts."""

from headscope.planning.planner import PLANNERS, Planner, plan

__all__ = ["PLANNERS", "Planner", "plan"]
