"""What a budget buys: FLOPs per token over a space, and whether it trains models enough to compare them. Pure."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from raytrain.accounting.flops import flops_per_token, parameter_count
from raytrain.config.run import TrainConfig
from raytrain.sweep.space import Candidate

OPTIMAL = 20  # training tokens a parameter at which a compute budget is best spent (Hoffmann et al., arXiv 2203.15556)
REPEATS = 4  # passes over the data up to which they are worth nearly as much as new data (arXiv 2305.16264)
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
    once) at `flops_per_token`. Of a study's runs, the medians, and then no `steps`. The data has `data_tokens` to train
    on, where that is known."""

    tokens: float
    parameters: float
    flops_per_token: float
    steps: int | None = None
    data_tokens: int | None = None

    @classmethod
    def of(cls, config: TrainConfig, data_tokens: int | None = None) -> "Budget":
        arch = config.architecture
        tokens = config.total_sequences * arch.block_size
        parameters = parameter_count(arch)["total"]
        return cls(tokens, parameters, flops_per_token(arch).total, config.total_steps, data_tokens)

    @property
    def tokens_per_parameter(self) -> float:
        return self.tokens / self.parameters

    @property
    def passes(self) -> float:
        """How often a run goes through its training data; 0 where the size of that is not known."""
        return self.tokens / self.data_tokens if self.data_tokens else 0.0

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
        return lines + self.repeats()

    def repeats(self) -> list[str]:
        """The line that warns of data seen too often; or none."""
        if self.passes <= REPEATS:
            return []
        return [
            f"warning     {self.passes:.3g} passes over the {self.data_tokens:,} tokens of training data: after "
            f"{REPEATS} a repeated token is worth less and less (Muennighoff et al., arXiv 2305.16264), and larger "
            "models overfit first. Prepare more data (python -m raytrain.data prepare)"
        ]

    def to_dict(self) -> dict[str, Any]:
        derived = {
            "tokens_per_parameter": self.tokens_per_parameter,
            "optimal_flops": self.optimal_flops,
            "passes": self.passes,
        }
        return {"steps": self.steps} | dataclasses.asdict(self) | derived


def flops_spread(candidates: Sequence[Candidate]) -> Spread:
    """Training FLOPs per token over all of `candidates`."""
    flops = [(flops_per_token(candidate.config.architecture).total, candidate.labels[0]) for candidate in candidates]
    least, most = min(flops, key=lambda item: item[0]), max(flops, key=lambda item: item[0])
    return Spread(least[0], most[0], least[1], most[1])
