"""What holds for every backbone that is trained from scratch: layouts, batch mates, saving, vectors, learning."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm_arch.backbones.convolutional import ConvolutionalEncoder, TextCNN
from llm_arch.backbones.load import backbone_of
from llm_arch.backbones.recurrent import RecurrentEncoder
from llm_arch.backbones.scratch import CONFIG, WEIGHTS, ScratchBackbone
from llm_arch.data import TextClassificationData
from llm_arch.data.collate import make_batch
from llm_arch.freezing import freeze_backbone
from llm_arch.heads.classification import SequenceClassification
from llm_arch.inference.directory import load, save
from llm_arch.task import Task
from llm_arch.trainer import Trainer
from llm_arch.types import Batch, LabelSpace, UserError

Make = Callable[..., ScratchBackbone]
KINDS: dict[str, Make] = {
    "textcnn": partial(TextCNN, filters=4, widths=(2, 3)),
    "cnn": partial(ConvolutionalEncoder, hidden_size=8, num_layers=2),
    "dilated cnn": partial(ConvolutionalEncoder, hidden_size=8, num_layers=3, dilation_growth=2, embedding_size=6),
    "causal cnn": partial(ConvolutionalEncoder, hidden_size=8, num_layers=2, causal=True),
    "bilstm": partial(RecurrentEncoder, hidden_size=8, num_layers=2, embedding_size=6),
    "lstm": partial(RecurrentEncoder, hidden_size=8, bidirectional=False),
    "bigru": partial(RecurrentEncoder, hidden_size=8, cell="gru"),
    "gru": partial(RecurrentEncoder, hidden_size=8, num_layers=2, cell="gru", bidirectional=False),
}
CAUSAL = {"causal cnn", "lstm", "gru"}
ROWS = [[5, 6, 7, 8], [9], [5, 9, 3, 3, 2, 11, 4], [3, 4], [8, 8, 8, 1]]
LABELS = LabelSpace(("off", "on"))


@pytest.fixture(params=list(KINDS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(name: str) -> Make:
    """Large embeddings, so that no difference is small beside the tolerance."""

    def make(**options: Any) -> ScratchBackbone:
        backbone = KINDS[name](**({"vocabulary_size": 20, "dropout": 0.0} | options))
        with torch.no_grad():
            backbone.words.weight.mul_(5)
        return backbone

    return make


def batch_of(rows: list[list[int]], layout: str = "flat", **labels: Tensor) -> Batch:
    columns = {"input_ids": rows, "token_type_ids": [None] * len(rows), "index": list(range(len(rows)))}
    return make_batch(columns, layout, labels)


def real(states_TD: Tensor, batch: Batch) -> Tensor:
    return states_TD if batch.valid is None else states_TD[batch.valid]


# The interface


def test_shapes_and_layers(make: Make, name: str) -> None:
    backbone = make()
    hidden = backbone(batch_of(ROWS), all_hidden=True)
    assert hidden.last_TD.shape == (18, 8)
    assert backbone.hidden_size == 8
    assert len(hidden.layers) == len(backbone.layers) + 1
    assert torch.equal(hidden.layers[-1], hidden.last_TD)
    assert backbone(batch_of(ROWS)).layers is None
    assert backbone.causal == backbone.is_decoder == (name in CAUSAL)
    assert backbone.pooling == ("last" if name in {"lstm", "gru"} else "max")
    assert backbone.max_length is None
    assert all(module.training for module in backbone.modules())


def test_every_parameter_learns_and_layers_differ(make: Make) -> None:
    backbone = make()
    batch = batch_of(ROWS)
    hidden = backbone(batch, all_hidden=True)
    hidden.last_TD.pow(3).sum().backward()
    for parameter_name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name
    assert all(layer.std() > 0.01 for layer in hidden.layers)


def test_flat_and_padded_agree(make: Make) -> None:
    backbone = make()
    head = SequenceClassification(8, LABELS, dropout=0.0)
    found = []
    for layout in ("flat", "padded"):
        for padding in (0, 13):  # what stands in the gaps does not count
            batch = batch_of(ROWS, layout, label=torch.tensor([0, 1, 1, 0, 1]))
            if batch.valid is not None:
                batch.input_ids[~batch.valid] = padding
            head.bind(backbone)
            hidden = backbone(batch, all_hidden=True)
            loss = head.loss(hidden, batch)
            gradients = torch.autograd.grad(loss.sum, list(backbone.parameters()))
            found.append(([real(layer, batch) for layer in hidden.layers], loss.sum, gradients))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-5)
    assert max(gradient.abs().max() for gradient in found[0][2]) > 1e-3


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_batch_mates_do_not_matter(make: Make, layout: str) -> None:
    backbone = make().double()
    batch = batch_of(ROWS, layout)
    together = real(backbone(batch).last_TD, batch).split([len(row) for row in ROWS])
    for row, states in zip(ROWS, together, strict=True):
        torch.testing.assert_close(states, backbone(batch_of([row])).last_TD, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_a_broken_neighbour_stays_alone(make: Make, layout: str) -> None:
    backbone = make()
    with torch.no_grad():
        backbone.words.weight[19] = float("nan")
    batch = batch_of([[5, 6, 7], [19, 19], [8, 9]], layout)
    finite = real(backbone(batch).last_TD, batch).isfinite().all(1)
    assert finite.tolist() == [True] * 3 + [False] * 2 + [True] * 2


def test_later_tokens_move_no_earlier_state_of_a_causal_backbone(make: Make, name: str) -> None:
    backbone = make()
    other = [list(row) for row in ROWS]
    other[2][4] = 17
    first, second = (backbone(batch_of(rows)).last_TD.split([len(row) for row in rows]) for rows in (ROWS, other))
    for i, (one, two) in enumerate(zip(first, second, strict=True)):
        if i != 2:
            assert torch.equal(one, two)
    assert torch.equal(first[2][:4], second[2][:4]) == (name in CAUSAL)
    assert not torch.equal(first[2][4], second[2][4])
    assert not torch.equal(first[2][5], second[2][5])


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_embeddings_from_outside(make: Make, layout: str) -> None:
    backbone = make().double()
    batch = batch_of([[5, 6, 7], [8]], layout)
    embedded_TE = backbone.embeddings(batch.input_ids).detach().requires_grad_()
    expected = real(backbone(batch).last_TD, batch)
    assert torch.equal(real(backbone(batch, inputs_embeds=embedded_TE).last_TD, batch), expected)

    def run(values_TE: Tensor) -> Tensor:
        return real(backbone(batch, inputs_embeds=values_TE).last_TD, batch)

    assert torch.autograd.gradcheck(run, (embedded_TE,))
    (gradient_TE,) = torch.autograd.grad(run(embedded_TE).pow(3).sum(), embedded_TE)
    assert (gradient_TE[batch.valid] if batch.valid is not None else gradient_TE).abs().sum(1).min() > 0
    if batch.valid is not None:
        assert gradient_TE[~batch.valid].abs().max() == 0


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_bf16(make: Make, layout: str) -> None:
    backbone = make()
    batch = batch_of(ROWS, layout)
    expected = real(backbone(batch).last_TD, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = real(backbone(batch).last_TD, batch)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.05)
    found.float().pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())
    assert backbone.bfloat16()(batch).last_TD.dtype == torch.bfloat16


# Dropout


def test_dropout_takes_whole_units_of_a_sequence(make: Make) -> None:
    batch = batch_of([[5, 6, 7] * 20, [8, 9] * 20] * 20)
    hidden_TD = torch.ones(len(batch.input_ids), 50)
    backbone = make(dropout=0.3)
    dropped_TD = backbone.drop(hidden_TD, batch)
    for states in dropped_TD.split(batch.lengths.tolist()):
        assert torch.equal(states, states[:1].expand_as(states))
    share = (dropped_TD[batch.starts] == 0).float().mean()
    assert abs(float(share) - 0.3) < 0.05
    assert torch.equal(dropped_TD[dropped_TD > 0].unique(), torch.tensor([1 / 0.7]))
    assert torch.equal(backbone.eval().drop(hidden_TD, batch), hidden_TD)


def test_dropout_is_the_same_in_both_layouts(make: Make) -> None:
    backbone = make(dropout=0.5)
    found = []
    for layout in ("flat", "padded"):
        torch.manual_seed(3)
        batch = batch_of(ROWS, layout)
        found.append(real(backbone(batch).last_TD, batch))
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)
    assert not torch.equal(found[0], backbone(batch_of(ROWS)).last_TD)
    backbone.eval()
    assert torch.equal(backbone(batch_of(ROWS)).last_TD, backbone(batch_of(ROWS)).last_TD)


def test_set_dropout(make: Make) -> None:
    backbone = make(dropout=0.5)
    weights = {k: v.clone() for k, v in backbone.state_dict().items()}
    backbone.set_dropout(0.0)
    assert torch.equal(backbone(batch_of(ROWS)).last_TD, backbone.eval()(batch_of(ROWS)).last_TD)
    assert all(torch.equal(v, weights[k]) for k, v in backbone.state_dict().items())
    for bad in (1.0, -0.1):
        with pytest.raises(UserError, match=rf"dropout must be in \[0, 1\), got {bad}"):
            backbone.set_dropout(bad)


# Freezing


def test_freezing(make: Make, name: str) -> None:
    backbone = make()
    freeze_backbone(backbone, "embeddings")
    assert [k for k, p in backbone.named_parameters() if not p.requires_grad] == ["words.weight"]
    freeze_backbone(backbone, 1)
    above = {id(p) for layer in backbone.layers[1:] for p in layer.parameters()}
    above |= {id(p) for k, p in backbone.named_parameters() if k.startswith("norm.")}
    assert {id(p) for p in backbone.parameters() if p.requires_grad} == above
    count = len(backbone.layers)
    with pytest.raises(UserError, match=f"between 1 and {count} layers, got {count + 1}"):
        freeze_backbone(backbone, count + 1)


# Saving


def test_what_is_saved_comes_back(make: Make, tmp_path: Path) -> None:
    backbone = make(dropout=0.25).eval()
    record = {"class_path": backbone.class_path, **backbone.save(tmp_path)}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([CONFIG, WEIGHTS])
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["kind"].startswith("llm_arch_")
    again = backbone_of(tmp_path, record)
    assert type(again) is type(backbone)
    assert again.training
    assert again.dropout == 0.25
    assert (again.hidden_size, again.pooling, again.causal) == (8, backbone.pooling, backbone.causal)
    for layout in ("flat", "padded"):
        batch = batch_of(ROWS, layout)
        assert torch.equal(again.eval()(batch).last_TD, backbone(batch).last_TD)
    again.save(tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text()) == config


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_damage_is_named(file: str, tmp_path: Path) -> None:
    backbone = TextCNN(vocabulary_size=20)
    record = {"class_path": backbone.class_path, **backbone.save(tmp_path)}
    content = (tmp_path / file).read_bytes()
    for bad in (content[:-20], b"{}", None):
        (tmp_path / file).unlink() if bad is None else (tmp_path / file).write_bytes(bad)
        with pytest.raises(UserError, match=r"is damaged or incomplete \(.+\)"):
            backbone_of(tmp_path, record)


def test_another_shape_or_kind_is_named(tmp_path: Path) -> None:
    record = {"class_path": TextCNN(vocabulary_size=20).class_path}
    ConvolutionalEncoder(vocabulary_size=20).save(tmp_path)
    with pytest.raises(UserError, match=r"backbone\.json is not of a TextCNN"):
        backbone_of(tmp_path, record)
    TextCNN(vocabulary_size=20).save(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    for change in ({"filters": 7}, {"vocabulary_size": 21}, {"colour": "red"}):
        (tmp_path / CONFIG).write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=r"is damaged or incomplete \(.+\)"):
            backbone_of(tmp_path, record)


# Tokenizer and vectors


@pytest.fixture
def vectors(tmp_path: Path) -> str:
    path = tmp_path / "vectors.txt"
    path.write_text("kitchen 1 2 3\nlight -4 5 6\n")
    return str(path)


def test_vocabulary_from_a_tokenizer(make: Make, tokenizer: str) -> None:
    assert make(tokenizer=tokenizer, vocabulary_size=None).embeddings.weight.shape[0] == 30522


def test_vectors_fill_their_rows(
    name: str, vectors: str, tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = KINDS[name](tokenizer, vectors=vectors, embedding_size=None)
    assert capsys.readouterr().out == (
        f"word vectors: 2 of 30,522 tokens (0.0%) have one of the 2 vectors of 3 numbers in {vectors}\n"
    )
    assert made.embeddings.weight.shape == (30522, 3)
    assert made.embeddings.weight[[3829, 2422]].tolist() == [[1, 2, 3], [-4, 5, 6]]
    rest = made.embeddings.weight[5000:].detach()
    values = torch.tensor([1.0, 2, 3, -4, 5, 6])
    assert float(rest.std()) == pytest.approx(float(values.std()), rel=0.05)
    made.save(tmp_path)
    Path(vectors).unlink()
    again = type(made).load(tmp_path, {})
    assert torch.equal(again.embeddings.weight, made.embeddings.weight)
    assert capsys.readouterr().out == ""


def test_the_data_says_how_many_tokens_there_are(name: str, tmp_path: Path) -> None:
    backbone = KINDS[name]()
    for use in (lambda: backbone(batch_of(ROWS)), lambda: backbone.save(tmp_path)):
        with pytest.raises(UserError, match=f"{type(backbone).__name__} does not know how many tokens .* tokenizer or"):
            use()
    with pytest.raises(UserError, match="vocabulary_size must be at least 1, got 0"):
        backbone.grow(0)
    backbone.grow(13)
    assert backbone.embeddings.num_embeddings == len(backbone.embeddings.weight) == 13
    assert float(backbone.embeddings.weight.detach().std()) == pytest.approx(0.1, rel=0.5)
    states = backbone.eval()(batch_of([[12, 0], [5]])).last_TD
    again = backbone_of(tmp_path, {"class_path": backbone.class_path, **backbone.save(tmp_path)}).eval()
    assert torch.equal(again(batch_of([[12, 0], [5]])).last_TD, states)
    again.grow(15)  # from now on it grows as any other
    assert torch.equal(again(batch_of([[12, 0], [5]])).last_TD, states)
    assert again.embeddings.num_embeddings == 15


def test_tokens_beyond_the_vocabulary(make: Make) -> None:
    with pytest.raises(UserError, match=r"token ids up to 20, but the backbone knows 20 tokens; give data\.tokenizer"):
        make()(batch_of([[3, 20, 4]]))


@pytest.mark.parametrize("kind", [TextCNN, ConvolutionalEncoder, RecurrentEncoder])
def test_wrong_arguments(kind: type[TextCNN], vectors: str, tokenizer: str) -> None:
    one = rf"{kind.__name__} takes either a tokenizer \(the one of the data\) or a vocabulary_size"
    with pytest.raises(UserError, match=one):
        kind(tokenizer=tokenizer, vocabulary_size=20)
    with pytest.raises(UserError, match="need a tokenizer in place of vocabulary_size"):
        kind(vocabulary_size=20, vectors=vectors)
    with pytest.raises(UserError, match=r"embedding_size is 5, but the vectors in .* have 3 numbers; leave"):
        kind(tokenizer, embedding_size=5, vectors=vectors)
    for name in ("vocabulary_size", "embedding_size"):
        with pytest.raises(UserError, match=f"{name} must be at least 1, got 0"):
            kind(**{"vocabulary_size": 20, name: 0})
    with pytest.raises(UserError, match=r"dropout must be in \[0, 1\), got 1"):
        kind(vocabulary_size=20, dropout=1)


# In a run


def test_a_run_learns_and_its_model_comes_back(
    make: Make,
    name: str,
    rows: Callable[..., list[dict[str, str]]],
    write_rows: Callable[..., str],
    tokenizer: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The label is a word of the text; embeddings learn by sparse gradients."""
    train, test = write_rows(rows(48), "train.jsonl"), write_rows(rows(20, seed=1), "test.jsonl")
    data = TextClassificationData(train, test=test, tokenizer=tokenizer, batch_size=8, validation_fraction=0.0)
    backbone = KINDS[name](tokenizer, dropout=0.1)
    task = Task(backbone, SequenceClassification, data.label_space, learning_rate=0.03)
    trainer = Trainer(
        max_epochs=6,
        accelerator="cpu",
        precision="32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=str(tmp_path),
    )
    trainer.fit(task, datamodule=data)
    assert isinstance(backbone.embeddings, nn.Embedding)
    assert backbone.embeddings.sparse
    (found,) = trainer.test(task, datamodule=data, verbose=False)
    assert found["test/accuracy"] >= 0.9
    save(task, data, tmp_path / "model")
    capsys.readouterr()
    model = load(tmp_path / "model", check=True)
    batch = next(iter(model.data_for(test=test).test_dataloader()))
    with torch.no_grad():
        assert torch.equal(model.backbone(batch).last_TD, task.backbone.eval()(batch).last_TD)
    said = capsys.readouterr()
    assert said.out == said.err == ""
