"""What the study of students compares of inputs: front ends of filter banks, and longer distillation."""

from typing import get_args

from benchmarks.students import cells, latency, make
from benchmarks.students.cells import STUDENTS, Cell, Encoder, Input

from benchmarking.test_students import DEV


def test_a_front_end_that_learns_longer_is_the_one_thing_that_differs() -> None:
    short, long = (make.encoder_settings(Encoder("pruned", "both", heard, 1)) for heard in ("fbank", "fbank-long"))
    assert short.pop("input_steps") * 3 == long.pop("input_steps")
    assert short == long
    assert latency.shape(Encoder("deep-thin", "both", "fbank-long")) == latency.shape(
        Encoder("deep-thin", "both", "fbank")
    )
    following = [cell for cell in cells.then(DEV) if cell.encoder.times == 1]
    long_cells = [cell for cell in following if cell.encoder.input == "fbank-long"]
    assert {(cell.encoder.student, cell.encoder.seed, cell.text) for cell in long_cells} == {
        (student, seed, text) for student in STUDENTS for seed in range(3) for text in ("longer", "longest")
    }
    longest = [cell.encoder for cell in following if cell.text == "longest"]
    for heard in ("waveform", "fbank-long"):  # in as many steps
        of_input = {(encoder.student, encoder.seed) for encoder in longest if encoder.input == heard}
        assert of_input == {(student, seed) for student in STUDENTS for seed in range(3)}
    steps = [
        make.fine_tuning(Cell(Encoder("pruned", "both"), text))["steps"] for text in ("words", "longer", "longest")
    ]
    assert steps == [1600, 4800, 14400]


def test_filter_banks_deep_have_another_front_end_that_learns_for_longer() -> None:
    plain, deep_banks = (
        make.encoder_settings(Encoder("deep-thin", "both", heard)) for heard in ("fbank-long", "fbank-deep")
    )
    differ = {key: (plain[key], deep_banks[key]) for key in plain if plain[key] != deep_banks[key]}
    assert set(differ) == {"input", "input_steps", "keep"}
    assert differ["input"] == ("fbank-plain", "fbank")
    assert differ["input_steps"] == (600, 3000)
    assert len({latency.shape(Encoder("deep-thin", "both", heard)) for heard in get_args(Input)}) == 3
    dev = DEV | {Cell(Encoder("pruned", "both")).name: 0.3, Cell(Encoder("deep-thin", "both", "fbank")).name: 0.4}
    once = [cell for cell in cells.then(dev) if cell.encoder.times == 1]
    following = [cell for cell in once if cell.encoder.input == "fbank-deep"]
    assert {cell.encoder.student for cell in following[:3]} == {"deep-thin"}
    assert {(cell.encoder.student, cell.encoder.seed, cell.text) for cell in following} == {
        (student, seed, text) for student in STUDENTS for seed in range(3) for text in ("longer", "longest")
    }


def test_longer_distillation_is_of_more_steps_and_its_recognisers_have_cells_of_their_own() -> None:
    once, longer = (Encoder("deep-thin", "both", "fbank-long", 1, times) for times in (1, 4))
    assert (once.name, longer.name) == (
        "encoder_deep-thin_both_fbank-long_seed-1",
        "encoder_deep-thin_both_fbank-long_times-4_seed-1",
    )
    assert latency.shape(once) == latency.shape(longer)
    settings, more = make.encoder_settings(once), make.encoder_settings(longer)
    steps = [sum(some.pop(key) for key in ("steps", "distil_steps")) for some in (settings, more)]
    assert steps == [1200, 4800]
    assert settings == more
    dev = DEV | {Cell(Encoder("pruned", "both")).name: 0.3, Cell(Encoder("deep-thin", "both", "fbank")).name: 0.4}
    assert {cell for cell in cells.then(dev) if cell.encoder.times > 1} == {
        Cell(Encoder("deep-thin", "both", heard, seed, 4), "longer")
        for heard in ("waveform", "fbank-long", "fbank-deep")
        for seed in range(3)
    }
