"""Uncertainty: intervals by the jackknife, sign flips, false discoveries; of numbers and documents, not of models."""
