"""Uncertainty: blocks of documents, jackknife intervals, sign flips, false discoveries. It knows no heads."""
