"""The one exception that scripts turn into a sentence and exit code 2."""


class UserError(ValueError):
    """What a user can cause and mend: the message says what came, why it cannot work, what to
    do."""
