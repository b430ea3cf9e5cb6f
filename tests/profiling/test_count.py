import json

import pytest
import torch
from torch import nn
from transformers import HubertConfig, HubertModel

from diminuendo.errors import UserError
from diminuendo.profiling.count import count_macs_per_second, count_parameters, saved_bytes
from tiny import tiny_model


def test_hubert_base_has_94_million_parameters_and_costs_36_billion_macs_in_5_seconds():
    with torch.device("meta"):
        model = HubertModel(HubertConfig())
    assert count_parameters(model) == 94_371_712
    model.to_empty(device="cpu")
    assert round(5 * count_macs_per_second(model, seconds=5) / 1e9, 2) == 35.84


def test_macs_do_not_depend_on_the_attention_implementation_and_leave_it_alone():
    models = [tiny_model(attn_implementation=name) for name in ("eager", "sdpa")]
    eager, sdpa = (count_macs_per_second(model, seconds=1) for model in models)
    assert eager == sdpa
    assert [model.config._attn_implementation for model in models] == ["eager", "sdpa"]


def test_macs_of_a_linear_layer_are_positions_times_weights():
    class Frames(nn.Module):
        main_input_name, device, dtype = "input_values", torch.device("cpu"), torch.float32

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(320, 7)

        def forward(self, input_values):
            return self.linear(input_values.unflatten(1, (-1, 320)))

    assert count_macs_per_second(Frames(), seconds=2) == 50 * 320 * 7


def test_counting_runs_in_evaluation_mode_and_restores_every_module_even_after_an_error():
    model = tiny_model().train()
    model.feature_extractor.eval()
    before = [module.training for module in model.modules()]
    seen = []

    def look_and_fail(module, args, output):
        seen.append((module.training, torch.is_grad_enabled()))
        raise RuntimeError

    handle = model.encoder.register_forward_hook(look_and_fail)
    with pytest.raises(RuntimeError):
        count_macs_per_second(model, seconds=1)
    assert seen == [(False, False)]
    assert [module.training for module in model.modules()] == before
    handle.remove()
    count_macs_per_second(model, seconds=1)
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("ctc", [False, True])
def test_saved_bytes_are_those_of_the_file_without_its_header(tmp_path, ctc):
    model = tiny_model(ctc=ctc)
    model.save_pretrained(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    tensors = json.loads(content[8:header]).keys() - {"__metadata__"}
    assert tensors
    assert saved_bytes(model) == len(content) - header


def test_a_shared_tensor_counts_once_and_a_buffer_only_in_bytes():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    model.register_buffer("kept", torch.zeros(5, dtype=torch.float16))
    model.register_buffer("not_saved", torch.zeros(5), persistent=False)
    assert count_parameters(model) == 9
    assert saved_bytes(model) == 4 * 9 + 2 * 5


def test_a_model_that_does_not_read_waveforms_is_refused_by_name():
    model = tiny_model()
    model.main_input_name = "input_features"
    with pytest.raises(UserError, match="got HubertModel, which reads input_features"):
        count_macs_per_second(model)


def test_a_clip_of_no_length_is_refused():
    with pytest.raises(UserError, match="more than 0 seconds, got -1"):
        count_macs_per_second(tiny_model(), seconds=-1)
