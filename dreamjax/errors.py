"""The one error type that ends in a single line for the user instead of a traceback."""


class UserError(ValueError):
    """An error that a user can cause: one line saying what is wrong and what would be right."""
