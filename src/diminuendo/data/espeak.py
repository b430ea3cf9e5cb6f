"""eSpeak NG in a process of its own: `python -I espeak.py LIBRARY DATA`, the standard library only.

One request a line on standard input, a JSON object with `text`, `voice`, `rate` (words a minute), `pitch`
(0 to 99) and `seed`; each is answered on standard output by a line of JSON, `phones` (IPA, one string a phone)
and `bytes`, followed by that many bytes of 16-bit mono audio at SAMPLE_RATE.

Why a process. The library keeps state between utterances that no call resets (the phase of the pitch flutter is
a static variable that survives espeak_Terminate), so only a fresh process says the same list of utterances twice
in the same samples. And it is GPL-3: it is never loaded into the process that runs the models.
"""

import ctypes
import json
import sys
from collections.abc import Callable
from typing import Any

SAMPLE_RATE = 22050
SYNCHRONOUS, DO_NOT_EXIT, UTF8 = 2, 0x8000, 1
RATE, VOLUME, PITCH, RANGE = 1, 2, 3, 4
IPA_WITH_UNDERSCORES = ord("_") << 8 | 0x02
STRESS_MARKS = str.maketrans("", "", "\u02c8\u02cc")
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def load(library: str, data: str) -> ctypes.CDLL:
    """The initialised library. Raises RuntimeError if it speaks at another rate than SAMPLE_RATE."""
    espeak = ctypes.CDLL(library)
    espeak.espeak_TextToPhonemes.restype = ctypes.c_char_p
    espeak.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int]
    espeak.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    rate = espeak.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), DO_NOT_EXIT)
    if rate != SAMPLE_RATE:
        raise RuntimeError(f"eSpeak NG was expected to speak at {SAMPLE_RATE} Hz, espeak_Initialize gave {rate}")
    return espeak


def phones_of(espeak: ctypes.CDLL, text: str) -> list[str]:
    """IPA phones of `text` in the current voice, without stress marks."""
    clauses = []
    rest = ctypes.c_char_p(text.encode())
    while rest.value is not None:
        clauses.append(espeak.espeak_TextToPhonemes(ctypes.byref(rest), UTF8, IPA_WITH_UNDERSCORES).decode())
    return " ".join(clauses).replace("_", " ").translate(STRESS_MARKS).split()


def speaker(espeak: ctypes.CDLL) -> Callable[[dict[str, Any]], tuple[bytes, list[str]]]:
    """A function from a request to its 16-bit audio and its phones."""
    chunks: list[bytes] = []

    def keep(samples: Any, num_samples: int, _events: Any) -> int:
        if samples and num_samples > 0:
            chunks.append(ctypes.string_at(samples, num_samples * 2))
        return 0

    callback = CALLBACK(keep)

    def say(request: dict[str, Any]) -> tuple[bytes, list[str]]:
        chunks.clear()
        espeak.espeak_SetSynthCallback(callback)
        # espeak_Initialize seeds the noise of consonants from the clock.
        espeak.espeak_ng_SetRandSeed(request["seed"])
        succeed(espeak.espeak_SetVoiceByName(request["voice"].encode()), request)
        settings = {RATE: request["rate"], PITCH: request["pitch"], RANGE: 50, VOLUME: 80}
        for parameter, value in settings.items():
            succeed(espeak.espeak_SetParameter(parameter, value, 0), request)
        phones = phones_of(espeak, request["text"])
        text = request["text"].encode() + b"\0"
        succeed(espeak.espeak_Synth(text, len(text), 0, 0, 0, UTF8, None, None), request)
        succeed(espeak.espeak_Synchronize(), request)
        return b"".join(chunks), phones

    return say


def succeed(status: int, request: dict[str, Any]) -> None:
    """Raises RuntimeError unless a call of the library returned 0."""
    if status != 0:
        raise RuntimeError(f"eSpeak NG answered with status {status} to {request}")


def main(library: str, data: str) -> None:
    """Answers the requests on standard input, in order, until it closes."""
    say = speaker(load(library, data))
    for line in sys.stdin:
        audio, phones = say(json.loads(line))
        sys.stdout.buffer.write(json.dumps({"phones": phones, "bytes": len(audio)}).encode() + b"\n" + audio)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
