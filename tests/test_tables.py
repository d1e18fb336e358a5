from raytrain.tables import facts, told


def test_sentences_hang_under_their_own_first_word() -> None:
    """Would catch a second line that begins where the next sentence does, and a path that is cut in two."""
    path = "/a/" + "long-" * 12 + "path"
    text = told(["The finding first.", "Then a sentence that does not fit.", f"See {path} for it."], 24)
    assert text.splitlines() == [
        "The finding first.",
        "  - Then a sentence that",
        "    does not fit.",
        "  - See",
        f"    {path}",
        "    for it.",
    ]


def test_facts_stay_in_their_column() -> None:
    """Would catch a long line of a plan that goes on below its word, and a short one whose spaces are lost."""
    assert facts("space       a\nfixed       one, two and three", 24).splitlines() == [
        "space       a",
        "fixed       one, two and",
        "            three",
    ]
