"""A recogniser around an encoder: the encoder's weights, and a head with fresh ones."""

from typing import Any, Literal

from diminuendo.errors import UserError
from diminuendo.families.build import OF_ONE_CLASS, described
from diminuendo.families.family import Architecture, Model, Task, is_ragged, shape_before
from diminuendo.families.registry import encoder_config, family_of
from diminuendo.families.transducer import is_transducer
from diminuendo.modules.transducer import LSTM_AXIS, TRANSDUCER_AXES, is_stateless
from diminuendo.structure.shape import Shape, shape_of

Predictor = Literal["lstm", "stateless"]

MAX_SYMBOLS = 10  # a frame, decoding greedily: Parakeet's


def with_head(
    model: Model, task: Task, labels: int, *, width: int = 256, layers: int = 1, predictor: Predictor = "lstm"
) -> Model:
    """A recogniser of `labels` tokens and a blank, the last id, with the encoder of `model` (its weights copied).

    A head of the model is left behind. width, layers: of a transducer's predictor and joint network; predictor: an LSTM
    or the last two labels, which has one layer. An encoder that was compressed stays so; transducers that transformers
    has none for, those of some families and all with a stateless predictor, come as our class, uncompressed. The head
    is drawn from torch's generator. Raises UserError for a task that the family has no recogniser for.
    """
    stateless = task != "ctc" and predictor == "stateless"
    family = family_of(model)
    fitting = [architecture for architecture in family.architectures if architecture.task == task]
    if not fitting:
        known = sorted({str(architecture.task) for architecture in family.architectures if architecture.task})
        raise UserError(f"--task {task}: {encoder_config(model).model_type} has no such recogniser; known: {known}")
    (architecture,) = fitting
    encoder = family.encoder(model)
    ours = is_ragged(model) or architecture.stock is None or stateless
    shape: Shape = {**shape_of(family.axes(encoder)), **shape_before(encoder)} if ours else {}
    if task != "ctc" and ours:
        shape |= {axis: width for axis in TRANSDUCER_AXES if not (stateless and axis == LSTM_AXIS)}
    head: dict[str, Any] = {"decoder_hidden_size": width, "num_decoder_layers": layers} if task != "ctc" else {}
    if stateless:
        head["predictor"] = predictor
    config = _config(architecture, encoder.config, task, labels, head, shape if ours else None)
    recogniser = (architecture.ragged if ours else architecture.stock)(config).to(encoder.device)
    source = encoder.state_dict() if is_ragged(model) or not ours else family.plain(encoder).state_dict()
    inside = family.encoder(recogniser)
    inside.load_state_dict(source)
    family.mask_padding(recogniser)
    if stateless:
        recogniser.decoder.reset_parameters()
    if task != "ctc":
        generation = recogniser.generation_config
        generation.decoder_start_token_id = generation.pad_token_id = labels
        generation.bos_token_id = generation.eos_token_id = None  # of text models: here they are labels like any other
    return recogniser.eval()


def head_like(model: Model) -> dict[str, Any]:
    """What `with_head` takes to give the head of a model anew, as wide as its predictor; of CTC nothing."""
    if not is_transducer(model):
        return {}
    if is_stateless(model):
        return {"width": model.decoder.embedding.embedding_dim, "predictor": "stateless"}
    return {"width": model.decoder.lstm.hidden_size, "layers": model.decoder.lstm.num_layers}


def _config(
    architecture: Architecture, encoder: Any, task: Task, labels: int, head: dict[str, Any], shape: Shape | None
) -> Any:
    """The recogniser's configuration: around the encoder's, or where that is flat the encoder's with more."""
    blank = labels
    values: dict[str, Any] = {"vocab_size": labels + 1, "pad_token_id": blank}
    if task == "ctc":
        values |= {"ctc_zero_infinity": True, "ctc_loss_reduction": "mean"}
    else:
        values |= {"blank_token_id": blank, "max_symbols_per_step": MAX_SYMBOLS, "is_encoder_decoder": True, **head}
    # A flat configuration may have the predictor of a head that is left behind.
    plain = {key: value for key, value in encoder.to_dict().items() if key not in (*OF_ONE_CLASS, "predictor")}
    config_class = architecture.classes[0].config_class
    if config_class.sub_configs_defaults:
        values["encoder_config"] = plain
    else:
        values = {**plain, **values}
    if shape is None:
        return config_class(**values)
    return architecture.ragged.config_class(**values, diminuendo=described(shape, encoder))
