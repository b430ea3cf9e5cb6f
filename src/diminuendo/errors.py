"""The one exception that means: the user's input is wrong."""


class UserError(ValueError):
    """What came, what was expected, what to do, in one line. The command line prints it and exits with status 2."""


class Interrupted(UserError):  # noqa: N818 - what the user did, not an error of the run
    """Ctrl-C: the step was finished and the checkpoint written."""
