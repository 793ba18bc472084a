"""The command line: parsing and printing only; every command is a call that Python users have as well.

What a command needs is imported when it runs, so that help, versions and mistakes are answered at once.
"""

from headscope.cli import cutting, measuring, starting, studying, trying
from headscope.cli.application import app, main, script

__all__ = ["app", "cutting", "main", "measuring", "script", "starting", "studying", "trying"]
