import pytest

from raytrain.config.resolve import resolve
from raytrain.errors import UserError
from raytrain.sweep.space import expand, load_space


def resolve_point(values):
    return resolve([("space", values)], data_vocab_size=256)[0]


@pytest.fixture
def space_file(tmp_path):
    def write(text):
        (tmp_path / "mine.yaml").write_text(text)
        return str(tmp_path / "mine.yaml")

    return write


def test_the_full_space():
    """Would catch: points lost or trained twice. 3x4x3x2x2x2x2 variants are standard, 3x3x2x2x2x2 swiglu."""
    found = expand(load_space("full"), resolve_point)
    assert (found.points, found.programs, len(found.candidates)) == (2304, 1440, 576 + 144)
    assert len({candidate.config.architecture.hash for candidate in found.candidates}) == 720
    assert {len(candidate.labels) for candidate in found.candidates} == {1}
    assert len({candidate.labels for candidate in found.candidates}) == 720
    assert found.candidates[0].labels == ("gpt2",)


def test_labels_say_what_differs_from_the_base():
    """Would catch: a label that names a dead activation, or that leaves out what was changed."""
    for base in ("gpt2", "openai_gpt2"):  # the second one's activation is not a level of the space
        for candidate in expand(load_space("full", base), resolve_point).candidates:
            label, arch = candidate.labels[0], candidate.config.architecture
            changes = {} if label == base else dict(part.split("=") for part in label.split())
            told = resolve_point({"preset": base} | changes).architecture
            assert told.hash == arch.hash, label
            assert not {"activation", "ffn_type"} <= changes.keys() or changes["ffn_type"] == "standard", label


def test_presets_share_a_trial():
    """Would catch: llama and team trained twice, or one of their names lost."""
    found = expand(load_space("presets"), resolve_point)
    assert [candidate.labels for candidate in found.candidates] == [
        ("gpt2",),
        ("llama", "team"),
        ("hybrid",),
        ("openai_gpt2",),
    ]
    assert (found.points, found.programs) == (5, 4)


@pytest.mark.parametrize(
    ("base", "counts"), [(None, (14, 14, 13)), ("llama", (14, 11, 10)), ("openai_gpt2", (15, 15, 14))]
)
def test_one_factor_at_a_time(base, counts):
    """Would catch: the base run several times, or two axes changed at once.

    23 levels of nine axes are 1 + 23 - 9 points; under swiglu three activations are the base, and openai_gpt2's
    activation is outside of the levels.
    """
    found = expand(load_space("one_factor", base), resolve_point)
    assert (found.points, found.programs, len(found.candidates)) == counts
    start = resolve_point({"preset": base or "gpt2"}).architecture.canonical().to_dict()
    for candidate in found.candidates:
        arch = candidate.config.architecture.canonical().to_dict()
        changed = {axis for axis in start if arch[axis] != start[axis]} - {"d_ff"}
        assert len(changed - {"activation"} if "ffn_type" in changed else changed) <= 1
    assert found.candidates[0].labels == (base or "gpt2",)


def test_backends_are_kept_for_a_study_of_speed():
    """Would catch: the manual backend dropped where it is what is measured."""
    found = expand(load_space("full"), resolve_point, keep_backends=True)
    assert len(found.candidates) == 1440
    assert sum(candidate.config.architecture.attention_backend == "manual" for candidate in found.candidates) == 720


def test_a_backend_that_was_asked_for_is_used(space_file):
    """Would catch: a candidate put in canonical form, which says sdpa, where every spelling says manual."""
    space = load_space(space_file("axes: {attention_backend: [manual], bias: [true, false]}"))
    backends = [
        candidate.config.architecture.attention_backend for candidate in expand(space, resolve_point).candidates
    ]
    assert backends == ["manual", "manual"]


def test_hyper_parameters_keep_runs_apart(space_file):
    """Would catch: two runs of one architecture that differ in another field taken for one."""
    text = "presets: [llama, team]\naxes: {learning_rate: [1e-3, 3e-3], n_embd: [96, 192]}"
    found = expand(load_space(space_file(text)), resolve_point)
    assert [(c.config.learning_rate, c.config.architecture.n_embd) for c in found.candidates] == [
        (1e-3, 96),
        (1e-3, 192),
        (3e-3, 96),
        (3e-3, 192),
    ]
    assert found.candidates[0].labels == ("llama learning_rate=0.001 n_embd=96", "team learning_rate=0.001 n_embd=96")


def test_a_spelt_out_default_is_no_new_point(space_file):
    """Would catch: n_kv_head of n_head, or d_ff at its usual width, trained beside the run that leaves them out."""
    text = "vary: one_at_a_time\naxes: {n_kv_head: [3, 1], d_ff: [384], n_embd: [96]}"
    found = expand(load_space(space_file(text)), resolve_point)
    assert [candidate.labels for candidate in found.candidates] == [("gpt2",), ("n_kv_head=1",)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("axes: {normalisation: [rmsnorm]}", "Unknown axis in space .*: 'normalisation'.* Did you mean normalization?"),
        (
            "axes: {normalization: [rmsnrm]}",
            "Axis normalization .*: Unknown norm type: 'rmsnrm'.* Did you mean rmsnorm?",
        ),
        ("axes: {dropout: [0.1, 1.5]}", r"Axis dropout .*: dropout \(1.5\) must be a number from 0.0 to 1.0"),
        ("axes: {n_layer: [two]}", r"Axis n_layer .*: n_layer \('two'\) must be a whole number"),
        ("axes: {bias: [true, True]}", "Axis bias in space .* has the level True twice"),
        ("axes: {dropout: [0, 0.0]}", "Axis dropout in space .* has the level 0.0 twice"),
        ("axes: {bias: true}", "axis bias in space .* must be a list of levels or a range, not True"),
        ("axes: {bias: []}", "Space .* is empty: axis bias has no levels"),
        ("presets: []", "Space .* is empty: axis preset has no levels"),
        ("presets: [gpt]", "Axis preset .*: Unknown preset: 'gpt'.* Did you mean gpt2?"),
        ("axes: [bias]", "axes in space .* must be a mapping"),
        ("", "Space .* is empty: it needs axes or presets"),
        ("base: llama", "Space .* is empty: it needs axes or presets"),
        ("base: lama\naxes: {bias: [true]}", "Unknown base: 'lama'.* Did you mean llama?"),
        ("axis: {bias: [true]}", "Unknown key in space .*: 'axis'.* Did you mean axes?"),
        ("vary: one\naxes: {bias: [true]}", "Unknown vary in space .*: 'one'. Available: all, one_at_a_time"),
        ("- bias", "must be a mapping with axes or presets, not a list"),
        ("axes: {bias: [true", "is not YAML"),
        (
            f"axes: {{n_embd: [{', '.join(map(str, range(1001)))}]}}",
            "axis n_embd in space .* has 1,001 levels, and may have 1,000",
        ),
        ("axes: {learning_rate: {low: 1e-4, high: 1e-2, count: .inf}}", "range has the numbers low, high and count"),
        ("axes: {learning_rate: {low: 1e-4, high: 1e-2, count: 2.5}}", "range has the numbers low, high and count"),
        ("axes: {learning_rate: {low: 1e-4, high: 1e-2, count: 1000000}}", "a count of 2 to 1,000"),
        ("axes: {bias: {[1]: 2}}", "is not YAML: line 1"),
        ("axes: {bias: [[true]]}", r"Axis bias .*: bias \(\[True\]\) must be True or False"),
    ],
)
def test_mistakes(space_file, text, message):
    """Would catch: a traceback, a line that does not name the axis, or a space with a mistake taken as it is."""
    with pytest.raises(UserError, match=message) as caught:
        load_space(space_file(text))
    assert "\n" not in str(caught.value)


def test_a_space_of_more_points_than_can_be_planned(space_file):
    """Would catch: 10^6 points that are all resolved, for minutes, before `--max_trials 5` takes five of them."""
    axes = (f"{name}: {{low: 0.01, high: 0.1, count: 100}}" for name in ("learning_rate", "weight_decay", "beta1"))
    space = load_space(space_file(f"axes: {{{', '.join(axes)}}}"))
    with pytest.raises(UserError, match="Space mine has 1,000,000 points, and may have 30,000"):
        space.points()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "axes: {n_head: [3, 5]}",
            r"Space mine, n_head=5: n_embd \(96\) must be divisible by n_head \(5\); try 4 or 6",
        ),
        ("axes: {schedule: [cosin]}", "Space mine, schedule=cosin: Unknown schedule: 'cosin'.* Did you mean cosine?"),
        ("base: custom\naxes: {bias: [true]}", "Space mine, bias=True: An architecture needs all nine axes"),
    ],
)
def test_a_combination_that_cannot_be(space_file, text, message):
    """Would catch: an invalid combination that is skipped in silence, or not named."""
    with pytest.raises(UserError, match=message):
        expand(load_space(space_file(text)), resolve_point)


def test_no_such_space(tmp_path):
    """Would catch: a traceback for a mistyped name, or a message without the names that there are."""
    with pytest.raises(
        UserError, match=r"Available: full, modern, one_factor, presets, quickstart. Did you mean full\?"
    ):
        load_space("ful")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_space(str(tmp_path / "none.yaml"))


def test_a_conditional_axis_collapses_where_it_is_dead(space_file):
    """Would catch: one variant trained again for each level of an axis that does not count, a chain of conditions that
    is judged by a dead axis, and a label that names one."""
    text = """
    base: llama
    when:
      n_kv_head: {d_ff: 128}          # itself conditional
      d_ff: {ffn_type: standard}
    axes: {ffn_type: [standard, swiglu], d_ff: [128, 256], n_kv_head: [1, 3], n_head: [3]}
    """
    space = load_space(space_file(text))
    found = expand(space, resolve_point)
    assert (found.points, len(found.candidates)) == (8, 1 + 1 + 2)
    assert {candidate.labels[0].removesuffix(" n_head=3") for candidate in found.candidates} == {
        "n_head=3",
        "ffn_type=standard d_ff=256",
        "ffn_type=standard d_ff=128 n_kv_head=1",
        "ffn_type=standard d_ff=128 n_kv_head=3",
    }
    assert space.dead({"ffn_type": "swiglu", "d_ff": 128}) == {"d_ff", "n_kv_head"}


def test_a_range_of_levels(space_file):
    """Would catch: levels that are evenly spaced where learning rates want equal factors, or that differ in their last
    digits between machines."""
    space = load_space(space_file("axes: {learning_rate: {low: 1e-4, high: 1e-2, count: 5}}"))
    assert space.levels["learning_rate"] == (0.0001, 0.000316228, 0.001, 0.00316228, 0.01)


def test_placement(space_file):
    """Would catch: a large trial on the ranks of a small one, and a later rule that beats an earlier one."""
    text = """
    axes: {n_layer: [2, 24, 48], bias: [true, false]}
    placement:
      - {when: {n_layer: 48, bias: true}, workers: 8}
      - {when: {n_layer: [24, 48]}, workers: 2}
    """
    space = load_space(space_file(text))
    cases = [({"n_layer": 48, "bias": True}, 8), ({"n_layer": 48, "bias": False}, 2), ({"n_layer": 2}, None)]
    assert [space.workers(values) for values, _ in cases] == [ranks for _, ranks in cases]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("when: {bias: {biass: true}}", "Unknown axis in when of bias .*: 'biass'. Available: bias, n_layer"),
        ("when: {d_ff: {bias: true}}", "Unknown axis in when of space .*: 'd_ff'"),
        ("when: {bias: {n_layer: 3}}", "Unknown level of n_layer in when of bias .*: 3. Available: 2, 4"),
        ("when: {bias: {n_layer: 2}, n_layer: {bias: true}}", "when in space .* goes in a circle: "),
        ("when: [bias]", "must be a mapping of axis to condition"),
        ("placement: [{when: {bias: true}, workers: 0}]", r"workers \(0\) must be a whole number, 1 or more"),
        ("placement: [{workers: 2}]", "must have when and workers"),
    ],
)
def test_conditions_that_cannot_be(space_file, text, message):
    """Would catch: a misspelt condition that silently holds nowhere."""
    with pytest.raises(UserError, match=message):
        load_space(space_file(f"axes: {{bias: [true, false], n_layer: [2, 4]}}\n{text}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{low: 1e-4, high: 1e-2}", "a range has the numbers low, high and count"),
        ("{low: 1e-2, high: 1e-4, count: 3}", "with 0 < low < high"),
        ("{low: 1e-4, hihg: 1e-2, count: 3}", "Unknown key of axis learning_rate .* Did you mean high?"),
    ],
)
def test_ranges_that_cannot_be(space_file, text, message):
    """Would catch: a range that is empty, or has one level."""
    with pytest.raises(UserError, match=message):
        load_space(space_file(f"axes: {{learning_rate: {text}}}"))
