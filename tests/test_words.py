import math

import pytest

from mimkit import words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (words.number(0.3956, "metric/patches/accuracy"), "39.6 %"),
        (words.number(0.0412, "metric/codes/majority"), "4.1 %"),
        (words.number(1.38629, "loss/patches"), "1.39"),
        (words.number(math.nan, "accuracy"), "\u2013"),
        (words.number(None, "loss"), "\u2013"),
        (words.spread(0.008, "accuracy"), "0.8"),
        (words.signed(0.0312, "accuracy"), "+3.1"),
        (words.signed(-0.006, "accuracy"), "\u22120.6"),
        (words.signed(-0.25, "loss"), "\u22120.25"),
        (words.fact("trained here", "weights"), "trained here"),
        (words.fact(8192, "codes"), "8,192"),
        (words.fact(312.44, "perplexity"), "312"),
        (words.fact(0.5, "token accuracy"), "50.0 %"),
        (words.share(0.05), "5 %"),
        (words.share(0.125), "12.5 %"),
        (words.magnitude(8_529_984), "8.53 M"),
        (words.magnitude(4.1e9, "FLOP"), "4.1 GFLOP"),
        (words.magnitude(0), "0"),
        (words.memory(2_411_724_800), "2.2 GiB"),
        (words.memory(300 * 2**20), "300 MiB"),
        (words.duration(0), "0 s"),
        (words.duration(0.4), "0.4 s"),
        (words.duration(0.0006), "under 0.1 s"),
        (words.duration(1312), "22 min"),
        (words.duration(1312, exact=True), "1,312 s"),
        (words.duration(7500), "2 h 05 min"),
        (words.duration(7500, exact=True), "2 h 05 min"),
        (words.duration(6 * 86400), "6 days"),
    ],
)
def test_numbers_are_worded(text, expected):
    assert text.replace("\u202f", " ") == expected
