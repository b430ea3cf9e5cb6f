"""Labels of our own making, and those that published models come with."""

import contextlib
import json
import random
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    ParakeetFeatureExtractor,
    ParakeetProcessor,
    ParakeetTokenizer,
    PreTrainedTokenizerFast,
    Wav2Vec2CTCTokenizer,
)

from diminuendo.data.text import normalise
from diminuendo.data.tokens import (
    Tokens,
    load_tokens,
    make_tokenizer,
    save_tokens,
)
from diminuendo.errors import UserError
from diminuendo.export.huggingface import save
from tiny import tiny_model

TEXTS = ["The cat sat, all on the mat.", "A cat can't see the hats;", "the cattle sees 12 balls"]
KINDS = [("characters", None), ("pieces", 30), ("words", None)]
ARABIC = ["السَّلامُ عليكم، كيف الحال؟", "الحمد لله"]


def ours(kind="characters", size=None, texts=TEXTS):
    return Tokens.of(make_tokenizer(kind, texts, size))


def wav2vec2(folder, letters="ETAONIHSRDLU'", blank="<pad>"):
    """As published: control tokens first, "|" between words, upper case."""
    folder.mkdir(exist_ok=True)
    vocabulary = [blank, "<s>", "</s>", "<unk>", "|", *letters]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(vocabulary)}))
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), pad_token=blank).save_pretrained(folder)
    return SimpleNamespace(vocab_size=len(vocabulary), pad_token_id=0)


def parakeet(folder, blank=None):
    """As published: SentencePiece's pieces in both cases behind "<unk>"; the blank is not listed, padding, or a piece.

    That it ends a text by "<unk>" unless told otherwise is ours.
    """
    folder.mkdir(exist_ok=True)
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("l", "l")]
    pieces = ["<unk>", "▁", *"abehlotT.,", "▁t", "▁th", "▁the", "ll"]
    count = len(pieces)
    pieces += ["<blank>"] * (blank == "<blank>")
    backend = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges, unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing("$A <unk>", special_tokens=[("<unk>", 0)])
    padding = {"pad_token": blank} if blank == "<pad>" else {}
    ParakeetTokenizer(tokenizer_object=backend, unk_token="<unk>", **padding).save_pretrained(folder)
    return count


def test_characters_are_labels_in_the_order_of_their_code_points_and_the_blank_is_last():
    tokenizer = make_tokenizer("characters", ["Bad, cab", "dab"])
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == ["a", "b", "c", "d", "▁", "<blank>"]
    assert type(tokenizer) is PreTrainedTokenizerFast
    tokens = Tokens.of(tokenizer)
    assert (tokens.blank, tokens.size, tokenizer.pad_token_id) == (5, 6, 5)
    assert tokens.encode("Cab? Dad!") == [2, 0, 1, 4, 3, 0, 3]
    assert tokens.labels == {"a": 0, "b": 1, "c": 2, "d": 3, "▁": 4}


def test_words_are_labels_in_the_order_of_their_code_points():
    tokens = ours("words", texts=["go left", "Go right, go!"])
    assert tokens.tokenizer.convert_ids_to_tokens(range(4)) == ["▁go", "▁left", "▁right", "<blank>"]
    assert tokens.encode("right, go left") == [2, 0, 1]


def test_a_size_keeps_the_most_frequent_characters_or_words():
    texts = ["aaa bb c", "aaa bb", "aaa"]
    assert ours("words", 2, texts).labels == {"▁aaa": 0, "▁bb": 1}
    assert ours("characters", 2, texts).labels == {"a": 0, "b": 1}
    assert ours("characters", 3, texts).labels == {"a": 0, "b": 1, "▁": 2}


def test_pieces_are_as_many_as_asked_for_and_the_blank_is_last():
    tokens = ours("pieces", 30)
    assert (len(tokens.labels), tokens.blank, tokens.size) == (30, 30, 31)
    assert sorted(tokens.labels.values()) == list(range(30))
    assert len(tokens.encode("the cat")) < len("the cat")


def test_two_trainings_give_one_file_in_any_order_of_the_texts():
    random.seed(0)
    words = ["".join(random.choices("abcdefgh", k=random.randint(1, 7))) for _ in range(300)]
    texts = [" ".join(random.choices(words, k=6)) for _ in range(400)]
    shuffled = random.sample(texts, len(texts))
    files = [make_tokenizer("pieces", some, 200).backend_tokenizer.to_str() for some in (texts, texts, shuffled)]
    assert files[1:] == files[:2]


@pytest.mark.parametrize(("kind", "size"), KINDS)
@pytest.mark.parametrize("texts", [TEXTS, ARABIC], ids=["English", "Arabic"])
def test_what_is_encoded_is_decoded_with_doubled_letters_and_words_apart(kind, size, texts):
    tokens = ours(kind, size, texts)
    for text in texts:
        ids = tokens.encode(text)
        assert tokens.decode(ids) == normalise(text)
        assert set(ids) <= set(tokens.labels.values())
        assert tokens.decode([tokens.blank, *ids, tokens.blank]) == normalise(text)
    assert tokens.encode("...") == []
    assert tokens.decode([]) == ""


@pytest.mark.parametrize(("kind", "size"), KINDS[:2])
def test_characters_that_the_vocabulary_lacks_are_named_once_and_refused(kind, size):
    tokens = ours(kind, size)
    assert tokens.unknown("The QUIZ: a quiz") == ["q", "u", "i", "z"]
    assert tokens.unknown("the cats") == []
    with pytest.raises(UserError, match="lack 'z', 'r' of 'The zebra'"):
        tokens.encode("The zebra")


def test_words_that_the_vocabulary_lacks_are_named_once_and_refused():
    tokens = ours("words")
    assert tokens.unknown("The dog, the cat, the dog: a t") == ["dog", "t"]
    with pytest.raises(UserError, match="lack 'dog' of"):
        tokens.encode("the dog")


@pytest.mark.parametrize(("kind", "size"), KINDS)
def test_without_us_what_is_unknown_becomes_the_blank_and_never_a_label(kind, size, tmp_path):
    save_tokens(make_tokenizer(kind, TEXTS, size), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert set(tokenizer.encode("the Ж")) & {tokenizer.pad_token_id} == {tokenizer.pad_token_id}
    assert tokenizer.decode(tokenizer.encode("the Ж"), skip_special_tokens=True).split() == ["the"]


@pytest.mark.parametrize(
    ("kind", "texts", "size", "message"),
    [
        ("characters", [], None, "hold no word"),
        ("words", ["...", ""], None, "hold no word"),
        ("pieces", ["?"], 10, "hold no word"),
        ("pieces", TEXTS, None, "pieces without a size"),
        ("pieces", TEXTS, 5, "5 pieces for texts of 1. characters"),
        ("characters", TEXTS, 0, "0 characters as tokens"),
    ],
)
def test_tokens_that_cannot_be_made_are_refused_in_one_line(kind, texts, size, message):
    with pytest.raises(UserError, match=message) as refused:
        make_tokenizer(kind, texts, size)
    assert "\n" not in str(refused.value)


def test_fewer_pieces_than_asked_for_are_said(caplog):
    tokens = ours("pieces", 1000)
    assert f"give only {len(tokens.labels)} pieces, of 1000" in caplog.text


def test_wav2vec2s_upper_case_letters_are_spelt_and_doubled_letters_stay(tmp_path):
    tokens = load_tokens(tmp_path, wav2vec2(tmp_path))
    assert (tokens.blank, tokens.size) == (0, 18)
    letters = {token: index for index, token in enumerate("ETAONIHSRDLU'", start=5)}
    expected = [4 if letter == " " else letters[letter] for letter in "AN OLD HALL'S"]
    assert tokens.encode("An old hall\u2019s.") == expected
    assert tokens.decode(expected) == "AN OLD HALL'S"
    assert tokens.decode([0, *expected, 0, 2]) == "AN OLD HALL'S"
    assert tokens.unknown("quite a zoo") == ["q", "z"]
    assert "|" in tokens.labels
    assert not tokens.labels.keys() & {"<pad>", "<s>", "</s>", "<unk>"}


def test_lower_case_stays_where_the_vocabulary_has_it(tmp_path):
    tokens = load_tokens(tmp_path, wav2vec2(tmp_path, "ABab"))
    assert tokens.encode("Ab") == [7, 8]


@pytest.mark.parametrize("blank", [None, "<blank>", "<pad>"])
def test_parakeets_pieces_are_encoded_and_decoded_without_merging_repeats(blank, tmp_path):
    pieces = parakeet(tmp_path, blank)
    key = "pad_token_id" if blank == "<pad>" else "blank_token_id"
    tokens = load_tokens(tmp_path, SimpleNamespace(vocab_size=pieces + 1, **{"pad_token_id": 0, key: pieces}))
    assert (tokens.blank, tokens.size) == (pieces, pieces + 1)
    ids = tokens.encode("The ball, all")
    assert set(ids) <= set(tokens.labels.values())
    assert tokens.decode(ids) == "the ball all"
    assert tokens.decode([tokens.labels["o"], tokens.labels["o"], pieces, tokens.labels["o"]]) == "ooo"
    assert tokens.unknown("the zebra") == ["z", "r"]
    assert tokens.decode(tokens.tokenizer.convert_tokens_to_ids(["▁", "T", "h", "e", ".", "<unk>"])) == "The."


def test_no_tokenizer_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "wav2vec2"}')
    for source in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UserError, match="has no tokenizer that can be read") as refused:
            load_tokens(source, SimpleNamespace(vocab_size=3, pad_token_id=0))
        assert "\n" not in str(refused.value)


def test_a_directorys_own_code_is_not_run(tmp_path):
    config = wav2vec2(tmp_path)
    values = json.loads((tmp_path / "tokenizer_config.json").read_text())
    values |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(values))
    ran = tmp_path / "ran"
    (tmp_path / "mine.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nclass Mine: pass\n")
    with contextlib.suppress(UserError):
        load_tokens(tmp_path, config)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 17}, "label \"'\" as 17, but the model's vocab_size is 17"),
        ({"pad_token_id": 18}, "blank is 18 of 18 tokens"),
        ({"pad_token_id": -1}, "blank is -1 of 18 tokens"),
        ({"pad_token_id": None}, "blank is None of 18 tokens"),
        ({"pad_token_id": 5}, "blank is 5, which is label 'E'"),
        ({"blank_token_id": 7}, "blank is 7, which is label 'A'"),
        ({"vocab_size": 21}, r"no label 18 \(3 of the model's 21 are missing\)"),
        ({"blank_token_id": 1}, "blank is 1, but that of its tokenizer is 0"),
    ],
)
def test_a_tokenizer_that_is_not_the_models_is_refused(changes, message, tmp_path):
    config = wav2vec2(tmp_path)
    config.__dict__.update(changes)
    with pytest.raises(UserError, match=message):
        load_tokens(tmp_path, config)


@pytest.mark.parametrize(("kind", "size"), KINDS)
def test_ours_travel_with_a_model_and_open_without_us(kind, size, tmp_path):
    tokenizer = make_tokenizer(kind, TEXTS, size)
    save_tokens(tokenizer, tmp_path / "tokens")
    model = tiny_model("parakeet", ctc=True)
    save(model, ParakeetFeatureExtractor(), tmp_path / "model", tokenizer_of=str(tmp_path / "tokens"))
    opened = AutoTokenizer.from_pretrained(tmp_path / "model", trust_remote_code=False)
    assert opened.get_vocab() == tokenizer.get_vocab()
    assert opened.decode(opened.encode("the cat sat all")) == "the cat sat all"
    assert type(AutoProcessor.from_pretrained(tmp_path / "model")) is ParakeetProcessor
    tokens = load_tokens(
        tmp_path / "model", SimpleNamespace(vocab_size=len(tokenizer), pad_token_id=len(tokenizer) - 1)
    )
    assert tokens.encode(TEXTS[0]) == Tokens.of(tokenizer).encode(TEXTS[0])
