"""Ends of a trial that another attempt would not change: the trial has failed, and its message says what to do."""


class OutOfMemory(Exception):  # noqa: N818 - says what happened
    """The least that can be computed at a time does not fit."""


class Diverged(Exception):  # noqa: N818 - says what happened
    """A loss, gradient or violation stopped being finite, or the KL exploded."""


class Unscored(ValueError):  # noqa: N818 - says what happened
    """A reward gives no scores: its server does not answer, answers wrongly, or has become another."""
