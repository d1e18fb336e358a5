"""How long a study may take."""

import dataclasses
import math
import re
import time

from raytrain.errors import UserError, short

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_PATTERN = re.compile(rf"([0-9]+(?:\.[0-9]+)?)([{''.join(_UNITS)}]?)")
_MOST = 10 * 365 * 86400  # seconds


def read_time_limit(given: str | float | None) -> float | None:
    """`given` in seconds: a number of them, or one with a unit such as `90m` or `4h`. Raises UserError otherwise."""
    if given is None:
        return None
    match = _PATTERN.fullmatch(str(given).strip())
    seconds = float(match[1]) * _UNITS[match[2]] if match else math.nan
    if not 0 < seconds <= _MOST:
        raise UserError(
            f"time_limit ({short(str(given))}) must be a number above 0, of seconds or with a unit (s, m, h, d): "
            "such as 90m or 4h"
        )
    return seconds


@dataclasses.dataclass(frozen=True)
class TimeLimit:
    """The `seconds` that a study may take from `began`, when this process took it up (a reading of `time.monotonic`);
    None: as many as it likes."""

    seconds: float | None = None
    began: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def is_over(self) -> bool:
        return self.seconds is not None and time.monotonic() - self.began >= self.seconds
