"""The one exception a user is meant to see."""


class BadInput(Exception):
    """Input that cannot be used: the message is one line that says what, where, and what to do.

    The command line prints it and exits with status 2.
    """
