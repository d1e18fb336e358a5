import pytest

from raytrain.sweep.budget import Budget
from raytrain.sweep.planning import plan


def test_tokens_per_parameter_of_a_published_model():
    """Catches parameters counted without the embedding, a tied head twice, and tokens of another batch: GPT-2 has
    124,439,808 parameters (Hugging Face's count at V = 50,257)."""
    planned = plan({"bias": [True]}, base="openai_gpt2", scale="124m", vocab_size=50257, flops=2e18)
    budget = planned.budget
    assert isinstance(budget, Budget)
    assert budget.parameters == 124_439_808
    assert budget.tokens == pytest.approx(2e18 / budget.flops_per_token, rel=1e-3)
    assert budget.tokens_per_parameter == pytest.approx(budget.tokens / 124_439_808)
    assert budget.steps == -(-budget.tokens // 524288)


def test_a_short_budget_is_warned_of_with_one_that_would_do():
    """Catches a study of models that have not left the plateau, which nothing said before; and a figure for --flops
    that is not 20 tokens a parameter."""
    few = plan({"ffn_type": ["standard", "swiglu"]}, base="llama", scale="small", vocab_size=256, flops=2.5e14)
    text = str(few)
    assert few.budget is not None
    assert few.budget.tokens_per_parameter < 1
    assert "warning     below 5 tokens per parameter" in text
    flops = few.budget.optimal_flops
    assert f"--flops {flops:.2g} here" in text
    enough = plan({"ffn_type": ["standard", "swiglu"]}, base="llama", scale="small", vocab_size=256, flops=flops)
    assert enough.budget is not None
    assert enough.budget.tokens_per_parameter == pytest.approx(20, rel=1e-3)
    assert "models still leave the plateau" not in str(enough)
    assert enough.to_dict()["training"]["steps"] == enough.budget.steps


def test_data_seen_too_often_is_warned_of():
    """Catches what a ladder on a GPU showed: five passes over a small corpus, whose larger models overfit and looked
    worse for it, while the plan that recommended so many tokens said nothing."""
    axes = {"ffn_type": ["standard", "swiglu"]}
    often = plan(axes, base="llama", scale="small", tokens_per_parameter=20)
    assert often.budget is not None
    assert often.budget.passes == pytest.approx(often.budget.tokens / often.budget.data_tokens)
    assert f"warning     {often.budget.passes:.3g} passes over the {often.budget.data_tokens:,} tokens" in str(often)
    ladder = plan(axes, base="llama", ladder=("tiny", "small"), tokens_per_parameter=20)
    assert str(ladder).count("passes over the") == 1  # that of small alone
    once = plan(axes, base="llama", scale="tiny", tokens_per_parameter=20)
    assert "passes over" not in str(once)
