from pathlib import Path

import pytest

from mimkit.report.cards import cards
from mimkit.report.findings import Cell, Outcome

CODES = {
    "title": "dVAE trained on these images",
    "seconds": 187.0,
    "cached": False,
    "facts": {"codes_used": 401, "perplexity": 312.44, "weights": "here"},
}
OTHER = {"title": "nothing much", "seconds": 0.01, "cached": True, "facts": {}}


def run(folder, prepared, seed=0):
    return Outcome(Cell("mine", seed), "finished", folder, "", ledger={"prepared": prepared})


def test_a_card_holds_cost_and_facts_in_words():
    first, second = cards([run(Path("r"), {"codes": CODES, "other": OTHER})])
    assert (first.targets, first.title) == (["codes"], "dVAE trained on these images")
    assert first.cost == "3\u202fmin"
    assert first.facts == (("codes used", "401"), ("perplexity", "312"), ("weights", "here"))
    assert second.cost == "under 0.1\u202fs, found in the cache"


def test_each_card_has_the_picture_of_its_target(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in ("predictions", "prepared_other", "prepared_stray"):
        (tmp_path / "pictures" / f"{name}.png").write_bytes(b"picture")
    first, second = cards([run(tmp_path, {"codes": CODES, "other": OTHER})])
    assert first.picture is None
    assert second.picture == tmp_path / "pictures" / "prepared_other.png"


def test_what_two_targets_or_runs_share_is_one_card_with_all_its_users():
    both = {"codes": CODES, "again": CODES}
    (card,) = cards([run(Path("a"), both), run(Path("b"), both, seed=1)])
    assert card.targets == ["codes", "again"]
    assert card.used_by == "mine (seeds 0, 1)"


@pytest.mark.parametrize("told", [[], [run(Path("r"), {})]])
def test_nothing_prepared_gives_no_cards(told):
    assert cards(told) == []
