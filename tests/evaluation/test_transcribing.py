"""Files through a recogniser, from Python and by the command line: whole, in chunks, silent, and not audio at all."""

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from diminuendo import api, cli, recognising
from diminuendo.cli_text import print_heard
from diminuendo.data.tokens import Tokens, make_tokenizer, save_tokens
from diminuendo.evaluation import recognition
from diminuendo.evaluation.streaming import Heard
from diminuendo.evaluation.transcripts import of_different_texts
from diminuendo.export.huggingface import save
from diminuendo.tasks.hypotheses import Hypothesis
from evaluation.test_streaming import RATE, TOKENIZER, noise
from tiny import extractor_of, tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`streaming` and `whole`, which cannot, as saved; and two files of noise."""
    folder = tmp_path_factory.mktemp("models")
    streaming, parakeet = tiny_model("nemotron", "rnnt"), tiny_model("parakeet", "ctc")
    for model, name in ((streaming, "streaming"), (parakeet, "whole")):
        save(model, extractor_of(model), folder / name)
        save_tokens(TOKENIZER, folder / name)
    for name, samples in (("a.wav", 24_001), ("b.wav", 30_000)):
        soundfile.write(folder / name, noise(samples).numpy(), RATE, subtype="FLOAT")
    soundfile.write(folder / "nan.wav", noise(8000).log().numpy(), RATE, subtype="FLOAT")
    soundfile.write(folder / "piped.flac", 0.1 * noise(8000).numpy(), RATE)
    content = bytearray((folder / "piped.flac").read_bytes())
    content[21:26] = [content[21] & 0xF0, 0, 0, 0, 0]  # the length, as who writes into a pipe leaves it
    (folder / "piped.flac").write_bytes(content)
    return folder


def test_streaming_from_python_gives_what_whole_files_give_and_what_it_costs(models: Path) -> None:
    files = [models / "a.wav", models / "b.wav"]
    expected = api.transcribe(models / "streaming", files, lookahead=80, device="cpu")
    told: list[tuple[str, str]] = []
    found = api.transcribe(
        models / "streaming",
        files,
        lookahead=80,
        streaming=True,
        chunk_ms=30,
        tell=lambda audio, heard: told.append((audio, heard.text)),
        device="cpu",
    )
    costs = [one.pop("streaming") for one in found]
    assert [(one["text"], one["words"]) for one in found] == [(one["text"], one["words"]) for one in expected]
    assert dict(told) == {one["audio"]: one["text"] for one in expected}
    assert len(told) > 6
    assert [(cost["lookahead_ms"], cost["chunk_ms"]) for cost in costs] == [(80, 30), (80, 30)]
    utterance = api.stream(models / "streaming", lookahead=80, device="cpu")
    samples = soundfile.read(files[0], dtype="float32")[0]
    assert utterance.push(samples[:20_000]).text in expected[0]["text"]
    utterance.push(samples[20_000:])
    assert utterance.finish().text == expected[0]["text"]


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    return run_command(capsys, monkeypatch, "transcribe", *arguments)


def run_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["diminuendo", *map(str, words)])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    out, err = capsys.readouterr()
    return int(exited.value.code or 0), out, err


def test_the_command_line_prints_partials_beside_the_text(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [models / "streaming", models / "a.wav", "--streaming", "--lookahead", 80, "--device", "cpu"]
    status, printed, err = run(capsys, monkeypatch, *arguments)
    text, cost = printed.splitlines()
    partials = err.splitlines()
    assert status == 0
    assert text.startswith(f"{models / 'a.wav'}: ")
    assert cost.startswith("    latency 235.0 ms (lookahead 80 ms, audio in chunks of 160 ms) and computing: ")
    assert len(partials) > 3
    assert partials[0].startswith(f"{models / 'a.wav'} 0.16 s  ")
    assert partials[-1] == f"{models / 'a.wav'} 1.50 s  {text.removeprefix(str(models / 'a.wav') + ': ')}"
    status, printed, err = run(capsys, monkeypatch, *arguments, "--json", "--quiet")
    (found,) = json.loads(printed)["transcripts"]
    assert (status, err) == (0, "")
    assert f"{found['audio']}: {found['text']}" == text
    expected = {"lookahead_ms": 80, "chunk_ms": 160, "algorithmic_latency_ms": 235, "chunks": 10}
    assert expected.items() <= found["streaming"].items()
    assert {*found["streaming"]} - {*expected} == {"compute_ms", "real_time_factor"}


def test_word_errors_come_for_each_lookahead(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"audio_filepath": "a.wav", "duration": 24_001 / RATE, "text": "abc", "speaker": "one"}
    (models / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    given = ["evaluate", models / "streaming", models / "manifest.jsonl", "--device", "cpu", "--quiet"]
    several = ["--lookahead", 0, "--lookahead", 400]
    status, printed, _ = run_command(capsys, monkeypatch, *given, *several, "--json")
    found = json.loads(printed)["lookaheads"]
    assert status == 0
    alone = [run_command(capsys, monkeypatch, *given, "--lookahead", ms, "--json")[1] for ms in (0, 400)]
    assert list(found.items()) == list(zip(["0", "400"], map(json.loads, alone), strict=True))
    lines = run_command(capsys, monkeypatch, *given, *several)[1].splitlines()
    monkeypatch.setattr(recognising, "recognition_errors", None)  # what cannot be is found before the first is heard
    status, _, said = run_command(capsys, monkeypatch, *given, "--lookahead", 0, "--lookahead", 50)
    assert (status, said.count("\n"), said.partition(" ")[0]) == (2, 1, "error:")
    assert [line.partition(" WER")[0] for line in lines[::3]] == ["0 ms:", "400 ms:"]


def test_a_second_recogniser_hears_as_many_milliseconds_ahead(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames of one last 80 ms, of the other 40."""
    short = tiny_model("nemotron", "rnnt", subsampling_factor=4)
    save(short, extractor_of(short), tmp_path / "short")
    save_tokens(TOKENIZER, tmp_path / "short")
    row = {"audio_filepath": str(models / "a.wav"), "duration": 24_001 / RATE, "text": "abc", "speaker": "one"}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    heard: list[int | None] = []
    original = recognition.transcripts

    def transcripts(recogniser: Any, batches: Any, decoding: Any) -> Any:
        heard.append(decoding.lookahead)
        return original(recogniser, batches, decoding)

    monkeypatch.setattr(recognition, "transcripts", transcripts)
    for against in (tmp_path / "short", models / "whole"):
        api.evaluate(models / "streaming", tmp_path / "manifest.jsonl", lookahead=160, against=against)
    assert heard == [2, 4, 2, None]


def test_on_a_terminal_one_line_is_written_anew_with_the_end_of_the_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for text, final in (("one", False), ("one two three four", False), ("\u4e00" * 9, True)):
        print_heard("a.wav", Heard(text, (), 0.0, 1.5, final))
    assert capsys.readouterr().err == (
        "\r\x1b[Ka.wav 1.50 s  one\r\x1b[Ka.wav 1.50 s  hree four\r\x1b[Ka.wav 1.50 s  " + "\u4e00" * 4 + "\n"
    )


@pytest.mark.parametrize(("model", "streaming"), [("streaming", True), ("streaming", False), ("whole", False)])
@pytest.mark.parametrize("samples", [0, 800, 24_000])
def test_nothing_is_heard_in_silence(
    samples: int, model: str, streaming: bool, models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soundfile.write(tmp_path / "silence.wav", torch.zeros(samples).numpy(), RATE)
    with caplog.at_level(logging.WARNING):
        (alone,) = api.transcribe(models / model, [tmp_path / "silence.wav"], streaming=streaming, device="cpu")
    assert (alone["text"], alone["words"], alone["others"]) == ("", (), ())
    assert [record.message.partition(" nothing")[2] for record in caplog.records] == [" is heard in it"]
    files = [tmp_path / "silence.wav", models / "a.wav"]
    found = api.transcribe(models / model, files, streaming=streaming, device="cpu")
    (heard,) = api.transcribe(models / model, [models / "a.wav"], streaming=streaming, device="cpu")
    assert found[0] == alone
    assert found[1]["text"] == heard["text"]


@pytest.mark.parametrize(
    ("model", "flags", "says"),
    [
        ("whole", ["--streaming"], "--streaming: MODEL is no streaming model (ParakeetForCTC)"),
        ("streaming", ["--streaming", "--beam", "4"], "leave --beam and --n-best out"),
        ("streaming", ["--streaming", "--n-best", "2"], "leave --beam and --n-best out"),
        ("streaming", ["--streaming", "--chunk-ms", "0"], "--chunk-ms 0: expected"),
        ("streaming", ["--streaming", "--lookahead", "50"], "expected a multiple of 80 ms"),
        ("streaming", ["--chunk-ms", "20"], "give --streaming too"),
        ("streaming", ["--streaming", "gone.wav"], "error: gone.wav: no such file; expected audio files"),
        ("whole", ["gone.wav", "gone too.wav"], "error: gone.wav: no such file (and 1 more of 3 files)"),
        ("whole", ["piped.flac"], "error: piped.flac: its header does not say how long it is"),
        ("whole", [__file__], "test_transcribing.py: no audio that can be read"),
        ("whole", ["."], "error: .: a directory; expected audio files"),
    ],
)
def test_wrong_input_gets_one_line_and_status_2(
    model: str,
    flags: list[str],
    says: str,
    models: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(models)
    status, printed, err = run(capsys, monkeypatch, model, "a.wav", *flags, "--device", "cpu")
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (status, printed, len(lines)) == (2, "", 1)
    assert says in lines[0]


@pytest.mark.parametrize("flags", [[], ["--streaming"]])
def test_a_file_that_is_broken_further_on_does_not_lose_the_others(
    flags: list[str], models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    whole = run(capsys, monkeypatch, "streaming", "a.wav", "b.wav", *flags, "--device", "cpu", "--json")[1]
    given = ["streaming", "nan.wav", "a.wav", "nan.wav", "b.wav", *flags, "--device", "cpu", "--quiet"]
    status, printed, err = run(capsys, monkeypatch, *given, "--json")
    first, a, second, b = json.loads(printed)["transcripts"]
    expected = json.loads(whole)["transcripts"]
    assert [a["text"], b["text"]] == [one["text"] for one in expected]
    assert first == second == {"audio": "nan.wav", "error": "non-finite"}
    message = (
        "error: nan.wav: non-finite (and 1 more of 4 files); expected audio that can be read to its end, and finite "
    )
    assert (status, err) == (2, message + "samples\n")
    status, printed, _ = run(capsys, monkeypatch, *given)
    assert (status, "nan.wav" in printed) == (2, False)


def test_labellings_of_one_text_are_one() -> None:
    pieces = Tokens.of(make_tokenizer("pieces", ["ab ab"], 4))
    space, a, b, ab = (pieces.labels[piece] for piece in ("\u2581", "a", "b", "ab"))
    labellings = [
        Hypothesis((space, a, b), (0, 1, 2), -1.0),
        Hypothesis((space, a), (0, 1), -0.9),
        Hypothesis((space, ab), (0, 2), -1.5),
    ]
    both, other = of_different_texts(pieces, labellings)
    assert (both.tokens, both.frames) == ((space, a, b), (0, 1, 2))
    assert both.score == pytest.approx(math.log(math.exp(-1.0) + math.exp(-1.5)))
    assert other == labellings[1]
