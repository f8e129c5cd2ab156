"""Base classes of the suite's errors."""


class UserError(Exception):
    """An error that the user can fix; the message says where it is and what to do.

    The command line prints the message after ``label``, without a traceback, and exits with
    ``exit_status``.
    """

    label = "error: "
    exit_status = 2


class StopRequestedError(BaseException):
    """Raised at the end of an epoch to stop the run that is training.

    Not an ``Exception``, so that code that records a failed run does not catch it.
    """
