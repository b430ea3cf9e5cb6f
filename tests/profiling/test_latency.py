import resource
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor

from diminuendo.errors import UserError
from diminuendo.profiling import latency
from diminuendo.profiling.count import count_macs_per_second, count_parameters, saved_bytes
from diminuendo.profiling.latency import REST, WHOLE, measure_interleaved, measure_latency, profile, time_modules
from tiny import tiny_model

CLIP = {"seconds": 0.1}


def test_latency_is_the_median_and_95th_percentile_of_the_runs_after_the_warm_up(monkeypatch):
    durations_ms = [900, 800, *range(1, 22)]
    readings = iter([reading for d in durations_ms for reading in (0.0, d / 1000)])
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(readings))
    measured = measure_latency(tiny_model(), seconds=0.1, threads=1, runs=21, warmup=2)
    assert (measured.p50_ms, measured.p95_ms) == pytest.approx((11, 20))
    assert measured.real_time_factor == pytest.approx(0.011 / 0.1)
    assert (measured.seconds, measured.threads, measured.runs) == (0.1, 1, 21)


def test_models_take_turns():
    models = {"a": tiny_model(), "b": tiny_model()}
    order = []
    for name, model in models.items():
        model.register_forward_hook(lambda *_, name=name: order.append(name))
    assert list(measure_interleaved(models, **CLIP, runs=2, warmup=1)) == ["a", "b"]
    assert order == ["a", "b"] * 3


def test_a_run_is_one_clip_in_inference_and_evaluation_mode_with_the_threads_asked_for():
    model = tiny_model().train()
    seen = []
    model.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(
            (kwargs["input_values"].shape, torch.is_inference_mode_enabled(), module.training, torch.get_num_threads())
        ),
        with_kwargs=True,
    )
    before = torch.get_num_threads()
    measure_latency(model, **CLIP, threads=before + 1, runs=1, warmup=0)
    assert seen == [((1, 1600), True, False, before + 1)]
    assert torch.get_num_threads() == before
    assert model.training


def test_threads_are_restored_after_an_error():
    model = tiny_model()
    model.register_forward_hook(lambda *_: 1 / 0)
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        measure_latency(model, **CLIP, threads=before + 1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("platform", "reported"), [("linux", 5_000), ("darwin", 5_000 * 1024)])
def test_peak_memory_is_in_megabytes_on_linux_and_macos(monkeypatch, platform, reported):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=reported))
    assert measure_latency(tiny_model(), **CLIP, runs=1, warmup=0).peak_memory_mb == 5.12


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"runs": 0}])
def test_no_threads_or_no_runs_are_refused(wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))}=0"):
        measure_latency(tiny_model(), **wrong)


def test_a_profile_has_every_cost_with_macs_for_10_seconds_whatever_is_timed():
    model = tiny_model()
    costs = profile(model, Wav2Vec2FeatureExtractor(), seconds=0.5, threads=1, runs=2)
    assert costs.keys() == {
        *("params", "macs_per_second", "bytes", "latency_ms", "features_ms"),
        *("real_time_factor", "peak_memory_mb", "threads", "seconds"),
    }
    assert costs["latency_ms"].keys() == {"p50", "p95"}
    assert costs["real_time_factor"] == pytest.approx(costs["latency_ms"]["p50"] / 1000 / 0.5)
    assert costs["params"] == count_parameters(model)
    assert costs["bytes"] == saved_bytes(model)
    assert costs["macs_per_second"] == count_macs_per_second(model, seconds=10)
    assert (costs["threads"], costs["seconds"]) == (1, 0.5)


def test_features_are_timed_by_what_makes_them(monkeypatch):
    heard = []
    monkeypatch.setattr(latency, "model_inputs", lambda extractor, *clip: heard.append((extractor, *clip)))
    clock = iter([0, 1e6, 0, 0, 0, 0, 0, 2, 0, 9, 0, 4])  # three that warm up, then 2, 9 and 4 seconds
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(clock))
    assert latency._features_ms("its extractor", 0.5, 1, 3) == 4000
    assert {extractor for extractor, *_ in heard} == {"its extractor"}
    assert all(clip.shape == (1, 8000) and lengths.tolist() == [8000] for _, clip, lengths in heard)


def test_the_parts_of_a_pass_add_up_to_it(monkeypatch):
    # A pass begins, its front end begins and ends, its encoder begins and ends, it ends; then again.
    readings = iter([0, 1, 3, 4, 9, 10, *range(6)])
    monkeypatch.setattr(latency.time, "thread_time", lambda: next(readings) / 1000)
    modules = ["feature_extractor", "encoder", "nosuch"]
    found = time_modules({"a": tiny_model()}, modules, **CLIP, threads=1, rounds=range(2))
    assert found["a"] == pytest.approx({"feature_extractor": 1.5, "encoder": 3, REST: 3, WHOLE: 7.5})


def test_a_model_that_was_timed_by_its_modules_has_no_hooks():
    model = tiny_model()
    time_modules({"a": model}, ["encoder"], **CLIP, threads=1, rounds=range(2))
    assert not model.encoder._forward_hooks
    assert not model.encoder._forward_pre_hooks
