"""From a text to token ids, and a validation part whose neighbours are not in training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qrkt_hw.data import load_data
from qrkt_hw.data.base import held_out
from qrkt_hw.data.text import encode, vocabulary_of, with_pairs
from qrkt_hw.errors import UserError
from qrkt_hw.runs.config import Config
from tests.data import writing

TEXT = "not good, not good at all"


def test_a_pair_stands_behind_its_second_word():
    assert with_pairs(["a", "b", "c"]) == ["a", "b", "a b", "c", "b c"]
    assert with_pairs(["a"]) == ["a"] and with_pairs([]) == []


def test_pairs_compete_with_words_for_the_vocabulary():
    # "good" and "not" come twice, and so does their pair; all else comes once
    assert vocabulary_of([TEXT], 5, pairs=True)[2:] == ("good", "not", "not good")
    assert "not good" not in vocabulary_of([TEXT], 100)


def test_words_are_read_in_order_pairs_only_where_they_are_known():
    vocabulary = ("<pad>", "<unk>", "not", "good", "not good")
    assert encode([TEXT], vocabulary, 8).tolist() == [[2, 3, 1, 2, 3, 1, 1, 0]]
    # "good ,", ", not" and the like are no tokens: an unknown pair says nothing that its words do not
    assert encode([TEXT], vocabulary, 10, pairs=True).tolist() == [[2, 3, 4, 1, 2, 3, 4, 1, 1, 0]]


def test_each_id_once_counts_towards_the_length_once():
    vocabulary = ("<pad>", "<unk>", "not", "good", "not good", "all")
    assert encode([TEXT], vocabulary, 6, unique=True, pairs=True).tolist() == [[2, 3, 4, 1, 5, 0]]
    assert encode([TEXT], vocabulary, 2, unique=True).tolist() == [[2, 3]]
    assert encode([""], vocabulary, 2, unique=True, pairs=True).tolist() == [[1, 0]]


@pytest.mark.parametrize("count", [4, 199, 1000, 25_000])
def test_validation_by_runs_is_a_tenth_of_each_class_and_leaves_nothing_out(count):
    labels = np.repeat([1, 0], [count // 2, count - count // 2])
    train, validation = held_out(labels, None, run=250)
    assert sorted([*train, *validation]) == list(range(count))
    share = [np.mean(labels[validation] == k) for k in (0, 1)]
    if count >= 100:
        assert len(validation) == pytest.approx(count / 10, rel=0.15) and min(share) > 0.4
    again = held_out(labels, None, run=250)
    assert all(np.array_equal(a, b) for a, b in zip((train, validation), again, strict=True))


@pytest.mark.parametrize(("many", "few"), [(24_800, 200), (950, 50)])
def test_a_rare_class_has_its_share_of_validation(many, few):
    labels = np.repeat([0, 1], [many, few])
    _, validation = held_out(labels, None, run=250)
    assert labels[validation].sum() == pytest.approx(few / 10, abs=2)
    assert len(validation) == pytest.approx(len(labels) / 10, rel=0.1)


def test_few_reviews_in_training_have_a_neighbour_in_validation():
    labels = np.repeat([0, 1], 12_500)
    for run, most in ((250, 0.01), (1, 1.0)):
        train, validation = held_out(labels, None, run)
        neighbours = np.isin(train, np.concatenate([validation - 1, validation + 1])).mean()
        assert neighbours <= most
    assert neighbours > 0.1  # what a split at random does


def test_a_limit_takes_from_training_only():
    labels = np.repeat([0, 1], 1000)
    whole, validation = held_out(labels, None, run=20)
    train, same = held_out(labels, 100, run=20)
    assert np.array_equal(validation, same) and len(train) == 100 and set(train) < set(whole)


def test_a_trained_vocabulary_is_kept_where_the_reviews_have_changed(tmp_path):
    options = Config(dataset="imdb", data_dir=writing.imdb(tmp_path / "a"), text_length=16, vocabulary=30).data
    trained = load_data(options)
    other = options.model_copy(update={"data_dir": writing.imdb(tmp_path / "b", train=60)})
    assert load_data(other).vocabulary != trained.vocabulary
    kept = load_data(other, trained.vocabulary)
    assert kept.vocabulary == trained.vocabulary
    every = list(range(20))
    assert torch.equal(kept.splits["test"][every][0], trained.splits["test"][every][0])


@pytest.mark.parametrize("flag", ["unique_words", "word_pairs"])
def test_images_have_no_words(flag):
    with pytest.raises(UserError, match=flag):
        load_data(Config(**{flag: True}).data)


def test_a_run_reads_texts_as_its_options_say(tmp_path):
    reading = {"unique_words": True, "word_pairs": True}
    data = load_data(Config(dataset="imdb", data_dir=writing.imdb(tmp_path), text_length=32, **reading).data)
    assert "wonderful film" in data.vocabulary
    ids, _ = data.splits["test"][list(range(20))]
    for row in ids:
        words = row[row != 0]
        assert len(torch.unique(words)) == len(words)
