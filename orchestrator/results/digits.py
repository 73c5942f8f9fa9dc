"""Numbers with few digits that still lie on the side where they are right."""

from decimal import ROUND_FLOOR, Context

_FLOOR = Context(prec=4, rounding=ROUND_FLOOR)


def below(value: float) -> float:
    """Return a finite number to four digits, and never above it: whoever asks for what he reads is not refused."""
    return float(_FLOOR.create_decimal(repr(float(value))))
