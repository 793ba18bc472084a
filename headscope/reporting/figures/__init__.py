"""Figures: each is one call that takes tables and, if wished, matplotlib axes to draw on, and returns the axes."""

from headscope.reporting.figures.claims import layer_dots, layer_panels, sorted_dots
from headscope.reporting.figures.clusters import cluster_matrix, head_scatter
from headscope.reporting.figures.costs import cost_curve, cost_curves, cost_terms, cost_times
from headscope.reporting.figures.coverage import coverage_plot
from headscope.reporting.figures.curves import effective_dots, redundancy_curve
from headscope.reporting.figures.examples import example_map
from headscope.reporting.figures.headcount import count_curve, count_curves, map_bound, regret_curves, removal_curves
from headscope.reporting.figures.maps import head_map, map_height
from headscope.reporting.figures.marks import to_mark
from headscope.reporting.figures.paired import paired_dots
from headscope.reporting.figures.quadrants import quadrant_plot
from headscope.reporting.figures.ratios import ratios
from headscope.reporting.figures.removal import joint_cost
from headscope.reporting.figures.roles import role_map
from headscope.reporting.figures.shares import share_curves
from headscope.reporting.figures.similarity import (
    blocks_width,
    layer_block,
    layer_blocks,
    matrix_height,
    whole_matrix,
)
from headscope.reporting.figures.style import canvas, figure_of, styling

__all__ = [
    "blocks_width",
    "canvas",
    "cluster_matrix",
    "cost_curve",
    "cost_curves",
    "cost_terms",
    "cost_times",
    "count_curve",
    "count_curves",
    "coverage_plot",
    "effective_dots",
    "example_map",
    "figure_of",
    "head_map",
    "head_scatter",
    "joint_cost",
    "layer_block",
    "layer_blocks",
    "layer_dots",
    "layer_panels",
    "map_bound",
    "map_height",
    "matrix_height",
    "paired_dots",
    "quadrant_plot",
    "ratios",
    "redundancy_curve",
    "regret_curves",
    "removal_curves",
    "role_map",
    "share_curves",
    "sorted_dots",
    "styling",
    "to_mark",
    "whole_matrix",
]
