"""Every error that headscope raises on purpose.

Each class also subclasses the builtin that fits, so that code which does not know headscope can catch it.
A message names the place, the value, what was expected and what to do next.
"""

__all__ = [
    "AnatomyError",
    "HeadscopeError",
    "InputError",
    "InterruptedWorkError",
    "MetricError",
    "ModelError",
    "NumericalError",
    "PlanError",
    "StorageError",
    "SurgeryError",
    "UnknownNameError",
]


class HeadscopeError(Exception):
    """Base of every refusal: catch this one to catch them all.

    Args:
        message: what is wrong.
        python: what to do about it, where that is spelled as an argument.
        shell: the same for who sits at the command line, which prints it instead.

    Attributes:
        on_command_line: the message as the command line prints it.

    >>> error = HeadscopeError("no text", python="pass texts=", shell="give --text")
    >>> str(error), error.on_command_line
    ('no text; pass texts=', 'no text; give --text')
    """

    def __init__(self, message: str = "", *, python: str = "", shell: str = "") -> None:
        super().__init__(f"{message}; {python}" if python else message)
        self.on_command_line = f"{message}; {shell}" if shell else message


class UnknownNameError(HeadscopeError, KeyError):
    """A measure, score, statistic, planner, head or layer that does not exist; the message lists what does."""

    __str__ = Exception.__str__  # KeyError's own puts the message in quotes


class InputError(HeadscopeError, ValueError):
    """Text, batches or settings that cannot be used as they are."""


class ModelError(HeadscopeError, ValueError):
    """A model that cannot be found, loaded or run."""


class AnatomyError(HeadscopeError, ValueError):
    """The attention heads of a model could not be found."""


class NumericalError(HeadscopeError, ArithmeticError):
    """NaN or infinity in a model's weights or activations; the message names the place."""


class MetricError(HeadscopeError, ValueError):
    """A metric that the model cannot be judged by."""


class PlanError(HeadscopeError, ValueError):
    """A plan that does not fit the model: heads that do not exist, given twice, or made for another model."""


class SurgeryError(HeadscopeError, RuntimeError):
    """A cut that could not be proven exact; the user's model was left as it was."""


class StorageError(HeadscopeError, OSError):
    """A saved model or analysis that is missing, truncated, altered, or in the way."""


class InterruptedWorkError(HeadscopeError, InterruptedError):
    """Long work was stopped from outside; the message says what of it is kept and how it goes on."""
