from mimkit.report.cards import cards
from mimkit.report.embed import Shown

PREPARED = {
    "codes": {
        "title": "dVAE trained on these images",
        "seconds": 187.0,
        "cached": False,
        "facts": {"codes_used": 401, "perplexity": 312.44, "weights": "here"},
    },
    "other": {"title": "nothing much", "seconds": 0.01, "cached": True, "facts": {}},
}


def shown(name):
    return Shown(name, "data:,", 10, "")


def test_a_card_holds_cost_and_facts_in_words():
    first, second = cards({"prepared": PREPARED}, [])
    assert (first.target, first.title) == ("codes", "dVAE trained on these images")
    assert first.cost == "3\u202fmin"
    assert first.facts == (("codes used", "401"), ("perplexity", "312"), ("weights", "here"))
    assert second.cost == "under 0.1\u202fs, found in the cache"


def test_each_card_has_the_picture_of_its_target():
    pictures = [shown("predictions"), shown("prepared_other"), shown("prepared_stray")]
    first, second = cards({"prepared": PREPARED}, pictures)
    assert first.picture is None
    assert second.picture == shown("prepared_other")


def test_nothing_prepared_gives_no_cards():
    assert cards({}, [shown("prepared_codes")]) == []
