"""A small input for the probe: a corner of a user's batch, else made up for any model of transformers.

What is made up goes by the names of a forward's arguments and of a config's fields, and by what the model says when it
is tried; no type of model is listed.
"""

from headscope.anatomy.examples.corner import corner, mapped
from headscope.anatomy.examples.facts import placeholders
from headscope.anatomy.examples.making import make_example

__all__ = ["corner", "make_example", "mapped", "placeholders"]
