"""Edits: what a cut does to single modules, as data that can be replayed. A new kind of edit is one new file."""
