"""Encoder–decoders: with our heads they give the very logits of plain transformers' own models."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForSeq2SeqLM, EncoderDecoderConfig, PreTrainedModel

from llm_arch.backbones import cross
from llm_arch.backbones.encoder_decoder import EncoderDecoder
from llm_arch.backbones.load import backbone_from
from llm_arch.backbones.packed import PackedMap
from llm_arch.backbones.pretrained import Pretrained
from llm_arch.data.collate import make_batch
from llm_arch.heads.language_model import LanguageModel
from llm_arch.heads.masked_language_model import MaskedLanguageModel
from llm_arch.types import Batch, LabelSpace, UserError

VOCAB = 60
START = 4
TOKENS: dict[str, Any] = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": START}
T5: dict[str, Any] = {
    "model_type": "t5",
    "vocab_size": VOCAB,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    **TOKENS,
}
BART: dict[str, Any] = {
    "vocab_size": VOCAB,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 40,
    "forced_eos_token_id": None,
    **TOKENS,
}
HALF: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "t5": T5,
    "t5, untied": {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "bart": {**BART, "model_type": "bart"},
    "mbart": {**BART, "model_type": "mbart", "scale_embedding": True},
    "marian": {**BART, "model_type": "marian", "scale_embedding": True},
    "bert to bert": {"encoder": {**HALF, "model_type": "bert"}, "decoder": {**HALF, "model_type": "bert"}},
    "bert to gpt2": {"encoder": {**HALF, "model_type": "bert"}, "decoder": {**HALF, "model_type": "gpt2"}},
    "roberta to bert": {
        "encoder": {**HALF, "model_type": "roberta", "num_hidden_layers": 3},
        "decoder": {**HALF, "model_type": "bert", "hidden_size": 24},
    },
}
SOURCES = [[5, 6, 7, 8, 9, 20, 3], [9, 11, 3], [30, 31, 32, 33, 3]]
TARGETS = [[7, 8, 20], [9, 11, 50, 51, 52, 3], [40]]


def stock_of(name: str) -> PreTrainedModel:
    """A model of transformers whose every weight counts."""
    torch.manual_seed(1)
    values = copy.deepcopy(CONFIGS[name])
    if "encoder" in values:
        parts = {k: AutoConfig.for_model(**v) for k, v in values.items()}
        config: Any = EncoderDecoderConfig.from_encoder_decoder_configs(parts["encoder"], parts["decoder"])
        config.decoder_start_token_id, config.pad_token_id = START, 1
    else:
        config = AutoConfig.for_model(**values)
    model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    if name == "t5, untied":
        model.lm_head.weight = nn.Parameter(torch.empty(VOCAB, 16))
    with torch.no_grad():
        for key, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.requires_grad and value.dim() == 1:
                value.normal_(1.0 if "norm" in key.lower() and key.endswith("weight") else 0.0, 0.3)
            elif value.requires_grad or "logits_bias" in key:
                value.normal_(0, 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[PreTrainedModel, str]]:
    """A model of transformers and the folder it lies in, made once."""
    made: dict[str, tuple[PreTrainedModel, str]] = {}

    def saved(name: str) -> tuple[PreTrainedModel, str]:
        if name not in made:
            folder = str(tmp_path_factory.mktemp("stock") / "model")
            model = stock_of(name)
            model.save_pretrained(folder)
            made[name] = model, folder
        return made[name]

    return saved


Saved = Callable[[str], tuple[PreTrainedModel, str]]


def batch_of(
    sources: list[list[int]] = SOURCES, targets: list[list[int]] = TARGETS, layout: str = "flat", placeholder: int = 0
) -> Batch:
    """The decoder's batch, a placeholder in front of each of its texts, with the encoder's as its source."""

    def made(rows: list[list[int]]) -> Batch:
        return make_batch(
            {"input_ids": rows, "token_type_ids": [None] * len(rows), "index": list(range(len(rows)))}, layout
        )

    return replace(made([[placeholder, *row] for row in targets]), source=made(sources))


def expected_logits(model: PreTrainedModel, start: int = START) -> Tensor:
    """Row by row, so that nothing is padded."""
    rows = [
        model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([[start, *target]])).logits[0]
        for source, target in zip(SOURCES, TARGETS, strict=True)
    ]
    return torch.cat(rows)


def head_of(backbone: EncoderDecoder) -> LanguageModel:
    head = LanguageModel(backbone.hidden_size, LabelSpace(()))
    head.bind(backbone)
    return head.eval()


def real(states: Tensor, batch: Batch) -> Tensor:
    return states if batch.valid is None else states[batch.valid]


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


# Equal to plain transformers


@pytest.mark.parametrize("name", list(CONFIGS))
@torch.no_grad()
def test_logits_are_those_of_transformers(name: str, saved: Saved) -> None:
    model, folder = saved(name)
    backbone = backbone_from(folder).eval()
    assert isinstance(backbone, EncoderDecoder)
    head, expected = head_of(backbone), expected_logits(model)
    assert expected.std() > 0.1
    for layout in ("flat", "padded"):
        batch = batch_of(layout=layout)
        close(real(head.logits(backbone(batch).last_TD), batch), expected)
    assert (head.weight is not None) == (name == "t5, untied")
    assert (head.bias is not None) == (name not in ("t5", "t5, untied", "bert to gpt2"))


@pytest.mark.parametrize("name", ["t5", "bart", "bert to bert"])
def test_loss_and_gradients_are_those_of_transformers(name: str, saved: Saved) -> None:
    model, folder = saved(name)
    backbone = EncoderDecoder(folder, share_embeddings=False).eval()
    head = head_of(backbone)
    targets = torch.tensor([t for row in TARGETS for t in [*row, 3]])
    model.zero_grad()
    cross_entropy(expected_logits(model), targets).backward()
    theirs = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    largest = max(float(g.abs().max()) for g in theirs.values())
    for layout in ("flat", "padded"):
        backbone.zero_grad()
        batch = batch_of(layout=layout)
        cross_entropy(real(head.logits(backbone(batch).last_TD), batch), targets).backward()
        ours = {k: p.grad for k, p in backbone.model.named_parameters()}
        assert [
            k for k, g in ours.items() if g is None
        ] == []  # one without a gradient breaks training on several devices
        for key, gradient in ours.items():
            assert gradient is not None
            twin = next(g for k, g in theirs.items() if k in (key, f"model.{key}"))
            torch.testing.assert_close(gradient, twin, rtol=1e-4, atol=1e-5 * max(1.0, largest), msg=key)
    model.zero_grad()


@pytest.mark.parametrize("name", list(CONFIGS))
@torch.no_grad()
def test_layers_are_those_of_the_decoder(name: str, saved: Saved) -> None:
    model, folder = saved(name)
    backbone = EncoderDecoder(folder).eval()
    batch = batch_of()
    found = backbone(batch, all_hidden=True)
    assert found.layers is not None
    assert torch.equal(found.last_TD, backbone(batch).last_TD)
    source, target = torch.tensor(SOURCES[:1]), torch.tensor([[START, *TARGETS[0]]])
    expected = model(input_ids=source, decoder_input_ids=target, output_hidden_states=True).decoder_hidden_states
    assert len(found.layers) == len(expected)
    for ours, theirs in zip(found.layers, expected, strict=True):
        close(ours[: target.shape[1]], theirs[0])


@pytest.mark.parametrize("name", ["t5", "bart", "mbart", "marian", "bert to bert"])
def test_given_word_embeddings_are_as_good_as_ids(name: str, saved: Saved) -> None:
    backbone = EncoderDecoder(saved(name)[1]).eval()
    for layout in ("flat", "padded"):
        batch = batch_of(layout=layout)
        words = backbone.embeddings(batch.input_ids).detach().requires_grad_()
        by_words = backbone(batch, inputs_embeds=words)
        close(real(by_words.last_TD, batch), real(backbone(batch).last_TD, batch), 1e-6)
        (gradient,) = torch.autograd.grad(real(by_words.last_TD, batch).pow(3).sum(), words)
        own = torch.ones(len(words), dtype=torch.bool) if batch.valid is None else batch.valid.clone()
        own[batch.starts] = False  # the model's own token stands there
        assert gradient[own].abs().sum(1).gt(0).all()
        assert not gradient[~own].any()


@pytest.mark.parametrize("name", ["t5", "bart", "marian", "bert to bert"])
@torch.no_grad()
def test_company_does_not_matter_and_the_source_does(name: str, saved: Saved) -> None:
    backbone = EncoderDecoder(saved(name)[1]).eval()
    together = backbone(batch_of()).last_TD
    alone = [backbone(batch_of([s], [t])).last_TD for s, t in zip(SOURCES, TARGETS, strict=True)]
    close(together, torch.cat(alone))
    changed = backbone(batch_of([SOURCES[0], [9, 12, 3], SOURCES[2]])).last_TD
    second = slice(4, 4 + 7)
    assert not torch.allclose(changed[second], together[second], atol=1e-3)
    assert torch.equal(changed[:4], together[:4])
    # No state depends on a later token.
    later = backbone(batch_of(targets=[TARGETS[0], [*TARGETS[1][:-1], 13], TARGETS[2]])).last_TD
    close(later[:10], together[:10], 1e-6)
    assert not torch.allclose(later[10], together[10], atol=1e-3)


@torch.no_grad()
def test_the_first_token_is_the_models_own(saved: Saved) -> None:
    backbone = EncoderDecoder(saved("bart")[1]).eval()
    assert backbone.start == START
    assert torch.equal(backbone(batch_of(placeholder=9)).last_TD, backbone(batch_of()).last_TD)
    two = EncoderDecoder(encoder="tiny:bert").eval()
    assert two.start is None
    assert not torch.equal(two(batch_of(placeholder=9)).last_TD, two(batch_of()).last_TD)
    assert EncoderDecoder(encoder="tiny:modernbert", decoder="tiny:bert").start == 101


@torch.no_grad()
def test_the_encoder_is_told_which_text_of_a_pair_a_token_is_of(saved: Saved) -> None:
    model, folder = saved("bert to bert")
    backbone = EncoderDecoder(folder).eval()
    types = [[0, 0, 0, 1, 1, 1, 1]]
    pair = make_batch({"input_ids": SOURCES[:1], "token_type_ids": types, "index": [0]})
    batch = replace(batch_of(SOURCES[:1], TARGETS[:1]), source=pair)
    target = torch.tensor([[START, *TARGETS[0]]])
    expected = model(torch.tensor(SOURCES[:1]), token_type_ids=torch.tensor(types), decoder_input_ids=target).logits
    close(head_of(backbone).logits(backbone(batch).last_TD), expected[0])


def test_a_batch_without_a_source() -> None:
    backbone = EncoderDecoder(encoder="tiny:bert")
    batch = replace(batch_of(), source=None)
    with pytest.raises(UserError, match="reads one text and writes another, .* take CompletionData, TranslationData"):
        backbone(batch)
    with pytest.raises(UserError, match="take CompletionData"):
        backbone.generate(batch, lambda states: states, end=[3], pad=0, max_new_tokens=1)


@pytest.mark.parametrize("name", ["bert to bert", "roberta to bert"])
@torch.no_grad()
def test_two_encoders_run_without_padding(name: str, saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = EncoderDecoder(saved(name)[1]).eval()
    seen: list[tuple[int, ...]] = []
    attend = cross.cross_attention

    def watched(query: Tensor, key: Tensor, *arguments: Any) -> Tensor:
        seen.append((len(query), len(key)))
        return attend(query, key, *arguments)

    monkeypatch.setattr(cross, "cross_attention", watched)
    before = backbone(batch_of()).last_TD
    tokens = (sum(map(len, TARGETS)) + len(TARGETS), sum(map(len, SOURCES)))
    assert seen == [tokens] * 2
    backbone.layout = "padded"
    close(backbone(batch_of()).last_TD, before)
    assert len(seen) == 2


def test_dropout_of_attention_to_the_encoder(saved: Saved) -> None:
    """In the mean it gives what is given without."""
    backbone = EncoderDecoder(saved("bert to bert")[1])
    maps = cross.CrossMap(*(PackedMap(b) for b in (batch_of(), batch_of().source) if b is not None))
    parts = [torch.randn(n, 4, 4) for n in (13, 15, 15)]
    query, key, value = (p.requires_grad_() for p in parts)
    expected = cross.cross_attention(query, key, value, maps, 0.5, 0.0)
    draws = torch.stack([cross.cross_attention(query, key, value, maps, 0.5, 0.4) for _ in range(600)])
    assert draws.std(0).mean() > 0.05
    assert (draws.mean(0) - expected).abs().mean() < 4 * draws.std() / 600**0.5
    gradients = [torch.autograd.grad(out.sum(), (query, key, value)) for out in (expected, draws[0])]
    assert all(g.isfinite().all() for one in gradients for g in one)
    assert backbone.layout == "flat"


# Training


@pytest.mark.parametrize("name", ["t5", "bart", "bert to bert"])
def test_bf16_is_near_fp32_and_gives_gradients(name: str, saved: Saved) -> None:
    backbone = EncoderDecoder(saved(name)[1]).eval()
    states = []
    for half in (False, True):
        backbone.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            states.append(backbone(batch_of()).last_TD.float())
        states[-1].square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())
    assert (states[1] - states[0]).abs().mean() < 0.05 * states[0].abs().mean()


@pytest.mark.parametrize("name", ["t5", "bart", "bert to bert"])
def test_dropout(name: str, saved: Saved) -> None:
    backbone = EncoderDecoder(saved(name)[1])
    assert all(module.training for module in backbone.model.modules())
    batch, weights = batch_of(), {k: v.clone() for k, v in backbone.state_dict().items()}
    torch.manual_seed(0)
    first, second = backbone(batch).last_TD, backbone(batch).last_TD
    assert not torch.allclose(first, second)
    torch.manual_seed(0)
    assert torch.equal(backbone(batch).last_TD, first)
    before = backbone.eval()(batch).last_TD
    backbone.set_dropout(0.37)
    assert all(module.training for module in backbone.model.modules())
    assert {m.p for m in backbone.modules() if isinstance(m, nn.Dropout)} <= {0.37}
    assert all(torch.equal(v, weights[k]) for k, v in backbone.state_dict().items())
    assert torch.equal(backbone.eval()(batch).last_TD, before)
    assert str(backbone.config.to_dict()).count("0.37") >= 1
    assert not torch.allclose(backbone.train()(batch).last_TD, before)
    backbone.set_dropout(0.0)
    close(backbone.train()(batch).last_TD, before, 1e-6)
    with pytest.raises(UserError, match=r"dropout must be in \[0, 1\), got 1.0"):
        backbone.set_dropout(1.0)


@pytest.mark.parametrize("name", ["t5", "bart", "bert to bert"])
def test_checkpointing_gives_the_same_gradients_with_dropout(name: str, saved: Saved) -> None:
    gradients = []
    for checkpointing in (False, True):
        backbone = EncoderDecoder(saved(name)[1], gradient_checkpointing=checkpointing)
        torch.manual_seed(3)
        states = backbone(batch_of()).last_TD
        (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
        gradients.append([p.grad for p in backbone.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert one is not None
        close(other, one, 1e-6)


def test_a_token_with_the_id_of_padding_learns(saved: Saved) -> None:
    for name in ("bart", "bert to bert"):
        backbone = EncoderDecoder(saved(name)[1])
        backbone(batch_of([[5, 1, 6]], [[1, 7]])).last_TD.pow(3).sum().backward()
        for part in (backbone.model.get_encoder(), backbone.model.get_decoder()):
            gradient = part.get_input_embeddings().weight.grad
            assert gradient is not None
            assert gradient[[1, 5 if part is backbone.model.get_encoder() else 7]].abs().sum(1).gt(0).all()


# What it says of itself, and from where


@pytest.mark.parametrize(
    ("name", "max_length", "layers"),
    [("t5", None, 5), ("bart", 40, 5), ("marian", 40, 5), ("bert to bert", 40, 4), ("roberta to bert", 38, 5)],
)
def test_what_a_backbone_says_of_itself(name: str, max_length: int | None, layers: int, saved: Saved) -> None:
    backbone = EncoderDecoder(saved(name)[1])
    assert (backbone.encoder_decoder, backbone.causal, backbone.is_decoder, backbone.pooling) == (True,) * 3 + ("last",)
    assert backbone.max_length == max_length
    assert len(backbone.layers) == layers
    assert backbone.layers[-1] in backbone.model.get_decoder().modules()
    assert backbone.layers[0] in backbone.model.get_encoder().modules()
    assert backbone.embeddings.weight.shape == (VOCAB, backbone.hidden_size)
    assert backbone.output_head("masked") is None
    if max_length is not None:
        backbone(batch_of([[5] * max_length], [[6] * (max_length - 1)]))


@pytest.mark.parametrize("name", list(CONFIGS))
@torch.no_grad()
def test_what_was_saved_loads_here_and_in_plain_transformers(name: str, saved: Saved, tmp_path: Path) -> None:
    model, folder = saved(name)
    backbone = EncoderDecoder(folder).eval()
    before = backbone(batch_of()).last_TD
    record = json.loads(json.dumps(backbone.save(tmp_path)))
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}
    for again in (EncoderDecoder.load(tmp_path, record), EncoderDecoder(str(tmp_path)), backbone_from(str(tmp_path))):
        assert torch.equal(again.eval()(batch_of()).last_TD, before)
        assert len(list(again.parameters())) == len(list(backbone.parameters()))
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    source, target = torch.tensor(SOURCES[:1]), torch.tensor([[START, *TARGETS[0]]])
    arguments: dict[str, Any] = {"decoder_input_ids": target, "output_hidden_states": True}
    states, expected = (m(source, **arguments).decoder_hidden_states[-1] for m in (plain, model))
    close(states, expected)


def test_loading_and_saving_are_quiet(saved: Saved, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folders = [saved(name)[1] for name in ("t5", "bert to bert")]
    capfd.readouterr()
    for folder in folders:
        EncoderDecoder(folder).save(tmp_path)
    EncoderDecoder(encoder="tiny:bert")
    assert capfd.readouterr() == ("", "")


def unsized(kind: str) -> dict[str, Any]:
    values = {**CONFIGS[kind]}
    return {k: v for k, v in values.items() if k != "vocab_size" and not k.endswith("_token_id")}


@pytest.mark.parametrize("name", ["t5", "t5, untied", "bart", "marian"])
def test_the_data_says_how_many_tokens_there_are(name: str, tmp_path: Path) -> None:
    backbone = EncoderDecoder(config=unsized(name))
    with pytest.raises(UserError, match="EncoderDecoder does not know how many tokens there are: set vocab_size"):
        backbone(batch_of())
    with pytest.raises(UserError, match="does not know how many tokens"):
        backbone.save(tmp_path)
    backbone.set_dropout(0.25)
    backbone.grow(VOCAB + 3)
    assert backbone.embeddings.num_embeddings == VOCAB + 3
    assert "0.25" in str(backbone.config.to_dict())
    assert getattr(backbone.config, "scale_decoder_outputs", False) == (name == "t5")
    assert backbone.start == (0 if name == "marian" else None)
    before = backbone.eval()(batch_of()).last_TD
    again = EncoderDecoder.load(tmp_path, backbone.save(tmp_path)).eval()
    assert torch.equal(again(batch_of()).last_TD, before)
    assert EncoderDecoder(config={**CONFIGS["bart"]}).embeddings.num_embeddings == VOCAB


@pytest.mark.parametrize("name", ["t5", "bart", "marian", "bert to bert", "roberta to bert"])
@torch.no_grad()
def test_room_for_tokens_that_were_added(name: str, saved: Saved, tmp_path: Path) -> None:
    backbone = EncoderDecoder(saved(name)[1]).eval()
    before = backbone(batch_of()).last_TD
    count = len(list(backbone.parameters()))
    backbone.grow(VOCAB + 2)
    backbone.grow(VOCAB)
    assert torch.equal(backbone(batch_of()).last_TD, before)
    assert len(list(backbone.parameters())) == count
    for part in (backbone.model.get_encoder(), backbone.model.get_decoder()):
        table = part.get_input_embeddings().weight
        assert len(table) == VOCAB + 2
        assert (table[-2:] - table[:-2].mean(0)).norm() < 0.3 * (table[:2] - table[:-2].mean(0)).norm()
    backbone(batch_of([[VOCAB + 1, 5]], [[VOCAB, 6]]))
    head = head_of(backbone)
    assert head.bias is None or len(head.bias) == VOCAB + 2
    again = EncoderDecoder.load(tmp_path, backbone.save(tmp_path)).eval()
    assert torch.equal(again(batch_of()).last_TD, before)
    with pytest.raises(UserError, match="it was not trained with this tokenizer"):
        backbone.grow(5000)


# Two models joined


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A masked language model as transformers writes it, whose every weight counts."""
    from transformers import AutoModelForMaskedLM

    torch.manual_seed(2)
    config = AutoConfig.for_model("bert", **{k: v for k, v in HALF.items() if not k.endswith("_token_id")})
    model = AutoModelForMaskedLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.3)
    model.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@torch.no_grad()
def test_both_start_from_a_checkpoint(bert: Path) -> None:
    backbone = EncoderDecoder(encoder=str(bert)).eval()
    encoder = Pretrained(str(bert)).eval()
    ours = dict(backbone.model.named_parameters())
    for key, value in encoder.model.named_parameters():
        assert torch.equal(ours[f"encoder.{key}"], value)
        twin = ours.get(f"decoder.bert.{key}")
        assert "word_embeddings" in key if twin is None else torch.equal(twin, value)
    assert backbone.embeddings.weight is backbone.model.encoder.get_input_embeddings().weight
    assert "crossattention" in str(ours.keys() - {f"encoder.{k}" for k, _ in encoder.model.named_parameters()})
    masked = MaskedLanguageModel(16, LabelSpace(()))
    masked.bind(encoder)
    states = torch.randn(3, 16)
    transform = backbone.model.decoder.cls.predictions.transform
    head = head_of(backbone)
    close(head.logits(transform(states)), masked.logits(states))
    assert head.bias is not None
    assert backbone.config.decoder.is_decoder
    assert backbone.config.decoder.add_cross_attention
    assert not backbone.config.encoder.is_decoder


@torch.no_grad()
def test_a_decoder_starts_from_a_head_of_ours(tmp_path: Path, tokenizer: str) -> None:
    from llm_arch.data.masked_tokens import MaskedTokenData
    from llm_arch.inference import save
    from llm_arch.task import Task

    task = Task(Pretrained("tiny:bert"), MaskedLanguageModel, LabelSpace(()))
    nn.init.normal_(task.head.bias)
    directory = save(task, MaskedTokenData(tokenizer=tokenizer, max_length=32), tmp_path / "model")
    backbone = EncoderDecoder(encoder=str(directory))
    states = torch.randn(3, 32)
    close(head_of(backbone).logits(backbone.model.decoder.cls.predictions.transform(states)), task.head.logits(states))


def test_which_embeddings_are_shared(bert: Path) -> None:
    def shares(**arguments: Any) -> bool:
        backbone = EncoderDecoder(**arguments)
        parts = (backbone.model.encoder, backbone.model.decoder)
        return parts[0].get_input_embeddings().weight is parts[1].get_input_embeddings().weight

    other = bert.parent / "other"
    Pretrained(config={**HALF, "model_type": "bert"}).save(other)
    assert shares(encoder=str(bert))
    assert not shares(encoder=str(bert), share_embeddings=False)
    assert not shares(encoder=str(bert), decoder=str(other))
    assert shares(encoder=str(bert), decoder=str(other), random_init=True)
    assert shares(encoder="tiny:bert")
    assert not shares(encoder="tiny:bert", share_embeddings=False)
    assert shares(encoder="tiny:bert", decoder="tiny:gpt2")
    # What was not trained takes the size, and what can be shared, of what was.
    wide = bert.parent / "wide"
    Pretrained(config={**HALF, "model_type": "bert", "hidden_size": 256}).save(wide)
    backbone = EncoderDecoder(encoder="mini:bert", decoder=str(wide))
    assert torch.equal(backbone.model.encoder.get_input_embeddings().weight, Pretrained(str(wide)).embeddings.weight)
    assert shares(encoder="mini:bert", decoder=str(wide))
    assert not shares(encoder="mini:bert", decoder=str(bert))


def test_joined_presets_wait_for_their_vocabulary(tmp_path: Path) -> None:
    backbone = EncoderDecoder(encoder="mini:bert")
    with pytest.raises(UserError, match="does not know how many tokens"):
        backbone(batch_of())
    backbone.grow(VOCAB)
    assert backbone.embeddings.weight.shape == (VOCAB, 256)
    assert backbone.embeddings.weight is backbone.model.encoder.get_input_embeddings().weight
    assert len(backbone.layers) == 8
    assert abs(float(backbone.layers[7].crossattention.self.query.weight.detach().std()) - 0.02) < 0.001
    assert not torch.equal(
        backbone.layers[0].attention.self.query.weight, backbone.layers[4].attention.self.query.weight
    )
    states = backbone.eval()(batch_of()).last_TD
    again = EncoderDecoder.load(tmp_path, backbone.save(tmp_path)).eval()
    assert torch.equal(again(batch_of()).last_TD, states)
    assert again.embeddings.weight is again.model.encoder.get_input_embeddings().weight


def test_a_backbone_can_be_copied(saved: Saved) -> None:
    backbone = EncoderDecoder(saved("bert to bert")[1]).eval()
    copied = copy.deepcopy(backbone)
    assert torch.equal(copied(batch_of()).last_TD, backbone(batch_of()).last_TD)


# What the user is told


def test_one_thing_to_build_from() -> None:
    for arguments in ({}, {"name": "here", "encoder": "tiny:bert"}, {"config": T5, "name": "here"}):
        with pytest.raises(UserError, match="needs one of these: name .*, config, encoder"):
            EncoderDecoder(**arguments)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="decoder is 'tiny:bert', but there is no encoder beside it"):
        EncoderDecoder(config=T5, decoder="tiny:bert")


def test_what_is_no_encoder_decoder(saved: Saved, bert: Path) -> None:
    with pytest.raises(UserError, match="bert is no encoder–decoder; take Pretrained in place of EncoderDecoder"):
        EncoderDecoder(str(bert))
    with pytest.raises(UserError, match="gpt2 is no encoder–decoder"):
        EncoderDecoder(config={**HALF, "model_type": "gpt2"})
    for name in ("t5", "bert to bert"):
        with pytest.raises(UserError, match="is an encoder–decoder; take EncoderDecoder in place of Pretrained"):
            Pretrained(saved(name)[1])
    with pytest.raises(UserError, match="t5 is an encoder–decoder"):
        EncoderDecoder(encoder=saved("t5")[1])
    with pytest.raises(UserError, match="llama can't be the decoder of an encoder–decoder, it attends to no encoder"):
        EncoderDecoder(encoder="tiny:bert", decoder="tiny:llama")
    with pytest.raises(UserError, match="transformers has no encoder–decoder of texts for model_type 'whisper'"):
        EncoderDecoder(config={"model_type": "whisper", "vocab_size": 99})


def test_pickled_weights_are_never_loaded(saved: Saved, tmp_path: Path) -> None:
    for name in ("t5", "bert to bert"):
        model, folder = saved(name)
        place = tmp_path / name
        place.mkdir()
        (place / "config.json").write_text((Path(folder) / "config.json").read_text())
        with pytest.raises(UserError, match=r"holds no weights \(model.safetensors\)"):
            EncoderDecoder(str(place))
        torch.save(model.state_dict(), place / "pytorch_model.bin")
        with pytest.raises(UserError, match="holds pickled weights only"):
            EncoderDecoder(str(place))


def test_weights_that_are_missing(saved: Saved, tmp_path: Path) -> None:
    for name, key in (("bart", "decoder_layers"), ("bert to bert", "decoder")):
        EncoderDecoder(saved(name)[1]).save(tmp_path / name)
        path = tmp_path / name / "config.json"
        config = json.loads(path.read_text())
        config[key] = 4 if key != "decoder" else {**config[key], "num_hidden_layers": 4}
        path.write_text(json.dumps(config))
        with pytest.raises(UserError, match="the weights do not fit the configuration: .* missing"):
            EncoderDecoder(str(tmp_path / name))
