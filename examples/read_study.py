"""Load a study, look at its tables, and draw its effects: `python examples/read_study.py STUDY`, cell by cell."""

# %% Load: the name of a study in runs/, or its folder.
import sys

import raytrain

study = raytrain.load(sys.argv[1])
print(study)

# %% Every trial is a row of a pandas DataFrame, with its axes, its recipe and its metrics as columns.
trials = study.trials
print(trials[["short_name", "seed", "status", "val_loss"]])
print(trials.groupby("normalization")["val_loss"].agg(["mean", "std", "count"]))

# %% The same by variant, with the seeds together, and a rank that is shared within the noise.
print(study.ranking()[["rank", "label", "val_loss", "outcomes"]])

# %% What each choice brings, with its 95% interval. In a notebook the last line of a cell would show the picture.
effects = study.effects()
print(effects[["effect", "estimate", "low", "high", "p_holm"]])
print(study.plot_effects().save("effects"))

# %% The answer in words.
print(*study.answer().sentences, sep="\n")
