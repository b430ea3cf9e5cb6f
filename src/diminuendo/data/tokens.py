"""What a recogniser writes: the labels of its texts and the blank, made from texts or read with a model."""

import json
import logging
import os
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal, Self

import torch
from jaxtyping import Bool, Int
from lhotse import CutSet
from lhotse.cut import Cut
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast, Wav2Vec2CTCTokenizer

from diminuendo.data.text import normalise
from diminuendo.errors import UserError

log = logging.getLogger(__name__)

Kind = Literal["characters", "pieces", "words"]

BLANK = "<blank>"
SPACE = "▁"  # as in SentencePiece; `normalise` leaves none in a text
LEFT_OUT_AT_MOST = 0.01  # of the clips, for what is wrong with their texts
NAMED_AT_MOST = 10
ENOUGH = 1000  # clips of a lazy set, to say what fraction is left out
LOOKED_AT = 100  # clips of one, before a run begins
_CONTROL = re.compile(r"<.*>|\[.*\]")  # of published vocabularies, where not all such tokens are declared special


def make_tokenizer(kind: Kind, texts: Iterable[str], size: int | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of the labels that the normalised texts need, and behind them "<blank>", which is the padding too.

    characters: one label each, and "▁" for the space between words; in the order of their code points.
    words: one label each, beginning with "▁"; in the order of their code points.
    pieces: parts of words; "▁" begins those that begin a word. By byte-pair encoding, of which two trainings give the
    same file (those of the tokenizers library's Unigram do not); the characters first, then as they were merged.

    size: labels, the blank not counted, at most. Of characters and words the most frequent are taken; None takes all.
    There is no label for what is unknown: it becomes a blank, as which no known text is encoded.

    Raises:
        UserError: texts without a word; a size below 1; pieces without a size, or fewer than there are characters.
    """
    if size is not None and size < 1:
        raise UserError(f"{size} {kind} as tokens; expected 1 or more")
    normalised = map(normalise, texts)
    if kind == "pieces":
        return _tokenizer(_train_pieces(normalised, size), "always")
    counts: Counter[str] = Counter()
    for text in normalised:
        counts.update(text.replace(" ", SPACE) if kind == "characters" else (SPACE + word for word in text.split()))
    if not counts:
        raise _no_words()
    taken = sorted(counts, key=lambda label: (-counts[label], label))[:size]
    vocabulary = {label: index for index, label in enumerate([*sorted(taken), BLANK])}
    if kind == "words":
        return _tokenizer(models.WordLevel(vocab=vocabulary, unk_token=BLANK), "always")
    return _tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=BLANK), "never")


def _train_pieces(texts: Iterable[str], size: int | None) -> models.BPE:
    if size is None:
        raise UserError("pieces without a size; say how many, for instance 1024")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, show_progress=False))
    trained = json.loads(tokenizer.to_str())["model"]
    vocabulary: dict[str, int] = trained["vocab"]
    if not vocabulary:
        raise _no_words()
    if len(vocabulary) > size:
        raise UserError(f"{size} pieces for texts of {len(vocabulary)} characters; give a size of at least that many")
    if len(vocabulary) < size:
        log.warning("the texts give only %d pieces, of %d that were asked for", len(vocabulary), size)
    merges = [(left, right) for left, right in trained["merges"]]
    return models.BPE(vocab=vocabulary | {BLANK: len(vocabulary)}, merges=merges, unk_token=BLANK)


def _no_words() -> UserError:
    return UserError("tokens are made from texts, and these hold no word; check the texts in DATA")


def _tokenizer(model: models.Model, first: Literal["always", "never"]) -> PreTrainedTokenizerFast:
    """first: whether the first word of a text begins with "▁" as well."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=first)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=first)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=BLANK, clean_up_tokenization_spaces=False)


@dataclass(frozen=True, eq=False)
class Tokens:
    """A tokenizer of transformers as a recogniser's: our own, Wav2Vec2CTCTokenizer, ParakeetTokenizer.

    blank: its id. size: how many ids the model scores, the blank among them.
    """

    tokenizer: Any
    blank: int
    size: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> Self:
        """Those of a tokenizer that `make_tokenizer` made."""
        return cls(tokenizer, tokenizer.pad_token_id, len(tokenizer))

    def encode(self, text: str) -> list[int]:
        """The labels of the normalised text, in upper case if the vocabulary has no other letters; no special tokens.

        UserError if the vocabulary lacks any of it.
        """
        ids, lacking = self.encode_known(text)
        if lacking:
            raise UserError(f"the tokens lack {', '.join(map(repr, lacking))} of {text!r}; see `unknown`")
        return ids

    def encode_known(self, text: str) -> tuple[list[int], list[str]]:
        """The labels of a text and nothing, or no labels and what the vocabulary lacks, as `unknown` gives it."""
        written = normalise(text)
        written = written.upper() if self._in_upper_case else written
        units = dict.fromkeys(written.split() if self._of_words else written.replace(" ", ""))
        lacking = [unit.lower() for unit in units if not self._can_write(unit)]
        return ([], lacking) if lacking else (self._ids(written), [])

    def unknown(self, text: str) -> list[str]:
        """The characters of the normalised text that the vocabulary lacks, each once; of one of words, the words."""
        return self.encode_known(text)[1]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids that are collapsed already, in the vocabulary's own case and punctuation; no blanks in it."""
        labels = [index for index in ids if index != self.blank]
        # What the classes for CTC do on their own would merge letters that are doubled.
        options = {"group_tokens": False, "skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return str(self.tokenizer.decode(labels, **options)).strip()

    @cached_property
    def labels(self) -> dict[str, int]:
        """The vocabulary without special and control tokens."""
        delimiter = getattr(self.tokenizer, "word_delimiter_token", None)  # special, says Wav2Vec2CTCTokenizer
        special = set(self.tokenizer.all_special_tokens) - {delimiter}
        vocabulary: dict[str, int] = self.tokenizer.get_vocab()
        return {
            label: index
            for label, index in vocabulary.items()
            if label not in special and not _CONTROL.fullmatch(label)
        }

    @cached_property
    def _in_upper_case(self) -> bool:
        # Of a script without cases as well, which upper case leaves alone.
        return not any(map(str.islower, "".join(self.labels)))

    @cached_property
    def _of_words(self) -> bool:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        return backend is not None and isinstance(backend.model, models.WordLevel)

    @cached_property
    def _writable(self) -> dict[str, bool]:
        return {}

    def _can_write(self, unit: str) -> bool:
        """Whether a character, or a word, comes back when it is encoded alone; what is lacking does not."""
        if unit not in self._writable:
            self._writable[unit] = self.decode(self._ids(unit)).lower() == unit.lower()
        return self._writable[unit]

    def _ids(self, written: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(written, add_special_tokens=False)
        return ids


def save_tokens(tokenizer: Any, directory: Path) -> None:
    """Writes tokenizer.json (of Wav2Vec2CTCTokenizer vocab.json) and tokenizer_config.json, as AutoTokenizer reads."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(directory)


def load_tokens(source: str | os.PathLike[str], model_config: Any) -> Tokens:
    """The tokens of the model of this configuration; their tokenizer is in a directory or on the hub.

    The blank is `blank_token_id`, which transducers have, or the padding, as which CTC has it.

    Raises:
        UserError: there is no tokenizer that can be read, or it is not this model's: a label or the blank is beyond
            `vocab_size`, or one below it is missing; or the blank is a label, or another than the tokenizer's.
    """
    source = os.fspath(source)
    try:
        # With the configuration at hand: transformers warns of model types of ours when it reads them itself.
        known = {"config": model_config} if isinstance(model_config, PreTrainedConfig) else {}
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **known)
    except Exception as error:  # of nearly any type, where files are missing or broken
        reason = textwrap.shorten(str(error) or type(error).__name__, 110, placeholder=" ...")
        raise UserError(
            f"MODEL {source} has no tokenizer that can be read ({reason}); expected tokenizer.json or vocab.json, with "
            "tokenizer_config.json, beside the model"
        ) from error
    size, blank = model_config.vocab_size, getattr(model_config, "blank_token_id", None)
    blank = model_config.pad_token_id if blank is None else blank
    if blank is None or not 0 <= blank < size:
        raise UserError(
            f"MODEL {source}: its blank is {blank} of {size} tokens; expected a blank_token_id, or for CTC a "
            "pad_token_id, below vocab_size in config.json"
        )
    tokens = Tokens(tokenizer, blank, size)
    if (why := _mismatch(tokens)) is not None:
        raise UserError(f"MODEL {source}: {why}; expected the tokenizer it was trained with")
    return tokens


def _blank_of_ours(tokenizer: Any) -> int | None:
    """The id that a tokenizer of `make_tokenizer` has for the blank; None of others, which have names of their own."""
    index: int | None = tokenizer.get_vocab().get(BLANK)
    return index


def _mismatch(tokens: Tokens) -> str | None:
    """What shows that a tokenizer is not the model's; None if nothing does."""
    label, last = max(tokens.labels.items(), key=lambda item: item[1], default=("", -1))
    if last < 0:
        return "its tokenizer has no labels"
    if last >= tokens.size:
        return f"its tokenizer has label {label!r} as {last}, but the model's vocab_size is {tokens.size}"
    named = next((label for label, index in tokens.labels.items() if index == tokens.blank), None)
    if named is not None:
        return f"its blank is {tokens.blank}, which is label {named!r} of its tokenizer"
    of_tokenizer = _blank_of_ours(tokens.tokenizer)
    if isinstance(tokens.tokenizer, Wav2Vec2CTCTokenizer):  # whose padding is CTC's blank
        of_tokenizer = tokens.tokenizer.pad_token_id
    if of_tokenizer not in (None, tokens.blank):
        return f"its blank is {tokens.blank}, but that of its tokenizer is {of_tokenizer}"
    unnamed = set(range(tokens.size)) - {tokens.blank, *tokens.tokenizer.get_vocab().values()}
    if unnamed:
        first = min(unnamed)
        return f"its tokenizer has no label {first} ({len(unnamed)} of the model's {tokens.size} are missing)"
    return None


class Targets:
    """What clips say, as labels: encoded when a batch is made, as that is fast, and a lazy set cannot be read before.

    enough: up to so many clips met, the fraction left out is that of so many.
    """

    def __init__(self, tokens: Tokens, enough: int) -> None:
        self.tokens, self.enough = tokens, enough
        # Clips; those without a text; those of one that cannot be written.
        self.met, self.silent, self.unwritten = 0, 0, 0
        self.first_silent = ""
        self.lacking: Counter[str] = Counter()

    def of(self, cuts: Iterable[Cut]) -> dict[str, list[int]]:
        """The labels by the cut's id. Clips without text, or with one that the tokens cannot write, are left out.

        They are counted and named. A text without a word, as of punctuation alone, has no labels.

        Raises:
            UserError: more than 1 % of the clips met so far are left out.
        """
        targets, before = {}, self.left_out
        for cut in cuts:
            self.met += 1
            text = text_of(cut)
            ids, lacking = ([], []) if text is None else self.tokens.encode_known(text)
            if text is None:
                self.first_silent = self.first_silent or cut.id
                self.silent += 1
            elif lacking:
                self.unwritten += 1
                self.lacking.update(lacking)
            else:
                targets[cut.id] = ids
        if self.left_out > LEFT_OUT_AT_MOST * max(self.met, self.enough):
            raise UserError(
                f"{self.summary()}, and that is more than {LEFT_OUT_AT_MOST:.0%}; correct the texts in DATA, leave "
                "these rows out, or take tokens that have them"
            )
        if self.left_out.bit_length() > before.bit_length():  # at every doubling, where batch comes after batch
            log.warning("%s: these clips are left out", self.summary())
        return targets

    @property
    def left_out(self) -> int:
        return self.silent + self.unwritten

    def summary(self) -> str:
        """How many clips have no text or cannot be written, and what the tokens lack, most frequent first."""
        parts = []
        if self.silent:
            parts.append(
                f"{self.silent} of {self.met} clips have no text, or several supervisions (first: {self.first_silent})"
            )
        if self.unwritten:
            parts.append(f"the texts of {self.unwritten} of {self.met} clips hold what the tokens lack: {self._lacked}")
        return "; ".join(parts)

    @property
    def _lacked(self) -> str:
        named = ", ".join(f"{unit!r} ({count})" for unit, count in self.lacking.most_common(NAMED_AT_MOST))
        more = ", ..." if len(self.lacking) > NAMED_AT_MOST else ""
        return named + more


def check_texts(cuts: CutSet, tokens: Tokens) -> tuple[CutSet, Targets]:
    """The clips whose texts the tokens can write, and what gives the labels of a batch of them.

    A set in memory is checked as a whole, here. A lazy one is returned as it is: its first clips are checked here, all
    batch by batch, by `Targets.of`, which then gives fewer targets than it was given clips.

    Raises:
        UserError: as `Targets.of` says.
    """
    if cuts.is_lazy:
        first = first_of(cuts)
        Targets(tokens, ENOUGH if len(first) == LOOKED_AT else 0).of(first)
        return cuts, Targets(tokens, ENOUGH)
    targets = Targets(tokens, 0)
    usable = targets.of(cuts)
    return cuts.filter(lambda cut: cut.id in usable), targets


def first_of(cuts: CutSet) -> list[Cut]:
    """What of a lazy set can be looked at before a run begins: some clips, where all would have to be read through."""
    return list(islice(cuts, LOOKED_AT))


def text_of(cut: Cut) -> str | None:
    """The text; None where there is none, or none but spaces, as manifests for recognition have it."""
    texts = [supervision.text or "" for supervision in cut.supervisions]
    return texts[0] if len(texts) == 1 and texts[0].strip() else None


def too_long_for_ctc(targets: Sequence[Sequence[int]], frames: Int[Tensor, "batch"]) -> Bool[Tensor, "batch"]:
    """Which targets have no path of CTC in so many frames: a label takes one, and a blank between two equal ones."""
    needed = [len(ids) + sum(a == b for a, b in pairwise(ids)) for ids in targets]
    return torch.tensor(needed, device=frames.device) > frames
