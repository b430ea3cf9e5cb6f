"""The linear head of a probe, and the interval of its accuracy."""

import logging
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from diminuendo.evaluation.probes import HeadConfig
from diminuendo.evaluation.probes.probe import bootstrap_interval, train_head


def head_data(clips=600, layers=3, informative=1, noise=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(clips) % 4
    vectors = torch.randn(clips, layers, 8, generator=generator)
    vectors[:, informative] *= noise
    vectors[:, informative] += torch.eye(4, 8)[labels]
    return vectors, labels


def test_the_head_finds_the_layer_that_knows():
    head = train_head(head_data(seed=0), head_data(seed=1), 4, HeadConfig(), seed=0)
    vectors, labels = head_data(seed=2)
    assert head.layer_logits.argmax() == 1
    assert (head.predict(vectors) == labels).float().mean() > 0.8


def test_heads_trained_at_once_are_those_trained_one_by_one_and_the_best_on_dev_wins():
    train, dev = head_data(clips=60, noise=2), head_data(clips=400, noise=2, seed=1)
    rates = (1e-4, 1e-2, 1e-1)
    config = HeadConfig(learning_rates=rates, steps=60, clips_per_step=32, steps_per_check=10)
    alone = [train_head(train, dev, 4, replace(config, learning_rates=(rate,)), seed=5) for rate in rates]
    best = train_head(train, dev, 4, config, seed=5)
    same = alone[rates.index(best.learning_rate)]
    assert best.dev_accuracy == max(head.dev_accuracy for head in alone) == same.dev_accuracy
    assert_close(best.weight, same.weight)
    assert_close(best.layer_logits, same.layer_logits)


def test_of_heads_alike_on_dev_the_one_with_the_lower_dev_loss_wins():
    train, dev = (head_data(layers=1, informative=0, noise=0.05, seed=seed) for seed in (0, 1))
    best = train_head(train, dev, 4, HeadConfig(learning_rates=(1e-3, 1e-1), steps=100), seed=0)
    assert (best.dev_accuracy, best.learning_rate) == (1.0, 1e-1)


@pytest.mark.parametrize("rate", [1e-4, 1e-2])
def test_a_heads_first_step_is_as_long_as_its_learning_rate(rate):
    head = train_head(head_data(), head_data(seed=1), 4, HeadConfig(learning_rates=(rate,), steps=1), seed=0)
    assert head.weight.abs().max().item() == pytest.approx(rate, rel=1e-3)


def test_the_head_is_the_early_one_where_training_on_makes_it_worse():
    train, dev = head_data(clips=40, noise=2), head_data(clips=400, noise=2, seed=1)
    config = HeadConfig(learning_rates=(1e-1,), steps=400, steps_per_check=5)
    best = train_head(train, dev, 4, config, seed=0)
    last = train_head(train, dev, 4, replace(config, steps_per_check=400), seed=0)
    assert best.dev_accuracy > last.dev_accuracy
    assert (best.predict(dev[0]) == dev[1]).double().mean() == best.dev_accuracy


def test_the_interval_over_independent_clips_is_the_binomial_one():
    correct = torch.arange(1000) % 5 > 0
    low, high = bootstrap_interval(correct, [str(i) for i in range(1000)], seed=0)
    half = 1.96 * (0.8 * 0.2 / 1000) ** 0.5
    assert (low, high) == pytest.approx((0.8 - half, 0.8 + half), abs=2e-3)


def test_the_interval_over_speakers_who_are_right_or_wrong_as_a_whole_is_that_of_speakers():
    correct = torch.arange(50).repeat_interleave(20) % 5 > 0
    low, high = bootstrap_interval(correct, [str(i // 20) for i in range(1000)], seed=0)
    half = 1.96 * (0.8 * 0.2 / 50) ** 0.5
    assert (low, high) == pytest.approx((0.8 - half, 0.8 + half), abs=2e-2)


def test_the_interval_over_few_speakers_is_as_wide_as_students():
    of_speakers = torch.tensor([0.1, 0.35, 0.45, 0.55, 0.65, 0.9])
    low, high = bootstrap_interval(of_speakers.repeat_interleave(20), [str(i // 20) for i in range(120)], seed=0)
    half = 2.571 * of_speakers.std().item() / 6**0.5  # 97.5 % of Student's distribution with 5 degrees of freedom
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.05 * half)


def test_fewer_than_five_speakers_give_an_interval_over_clips_and_say_so(caplog):
    correct = torch.arange(100) % 5 > 0
    over_clips = bootstrap_interval(correct, [str(i) for i in range(100)], seed=0)
    with caplog.at_level(logging.WARNING):
        assert bootstrap_interval(correct, [str(i % 4) for i in range(100)], seed=0) == over_clips
    assert "only 4 groups" in caplog.text
