"""A sweep in ten lines of Python: does RMSNorm pay for its compute? `python examples/sweep.py`, on any machine."""

import raytrain

plan = raytrain.plan(
    {"normalization": ["layernorm_nobias", "rmsnorm"]}, base="gpt2", seeds=2, flops=4e10, eval_tokens=8192
)
print(plan)
study = raytrain.run(plan)
print(study.ranking()[["rank", "label", "losses", "val_loss", "tokens_per_second"]])
print(*study.answer().sentences, sep="\n")
