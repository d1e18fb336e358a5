"""The ranks that a launcher such as torchrun declares in the environment. Pure.

What a launcher left behind there, in a shell or a batch job, would have a single run wait for ranks that never come.
"""

import dataclasses
import os
import socket

from raytrain.errors import UserError

_NAMES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK"}
_NAMES |= {"ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"}
_PREFIX = "TORCHELASTIC_"
_REMEDY = "; for a single run: unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT"
_AGENT_SECONDS = 10.0  # torchrun's own store is there before any rank


@dataclasses.dataclass(frozen=True)
class Launch:
    """This process among the ranks of its run; `address` is where they meet, None for one alone."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: tuple[str, int] | None = None

    @property
    def has_agent(self) -> bool:
        """Whether the launcher itself has the place where ranks meet, rather than rank 0."""
        return os.environ.get(f"{_PREFIX}USE_AGENT_STORE") == "True"

    def unreachable(self, why: object) -> UserError:
        """The error for ranks that do not come together."""
        host, port = self.address or ("", 0)
        return UserError(
            f"rank {self.rank} of {self.size} (RANK and WORLD_SIZE in the environment) does not meet the others at "
            f"{host}:{port}: {str(why).partition(chr(10))[0]}{_REMEDY}"
        )


def launched() -> Launch:
    """What the environment declares. Raises UserError for what cannot be, and where torchrun does not answer."""
    size, rank = _number("WORLD_SIZE", 1), _number("RANK", 0)
    if "WORLD_SIZE" not in os.environ and rank:
        raise UserError(f"RANK ({rank}) is set in the environment, and WORLD_SIZE is not{_REMEDY}")
    if size < 1 or not 0 <= rank < size:
        raise UserError(f"RANK ({rank}) must be from 0 to below WORLD_SIZE ({size}), in the environment{_REMEDY}")
    if size == 1:
        return Launch(local_rank=_number("LOCAL_RANK", 0))
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise UserError(f"WORLD_SIZE ({size}) is set in the environment, and {', '.join(missing)} not{_REMEDY}")
    launch = Launch(rank, size, _number("LOCAL_RANK", 0), (os.environ["MASTER_ADDR"], _number("MASTER_PORT", 0)))
    if launch.has_agent and launch.address:
        try:
            socket.create_connection(launch.address, timeout=_AGENT_SECONDS).close()
        except OSError as error:
            raise launch.unreachable(error) from None
    return launch


def forget() -> None:
    """Take out of the environment what a launcher left there: this process is a rank alone."""
    for name in list(os.environ):
        if name in _NAMES or name.startswith(_PREFIX):
            del os.environ[name]


def _number(name: str, usual: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return usual
    if not text.strip().isdecimal():
        raise UserError(f"{name} ({text!r}) in the environment is not a number{_REMEDY}")
    return int(text)
