"""The command line: parsing and printing only; every command is a call that Python users have as well."""

from headscope.cli import measuring, story, studying
from headscope.cli.options import app, main, refusing

__all__ = ["app", "main", "measuring", "refusing", "story", "studying"]
