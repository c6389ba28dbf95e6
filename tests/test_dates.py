"""Dates beyond their appendix: all locales, splits, the tokeniser, bad input, no Babel."""

import re
import subprocess
import sys
from datetime import date

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlnotes.datasets import dates
from dlnotes.datasets.dates import (
    FIRST_DAY,
    LAST_DAY,
    LOCALES,
    UNSEEN_LOCALES,
    CharTokenizer,
    DatePairs,
    as_examples,
    date_pairs,
    date_splits,
)


def numbers(text):
    return {int(digits) % 100 for digits in re.findall(r"\d+", text)}


# ---- pairs


@pytest.mark.parametrize("code", LOCALES + UNSEEN_LOCALES)
def test_each_locale_says_what_the_target_says(code):
    pairs = date_pairs(60, [code], rng=0)
    assert set(pairs.locales) == {code}
    for text, iso in zip(pairs.texts, pairs.targets):
        day = date.fromisoformat(iso)
        assert {day.day, day.year % 100} <= numbers(text)


@pytest.mark.parametrize("code", LOCALES)
def test_the_locale_is_told_where_the_month_is_a_number(code):
    texts = date_pairs(80, [code], rng=1).texts
    assert any(text.startswith(f"{code} ") for text in texts)
    named = date_pairs(80, [code], named=True, rng=1).texts
    assert not any(text.startswith(f"{code} ") for text in named)
    assert all(re.search(r"[^\W\d_]", text) for text in named)


def test_there_are_many_scripts_and_both_kinds_of_digits():
    letters = set("".join(date_pairs(3000, rng=0).texts))
    for one in "aяλאمहআதไၚ年월აա":
        block = ord(one) >> 7
        assert any(ord(c) >> 7 == block for c in letters), one
    assert letters >= set("0123456789") and letters >= set("٠١٢٣٤٥٦٧٨٩") | set("๐๑๒๓๔๕๖๗๘๙")


def test_lists_of_dates():
    pairs = date_pairs(200, ["en"], per_text=3, named=True, rng=0)
    counts = [len(iso.split()) for iso in pairs.targets]
    assert set(counts) == {1, 2, 3}
    for text, iso, count in zip(pairs.texts, pairs.targets, counts):
        assert (" and " in text) == (count > 1)
        assert {date.fromisoformat(d).day for d in iso.split()} <= numbers(text)
    chinese = date_pairs(50, ["zh"], per_text=3, rng=0).texts
    assert all(text.count("zh ") <= 1 for text in chinese)  # told once


def test_days_are_those_given_and_seeds_give_the_same():
    days = np.array([FIRST_DAY, FIRST_DAY + 31, LAST_DAY])
    pairs = date_pairs(50, days=days, rng=3)
    assert set(pairs.targets) == {"1950-01-01", "1950-02-01", "2049-12-31"}
    assert pairs == date_pairs(50, days=days, rng=np.random.default_rng(3))
    assert pairs != date_pairs(50, days=days, rng=4)


@pytest.mark.parametrize("per_text", [1, 3])
def test_splits_share_no_day(per_text):
    splits = date_splits(2000, 300, per_text=per_text, seed=5)
    days = [{day for iso in part.targets for day in iso.split()} for part in splits]
    assert not days[0] & days[1] and not days[0] & days[2] and not days[1] & days[2]
    assert not days[0] & days[3] and not days[1] & days[3]
    assert [len(part.texts) for part in splits] == [2000, 300, 300, 300]
    assert set(splits.unseen.locales) == set(UNSEEN_LOCALES)
    assert not set(splits.unseen.locales) & set(splits.train.locales)
    assert splits == date_splits(2000, 300, per_text=per_text, seed=5)
    assert splits.train != date_splits(2000, 300, per_text=per_text, seed=6).train


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n": 0}, ValueError, "n: expected 1 or more"),
        ({"n": 2.0}, TypeError, "n: expected a whole number"),
        ({"locales": []}, ValueError, "locales: expected at least one"),
        ({"locales": ["xx"]}, ValueError, "locales: expected codes such as 'en', got 'xx'"),
        ({"locales": [""]}, ValueError, "locales: expected codes such as 'en', got ''"),
        ({"days": []}, ValueError, "days: expected ordinals"),
        ({"days": [0.5]}, ValueError, "days: expected ordinals, got float64"),
        ({"days": [[FIRST_DAY]]}, ValueError, "days: expected ordinals"),
        ({"days": [FIRST_DAY - 1]}, ValueError, r"days: expected \d+ to \d+ \(1950 to 2049\)"),
        ({"days": [LAST_DAY + 1]}, ValueError, "days: expected"),
        ({"per_text": 0}, ValueError, "per_text: expected 1 or more"),
    ],
)
def test_bad_settings(options, error, message):
    with pytest.raises(error, match=message):
        date_pairs(**({"n": 3} | options))


def test_without_babel(monkeypatch):
    monkeypatch.setitem(sys.modules, "babel", None)
    dates._locale.cache_clear()
    with pytest.raises(ImportError, match=r"needs Babel: pip install 'dlnotes\[data\]'"):
        date_pairs(1)
    assert CharTokenizer(["a"]).decode([[4]]) == ["a"]


def test_babel_is_imported_only_when_it_is_needed():
    code = "import sys, dlnotes.datasets.dates; sys.exit('babel' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- tokens


@given(texts=st.lists(st.text(max_size=12), min_size=1, max_size=6), start=st.booleans())
def test_what_is_encoded_is_decoded(texts, start):
    tokenizer = CharTokenizer(texts)
    ids, mask = tokenizer.encode(texts, start=start)
    assert ids.dtype == np.int64 and mask.dtype == bool and ids.shape == mask.shape
    assert tokenizer.decode(ids) == texts
    assert mask.sum(axis=1).tolist() == [len(text) + 1 + start for text in texts]
    assert (ids[~mask] == tokenizer.PAD).all() and (ids[mask] != tokenizer.PAD).all()
    assert not start or (ids[:, 0] == tokenizer.START).all()
    assert len(tokenizer) == 4 + len(set("".join(texts)))
    assert (np.diff(mask.astype(int), axis=1) <= 0).all()  # real ones first


@given(known=st.text(min_size=1, max_size=5), text=st.text(max_size=10))
def test_characters_that_were_not_seen_are_unknown(known, text):
    tokenizer = CharTokenizer([known])
    (row,), _ = tokenizer.encode([text])
    for c, i in zip(text, row):
        assert (i == tokenizer.UNKNOWN) == (c not in known)
    assert tokenizer.decode([row]) == ["".join(c if c in known else "\ufffd" for c in text)]


def test_the_order_of_the_vocabulary_is_that_of_the_characters():
    assert CharTokenizer(["ba", "cab"]).characters == CharTokenizer(["abc"]).characters == "abc"
    assert CharTokenizer([CharTokenizer(["ba", "cab"]).characters]).characters == "abc"
    assert CharTokenizer([""]).encode([""])[0].tolist() == [[2]]
    assert repr(CharTokenizer(["ab"])) == "CharTokenizer(6 tokens)"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[7]], "ids: expected 0 to 6, got 7 to 7"),
        ([[-1, 4]], "ids: expected 0 to 6, got -1 to 4"),
        ([4], "ids: expected whole numbers"),
        ([[4.0]], "ids: expected whole numbers .* float64"),
        ([[4], [4, 5]], "ids: expected an array, got rows of unequal length"),
    ],
)
def test_ids_that_are_no_tokens(ids, message):
    with pytest.raises(ValueError, match=message):
        CharTokenizer(["abc"]).decode(ids)


def test_texts_that_are_none():
    with pytest.raises(ValueError, match="texts: expected at least one"):
        CharTokenizer([])
    with pytest.raises(TypeError, match="texts: expected a list of strings"):
        CharTokenizer("abc")
    with pytest.raises(TypeError, match="texts: expected a list of strings"):
        CharTokenizer(["abc"]).encode([b"abc"])
    for wrong in (5, None):
        with pytest.raises(TypeError, match=f"texts: expected a list of strings, got {wrong}"):
            CharTokenizer(wrong)
        with pytest.raises(TypeError, match=f"texts: expected a list of strings, got {wrong}"):
            CharTokenizer(["abc"]).encode(wrong)
    with pytest.raises(ValueError, match="texts: expected at least one"):
        CharTokenizer(["abc"]).encode([])
    assert CharTokenizer(["abc"]).decode(np.zeros((0, 3), int)) == []


def test_examples_are_shifted_by_one():
    pairs = DatePairs(["9 Mar 1987", "x"], ["1987-03-09", "1987"], ["en", "en"])
    source, target = CharTokenizer(pairs.texts), CharTokenizer(pairs.targets)
    (src, tgt_in, mask), tgt_out = as_examples(pairs, source, target)
    assert source.decode(src) == pairs.texts and mask.sum(axis=1).tolist() == [11, 2]
    assert target.decode(tgt_out) == pairs.targets
    assert (tgt_in[:, 0] == 1).all() and (tgt_in[:, 1:] == tgt_out[:, :-1]).all()
    assert tgt_out[1].tolist()[4:] == [2] + [0] * 6
    with pytest.raises(TypeError, match="pairs: expected a DatePairs"):
        as_examples((["a"], ["b"]), source, target)
    with pytest.raises(TypeError, match="target: expected a CharTokenizer"):
        as_examples(pairs, source, None)
