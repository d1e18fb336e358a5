"""What a budget buys: FLOPs per token over a space, and whether it trains models enough to compare them. Pure."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from raytrain.accounting.flops import flops_per_token, parameter_count
from raytrain.config.run import TrainConfig
from raytrain.sweep.space import Candidate

OPTIMAL = 20  # training tokens a parameter at which a compute budget is best spent (Hoffmann et al., arXiv 2203.15556)
FEW = 5  # below, runs of docs/log.md were still near the unigram plateau, and the noise of leaving it hid every effect


@dataclasses.dataclass(frozen=True)
class Spread:
    """Training FLOPs per token over all variants of a space: the least and the most, and whose they are."""

    least: int
    most: int
    least_label: str
    most_label: str

    @property
    def ratio(self) -> float:
        return self.most / self.least

    def __str__(self) -> str:
        if self.least == self.most:
            return f"{self.least:,}, the same for all variants"
        return f"{self.least:,} ({self.least_label}) to {self.most:,} ({self.most_label}): x{self.ratio:.3f}"


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a run is trained on: `tokens`, of a model with so many `parameters` (an embedding counts; a tied head does
    once) at `flops_per_token`. Of a study's runs, the medians, and then no `steps`."""

    tokens: float
    parameters: float
    flops_per_token: float
    steps: int | None = None

    @classmethod
    def of(cls, config: TrainConfig) -> "Budget":
        arch = config.architecture
        tokens = config.total_sequences * arch.block_size
        return cls(tokens, parameter_count(arch)["total"], flops_per_token(arch).total, config.total_steps)

    @property
    def tokens_per_parameter(self) -> float:
        return self.tokens / self.parameters

    @property
    def optimal_flops(self) -> float:
        """Model FLOPs of a run of OPTIMAL tokens a parameter."""
        return float(OPTIMAL * self.parameters * self.flops_per_token)

    def describe(self) -> list[str]:
        """The lines of a plan."""
        lines = [
            f"training    {self.steps:,} steps of the base, {self.tokens:,} tokens: {self.tokens_per_parameter:.3g} a "
            f"parameter, of {self.parameters:,}"
        ]
        if self.tokens_per_parameter < FEW:
            lines.append(
                f"warning     below {FEW} tokens per parameter models still leave the plateau; {OPTIMAL} is "
                f"compute-optimal (Hoffmann et al., arXiv 2203.15556): --flops {self.optimal_flops:.2g} here"
            )
        return lines

    def to_dict(self) -> dict[str, Any]:
        derived = {"tokens_per_parameter": self.tokens_per_parameter, "optimal_flops": self.optimal_flops}
        return {"steps": self.steps} | dataclasses.asdict(self) | derived


def flops_spread(candidates: Sequence[Candidate]) -> Spread:
    """Training FLOPs per token over all of `candidates`."""
    flops = [(flops_per_token(candidate.config.architecture).total, candidate.labels[0]) for candidate in candidates]
    least, most = min(flops, key=lambda item: item[0]), max(flops, key=lambda item: item[0])
    return Spread(least[0], most[0], least[1], most[1])
