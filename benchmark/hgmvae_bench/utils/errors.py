"""The root of the suite's errors."""


class UserError(Exception):
    """Something that the user can mend; the message names the thing and says what to do.

    The command line shows the message without a traceback, behind ``label``, and exits with
    ``exit_status``.
    """

    label = "error: "
    exit_status = 2


class StopRequestedError(BaseException):
    """Raised at the end of an epoch to stop the run that is training.

    Not an ``Exception``, so that code that records a failed run does not catch it.
    """
