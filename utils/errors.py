"""The one exception of expected failures."""


class UserError(Exception):
    """Something the user can mend: a wrong option, file, picture or size.

    The message is one line that says what was expected, what was found and what to do. Programs
    print it as ``error: <message>`` and exit with status 2, without a traceback.
    """

    def __str__(self) -> str:
        """The message, on one line even where a file's name or a server's answer has several."""
        return " ".join(super().__str__().splitlines())
