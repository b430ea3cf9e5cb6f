"""Every family can be compressed, end to end, and keeps its head."""

from pathlib import Path

import pytest
import torch

import diminuendo
from diminuendo.errors import Interrupted
from diminuendo.export.huggingface import save
from diminuendo.families import family_of
from tiny import VARIANTS, compress, extractor_of, interrupt, tiny_model, weights

RECOGNISERS = ("rnnt", "tdt")


@pytest.mark.parametrize(("family", "style"), [variant for variant in VARIANTS if variant[1] != "encoder"])
def test_a_recogniser_of_every_family_is_compressed_exactly_and_loads(
    family: str, style: str, audio_folder: Path, tmp_path: Path
) -> None:
    teacher = tiny_model(family, style, ctc=style not in RECOGNISERS)
    save(teacher, extractor_of(teacher), tmp_path / "teacher")
    precision = "bf16" if style in ("base", "stacked") else "fp32"
    result = compress(tmp_path / "teacher", audio_folder, tmp_path / "small", keep="params=0.6", precision=precision)
    assert float(str(result["removal_error"])) < 1e-4
    assert 0.55 < result["params"]["kept"] <= 0.6  # type: ignore[index]
    small = diminuendo.load(tmp_path / "small")
    architecture, before = family_of(small).architecture_of(small), family_of(teacher).architecture_of(teacher)
    assert architecture is not None
    assert architecture == before
    assert sum(p.numel() for p in small.parameters()) == result["params"]["student"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("family", "style", "method", "at"),
    [("wavlm", "large", "lowrank", 5), ("parakeet", "ctc", "l0+lowrank", 14)],  # killed in either stage
)
def test_low_rank_alone_and_with_members_meets_the_budget_and_resumes(
    family: str, style: str, method: str, at: int, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tiny_model(family, style, ctc=True)
    save(teacher, extractor_of(teacher), tmp_path / "teacher")
    options = {"method": method, "keep": "params=0.7"}
    result = compress(tmp_path / "teacher", audio_folder, tmp_path / "small", **options)
    assert 0.68 < result["params"]["kept"] <= 0.7  # type: ignore[index]
    assert float(str(result["removal_error"])) < 1e-4
    small = diminuendo.load(tmp_path / "small")
    assert sum(p.numel() for p in small.parameters()) == result["params"]["student"]  # type: ignore[index]
    if method == "lowrank":
        assert any(name.endswith(".ranks") for name in result["shape"])  # type: ignore[attr-defined]
        full = result["full_shape"].items()  # type: ignore[attr-defined]
        assert {name: kept for name, kept in full if not name.endswith(".ranks")}.items() <= result["shape"].items()  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        interrupt(patch, at)
        with pytest.raises(Interrupted):
            compress(tmp_path / "teacher", audio_folder, tmp_path / "killed", **options)
    compress(tmp_path / "teacher", audio_folder, tmp_path / "killed", resume=True, **options)
    assert weights(tmp_path / "killed") == weights(tmp_path / "small")


@pytest.mark.parametrize(("family", "style"), [("hubert", "base"), ("parakeet", "ctc"), ("parakeet", "rnnt")])
def test_a_head_reads_what_was_distilled(
    family: str, style: str, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The map of the last layer is folded into what reads it: of a map that doubles, the head sees the double."""
    from diminuendo.distillation.hidden import HiddenDistillation
    from diminuendo.training import two_stages

    def doubling(*args: object, **options: object) -> HiddenDistillation:
        made = HiddenDistillation(*args, **options)  # type: ignore[arg-type]
        with torch.no_grad():
            made.maps["shared"].weight.mul_(2)
            made.maps["shared"].bias.fill_(0.25)
        return made

    monkeypatch.setattr(two_stages, "HiddenDistillation", doubling)
    teacher = tiny_model(family, style, ctc=style == "base")
    save(teacher, extractor_of(teacher), tmp_path / "teacher")
    settings = {"steps": 1, "distil_steps": 0, "learning_rate": 1e-12, "keep": "params=0.9"}
    compress(tmp_path / "teacher", audio_folder, tmp_path / "small", **settings)
    small = diminuendo.load(tmp_path / "small")
    old, new = (family_of(model).head(model) for model in (teacher, small))
    torch.testing.assert_close(new.weight, 2 * old.weight, rtol=1e-3, atol=1e-3)
    expected = old.bias + 0.25 * old.weight.flatten(1).sum(1)
    torch.testing.assert_close(new.bias, expected, rtol=1e-3, atol=1e-3)


def test_a_budget_in_macs_is_of_the_model_as_it_is_counted(audio_folder: Path, tmp_path: Path) -> None:
    """Wav2Vec2-BERT's attention becomes ours, which multiplies less, so the gated model is not what was given."""
    teacher = tiny_model("wav2vec2-bert", "base")
    save(teacher, extractor_of(teacher), tmp_path / "teacher")
    result = compress(tmp_path / "teacher", audio_folder, tmp_path / "small", keep="macs=0.5")
    assert 0.49 < result["macs_per_second"]["kept"] <= 0.5  # type: ignore[index]
