"""A model under the tasks of lm-evaluation-harness (Gao et al., github.com/EleutherAI/lm-evaluation-harness).

The only module that imports lm_eval, which is an extra (`raytrain[evaluate]`).

Letters of shapes: B sequences of a batch, T tokens of the longest, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from raytrain.data.tokenizer import Tokenizer, encodable
from raytrain.errors import UserError, short, unknown_value
from raytrain.model import Transformer
from raytrain.training.sampling import continuation

_BOOTSTRAP = 1000  # resamples for a standard error that has no formula: it is then known to 2%
_SEED = 0  # of sampling, where a task asks for it

Window = tuple[list[int], list[int]]  # tokens that are seen, and those after them that are scored


class HarnessLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """`model`, on any device, with the tokenizer of its data, as lm_eval asks for it.

    A document begins after an end-of-document token, as in training. What is longer than block_size is scored in
    windows of block_size tokens, each token once; a context that is too long loses its beginning.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, batch_size: int) -> None:
        """`batch_size` is sequences at a time."""
        super().__init__()
        self._model, self._text, self._batch_size = model, tokenizer, batch_size
        self._device = next(model.parameters()).device

    @property
    def eot_token_id(self) -> int:
        return self._text.end_of_document

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of `string`, in which characters that no document holds are replaced. No id is added."""
        ids: list[int] = self._text.encode_batch([encodable(string, self._text.reserved)[0]])[0].tolist()
        return ids

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return self._scores([list(self._windows(context, scored)) for _, context, scored in requests])

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole document, in nats."""
        documents = [self.tok_encode(request.args[0]) for request in requests]
        return [score for score, _ in self._scores([list(self._rolling(self.eot_token_id, d)) for d in documents])]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The text after each context, up to the first of its stop texts or the end of a document."""
        return [self._generated(*request.args) for request in requests]

    def _generated(self, context: str, how: dict[str, Any]) -> str:
        how = normalize_gen_kwargs(how)
        stops = [stop for stop in how["until"] if stop]
        prompt = torch.tensor(self.tok_encode(context) or [self.eot_token_id], device=self._device)
        temperature = float(how.get("temperature", 1)) if how.get("do_sample") else 0.0
        top_k = int(how.get("top_k") or self._model.arch.vocab_size)
        generator = torch.Generator(self._device).manual_seed(_SEED)
        following = continuation(self._model, prompt, temperature, top_k, generator)
        tokens: list[int] = []
        text = ""
        for _, token in zip(range(how["max_gen_toks"]), following, strict=False):
            if int(token) == self.eot_token_id:
                break
            if int(token) < self._text.vocab_size:
                tokens.append(int(token))
            text = self._text.decode(tokens)
            if ends := [place for stop in stops if (place := text.find(stop)) >= 0]:
                return text[: min(ends)]
        return text

    def _windows(self, context: list[int], scored: list[int]) -> Iterator[Window]:
        """`scored` after `context`, with as much of that as block_size allows."""
        longest = self._model.arch.block_size
        if len(scored) > longest:
            yield from self._rolling(context[-1], scored)
        elif scored:
            yield context[-(longest + 1 - len(scored)) :], scored

    def _rolling(self, before: int, scored: list[int]) -> Iterator[Window]:
        windows = get_rolling_token_windows(scored, before, self._model.arch.block_size, context_len=1)
        return map(make_disjoint_window, windows)

    def _scores(self, requests: Sequence[list[Window]]) -> list[tuple[float, bool]]:
        """For the windows of each request: their log-likelihood, and whether each token is the likeliest."""
        windows = [(number, window) for number, request in enumerate(requests) for window in request]
        windows.sort(key=lambda entry: -sum(map(len, entry[1])))  # those of one length pad the least
        scores = [(0.0, True)] * len(requests)
        for begin in range(0, len(windows), self._batch_size):
            numbers, batch = zip(*windows[begin : begin + self._batch_size], strict=True)
            for number, (score, is_greedy) in zip(numbers, self._score_batch(batch), strict=True):
                scores[number] = scores[number][0] + score, scores[number][1] and is_greedy
        return scores

    @torch.no_grad()
    def _score_batch(self, batch: Sequence[Window]) -> list[tuple[float, bool]]:
        tokens_BT = np.zeros((len(batch), sum(map(len, batch[0])) - 1), np.int64)  # what pads is after all that counts
        for row, (seen, scored) in zip(tokens_BT, batch, strict=True):
            row[: len(seen) + len(scored) - 1] = (seen + scored)[:-1]
        logits_BTV = self._model(torch.from_numpy(tokens_BT).to(self._device)).float()
        found = []
        for logits_TV, (seen, scored) in zip(logits_BTV, batch, strict=True):
            ends_TV = logits_TV[len(seen) - 1 : len(seen) + len(scored) - 1].log_softmax(-1)
            targets_T = torch.tensor(scored, device=self._device)
            score = ends_TV.gather(-1, targets_T[:, None]).double().sum()
            found.append((float(score), bool((ends_TV.argmax(-1) == targets_T).all())))
        return found


def evaluate(
    lm: HarnessLM,
    tasks: Sequence[str],
    task_path: Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """What `lm` reaches at `tasks`: names of lm_eval's, or of YAML files below the folder `task_path`.

    Returns, as JSON holds it: `lm_eval`, its version; `tasks`, by name with `version`, `documents` (how many) and
    `metrics`, by name with `value` and `stderr`, either None where it is not finite or not known. A task with several
    filters has its metrics as `metric.filter`. At most `limit` documents of a task count; None: all.

    Raises UserError for an unknown task, and for one whose data is not at hand.
    """
    found = _known(tasks, task_path)
    try:
        results = lm_eval.simple_evaluate(
            lm,
            tasks=list(tasks),
            num_fewshot=num_fewshot,
            limit=limit,
            task_manager=found,
            bootstrap_iters=_BOOTSTRAP,
            log_samples=False,
        )
    except (OSError, ValueError) as error:  # a hub that is not reached, a file that says what cannot be
        reason = short(f"{type(error).__name__}: {error}", 200)
        raise UserError(f"tasks ({','.join(tasks)}) cannot be evaluated: {reason}") from error
    counts = results["n-samples"]
    told = {
        name: {
            "version": results["versions"].get(name),
            "documents": counts.get(name, {}).get("effective"),
            "metrics": _metrics(values),
        }
        for name, values in results["results"].items()
    }
    return {"lm_eval": lm_eval.__version__, "tasks": told}


def _known(tasks: Sequence[str], task_path: Path | None) -> TaskManager:
    """What lm_eval knows of tasks. Its own, thousands of files, are only read where `task_path` does not have all."""
    path = str(task_path) if task_path else None
    known = TaskManager(include_path=path, include_defaults=False) if path else None
    if known is None or not set(tasks) <= set(known.all_tasks):
        known = TaskManager(include_path=path)
    for task in tasks:
        if task not in known.all_tasks:
            raise unknown_value("task", task, known.all_tasks)
    return known


def _metrics(values: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """lm_eval's results of one task, whose keys are `metric,filter` and `metric_stderr,filter`."""
    out = {}
    for key, value in values.items():
        metric, comma, chosen = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            name = metric if chosen == "none" else f"{metric}.{chosen}"
            out[name] = {"value": _number(value), "stderr": _number(values.get(f"{metric}_stderr,{chosen}"))}
    return out


def _number(value: object) -> float | None:
    """`value` if it is a finite number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
