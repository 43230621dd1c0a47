"""The errors that end in a single line for the user instead of a traceback."""


class UserError(ValueError):
    """An error that a user can cause: one line saying what is wrong and what would be right."""


class FullDisk(UserError):
    """No space is left: nothing in the command is wrong, and it goes on once there is some."""
