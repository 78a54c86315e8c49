"""Durations, shares, counts and rates as people write them in job files, and back.

Each type reads what its `__str__` writes; `off` stands for no limit. Plain classes, no dataclasses:
so msgspec leaves reading and writing them to us. Pure.
"""

import re
from decimal import Decimal
from typing import Self

_PIECE = re.compile(r"(\d{1,12}(?:\.\d{1,3})?)(ms|s|m|h|d)", re.ASCII)
_UNIT_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_LONGEST_MS = 100 * 365 * _UNIT_MS["d"]
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)%", re.ASCII)
_RATE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?([kKMGT]i?)?B/s", re.ASCII)
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?([kKMGT]i?)?B", re.ASCII)
_FACTOR = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_FACTOR |= {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_PREFIXES = (
    *(("TI", "Ti"), ("T", "T"), ("GI", "Gi"), ("G", "G")),
    *(("MI", "Mi"), ("M", "M"), ("KI", "Ki"), ("K", "k")),
)


class Quantity:
    """What the types here have in common: one value, and one text for it."""

    __slots__ = ("_value",)

    def __init__(self, value: Decimal | None) -> None:
        """Keep the value, in the smallest unit of the type; None is `off`."""
        self._value = value

    @classmethod
    def parse(cls, raw: object) -> Self:
        """Read what a job file says. Raises `ValueError` that says what would be right."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._value == self._value

    def __hash__(self) -> int:
        return hash((type(self), self._value))

    def __repr__(self) -> str:
        return f"{type(self).__name__}.parse({str(self)!r})"


def _is_off(raw: object) -> bool:
    return raw is False or raw == "off"  # `off` without quotes is false to YAML 1.1


class Duration(Quantity):
    """A length of time, to the millisecond, up to a hundred years."""

    __slots__ = ()

    @classmethod
    def parse(cls, raw: object) -> Self:
        """Read `50ms`, `5s`, `15m`, `24h`, `30d`, or several in a row, as in `1h30m`."""
        if isinstance(raw, str) and raw and not _PIECE.sub("", raw):
            total = sum(
                (Decimal(number) * _UNIT_MS[unit] for number, unit in _PIECE.findall(raw)),
                start=Decimal(0),
            )
            if total == total.to_integral_value() and total <= _LONGEST_MS:
                return cls(total)
        raise ValueError(f"{raw!r} is no duration: use for example 50ms, 5s, 15m, 24h or 30d")

    @property
    def seconds(self) -> float:
        """The length in seconds."""
        return float(self._value or 0) / 1000

    def __str__(self) -> str:
        left = int(self._value or 0)
        for unit, size in _UNIT_MS.items():
            if left and left % size == 0 and (unit != "d" or left >= 2 * size):
                return f"{left // size}{unit}"
        return "0s"


class Retention(Duration):
    """How long something is kept: a duration, or `off` for not at all."""

    __slots__ = ()

    @classmethod
    def parse(cls, raw: object) -> Self:
        """Read a duration or `off`."""
        try:
            return cls(None) if _is_off(raw) else super().parse(raw)
        except ValueError as error:
            raise ValueError(f"{error}, or off") from error

    @property
    def limit_s(self) -> float | None:
        """The length in seconds; None for `off`."""
        return None if self._value is None else self.seconds

    @property
    def whole_seconds(self) -> int | None:
        """The length in seconds, rounded up; None for `off`."""
        return None if self._value is None else -(-int(self._value) // 1000)

    def __str__(self) -> str:
        return "off" if self._value is None else super().__str__()


class Share(Quantity):
    """A share of a whole, or `off` for no limit. `100%` limits nothing either."""

    __slots__ = ()

    @classmethod
    def parse(cls, raw: object) -> Self:
        """Read `0%` to `100%`, or `off`."""
        if _is_off(raw):
            return cls(None)
        found = _PERCENT.fullmatch(raw) if isinstance(raw, str) else None
        if found and Decimal(found[1]) <= 100:
            return cls(Decimal(found[1]).normalize())
        raise ValueError(f"{raw!r} is no share: use a percentage from 0% to 100%, or off")

    @property
    def limit(self) -> float | None:
        """The share, 0 to below 1, or None when nothing is limited."""
        return None if self._value is None or self._value >= 100 else float(self._value / 100)

    def __str__(self) -> str:
        return "off" if self._value is None else f"{self._value:f}%"


class Limit(Quantity):
    """A greatest number of things, or `off` for no limit."""

    __slots__ = ()

    @classmethod
    def parse(cls, raw: object) -> Self:
        """Read a whole number from 0, or `off`."""
        if _is_off(raw):
            return cls(None)
        if isinstance(raw, int) and not isinstance(raw, bool) and 0 <= raw < 2**63:
            return cls(Decimal(raw))
        raise ValueError(f"{raw!r} is no number of files: use a whole number from 0, or off")

    @property
    def count(self) -> int | None:
        """The number, or None for no limit."""
        return None if self._value is None else int(self._value)

    def plain(self) -> int | str:
        """Return what a job file says: a number as a number."""
        return "off" if self._value is None else int(self._value)

    def __str__(self) -> str:
        return str(self.plain())


class Size(Quantity):
    """A number of bytes, or `off` for no limit."""

    __slots__ = ()

    @classmethod
    def parse(cls, raw: object) -> Self:
        """Read `1B`, `64KiB`, `10GB` and the like, or `off`."""
        if _is_off(raw):
            return cls(None)
        found = _SIZE.fullmatch(raw) if isinstance(raw, str) else None
        if found:
            value = Decimal(found[1]) * _FACTOR[(found[2] or "").upper()]
            if value == value.to_integral_value() and value < 2**63:
                return cls(value)
        raise ValueError(f"{raw!r} is no size: use for example 1B, 64KiB, 500MB or 10GB, or off")

    @property
    def bytes(self) -> int | None:
        """The number of bytes, or None for no limit."""
        return None if self._value is None else int(self._value)

    def __str__(self) -> str:
        return "off" if self._value is None else f"{_with_prefix(int(self._value))}B"


class Rate(Quantity):
    """Bytes per second, or `off` for no limit."""

    __slots__ = ()

    @classmethod
    def parse(cls, raw: object) -> Self:
        """Read `100MB/s`, `512KiB/s` and the like, or `off`."""
        if _is_off(raw):
            return cls(None)
        found = _RATE.fullmatch(raw) if isinstance(raw, str) else None
        if found:
            value = Decimal(found[1]) * _FACTOR[(found[2] or "").upper()]
            if value == value.to_integral_value() and 0 < value < 2**63:
                return cls(value)
        raise ValueError(f"{raw!r} is no rate: use for example 100MB/s or 512KiB/s, or off")

    @property
    def bytes_per_s(self) -> int | None:
        """The rate, or None for no limit."""
        return None if self._value is None else int(self._value)

    def __str__(self) -> str:
        return "off" if self._value is None else f"{_with_prefix(int(self._value))}B/s"


def _with_prefix(value: int) -> str:
    """Write a number with the largest prefix that leaves no fraction."""
    for prefix, name in _PREFIXES:
        if value and value % _FACTOR[prefix] == 0:
            return f"{value // _FACTOR[prefix]}{name}"
    return str(value)
