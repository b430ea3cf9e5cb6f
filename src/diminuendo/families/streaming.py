"""Features and encoder states of an utterance that is not over yet, as the whole one will have them.

All that stream are streaming Nemotron's: its extractor norms nothing over an utterance, its convolutions see the past
alone, and its attention sees chunks of lookahead + 1 frames, of which the whole chunk sees all.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import NemotronAsrStreamingFeatureExtractor
from transformers.models.nemotron_asr_streaming.modeling_nemotron_asr_streaming import (
    NemotronAsrStreamingEncoderCausalConv2D,
    NemotronAsrStreamingEncoderCausalConvPaddingCache,
)

from diminuendo.errors import UserError
from diminuendo.families.family import Features, Model


class FeatureStream:
    """The features that an extractor makes of a whole utterance, from samples that come in chunks of any size.

    A feature is made of the `win_length` samples around its own. The Fourier transform spans more, `n_fft`, but its
    window is 0 there and at its ends: so neither what follows nor pre-emphasis, which lacks the sample before a slice,
    can be heard, and a feature is there as soon as half of a window has come. UserError for an extractor of others.
    """

    def __init__(self, extractor: Any) -> None:
        if not isinstance(extractor, NemotronAsrStreamingFeatureExtractor):
            raise UserError(
                f"MODEL's extractor is a {type(extractor).__name__}; streaming needs one that norms nothing over whole "
                "clips, NemotronAsrStreamingFeatureExtractor, in preprocessor_config.json"
            )
        self.extractor = extractor
        self.unweighted = (extractor.n_fft - extractor.win_length) // 2
        self.held = torch.zeros(extractor.n_fft // 2)  # from the first sample of the next feature's transform on

    def push(self, samples: Float[Tensor, " samples"]) -> Float[Tensor, "features bands"]:
        """Those features that are complete now."""
        made_of, hop = self.extractor.n_fft - self.unweighted, self.extractor.hop_length
        self.held = torch.cat([self.held, samples])
        count = (len(self.held) - made_of) // hop + 1
        if count < 1:
            return self._none()
        slice_ = self.held[: (count - 1) * hop + made_of]
        self.held = self.held[count * hop :]
        return self._features(F.pad(slice_, (0, self.unweighted)))

    def finish(self) -> Float[Tensor, "features bands"]:
        """The last features, whose windows reach over the end: one for every `hop_length` samples that there are."""
        if len(self.held) - self.extractor.n_fft // 2 < self.extractor.hop_length:
            return self._none()
        return self._features(self.held, is_last_audio_chunk=True)

    def _features(self, samples: Tensor, **options: bool) -> Tensor:
        rate = self.extractor.sampling_rate
        made = self.extractor(samples.numpy(), sampling_rate=rate, return_tensors="pt", center=False, **options)
        features: Tensor = made["input_features"][0]
        return features

    def _none(self) -> Tensor:
        return torch.zeros(0, self.extractor.feature_size)


class _Padding(NemotronAsrStreamingEncoderCausalConvPaddingCache):
    """What convolutions keep of the past; behind the last chunk they read the zeros that a whole utterance has there.

    Each stage of the subsampling has its own: features of 0 would not do, as biases make something of them.
    """

    ended = False

    def update(self, hidden_states: Tensor, cache_key: str, conv_module: Any) -> Tensor:
        padded: Tensor = super().update(hidden_states, cache_key, conv_module)
        if self.ended and isinstance(conv_module, NemotronAsrStreamingEncoderCausalConv2D):
            padded = F.pad(padded, (0, 0, 0, conv_module.time_pad[1]))
        return padded


class EncoderStream:
    """An encoder's last states of an utterance, from its features in any portions, by chunks of lookahead + 1 frames.

    made_of: what the frames are made of. The encoder must be in evaluation mode.
    """

    def __init__(self, encoder: Model, made_of: Features, lookahead: int) -> None:
        self.encoder, self.lookahead = encoder, lookahead
        self.size = made_of.stacked * (lookahead + 1)
        self.needed = self.size + made_of.first  # the first frame has no past to see
        self.held = torch.zeros(1, 0, encoder.config.num_mel_bins, device=encoder.device)
        self.past: Any = None
        self.padding = _Padding()

    def push(self, features: Float[Tensor, "features bands"]) -> Iterator[Float[Tensor, "1 frames dim"]]:
        """The states of one chunk after the other, of those that are complete now."""
        self.held = torch.cat([self.held, features.to(self.held.device)[None]], 1)
        while self.held.shape[1] >= self.needed:
            chunk, self.held = self.held[:, : self.needed], self.held[:, self.needed :]
            self.needed = self.size
            yield self._states(chunk)

    def finish(self) -> Iterator[Float[Tensor, "1 frames dim"]]:
        """The states of the last chunk, if a part of one is left; nothing can follow."""
        if self.held.shape[1]:
            self.padding.ended = True
            yield self._states(self.held)
            self.held = self.held[:, :0]

    def _states(self, chunk: Float[Tensor, "1 features bands"]) -> Float[Tensor, "1 frames dim"]:
        output = self.encoder(
            chunk,
            use_cache=True,
            past_key_values=self.past,
            padding_cache=self.padding,
            num_lookahead_tokens=self.lookahead,
        )
        self.past = output.past_key_values
        states: Tensor = output.last_hidden_state
        return states
