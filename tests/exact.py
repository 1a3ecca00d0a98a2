"""cos and sin in 60 digits: an oracle that shares nothing with the code under test."""

from decimal import Decimal, getcontext

getcontext().prec = 60
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")


def exact_cos_sin(angle):
    """(cos, sin) of a Decimal in radians, by reduction and Taylor series."""
    angle %= 2 * PI
    term, cos, sin, n = Decimal(1), Decimal(0), Decimal(0), 0
    while abs(term) > Decimal(10) ** -40:
        sign = (-1) ** (n // 2)
        cos, sin = (cos + sign * term, sin) if n % 2 == 0 else (cos, sin + sign * term)
        n += 1
        term *= angle / n
    return cos, sin
