"""Words that training leaves out."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from qrkt_hw.data.base import DataShape
from qrkt_hw.errors import UserError
from qrkt_hw.models.factory import build_model
from qrkt_hw.nn.embeddings import TextTokens
from qrkt_hw.runs.config import Config

SHAPE = DataShape(0, 0, 2, vocabulary=5000, length=400)
SMALL = {"model": "text", "hidden": 4, "heads": 2, "qubits": 2, "mlp": 2, "rk": "rk1", "rk_blocks": 1, "dropout": 0.0}


def texts(count=50):
    ids = torch.stack([torch.randperm(4999)[:400] + 1 for _ in range(count)])
    ids[1, 7:] = 0
    ids[2, 1:] = 0
    return ids


def test_training_leaves_a_share_out_and_keeps_the_order():
    torch.manual_seed(0)
    tokens, ids = TextTokens(vocabulary=5000, length=400, hidden=4, word_dropout=0.75), texts()
    thin = tokens.drop_words(ids)
    assert torch.equal(thin[:, 0], ids[:, 0])  # a text is never empty
    full = torch.tensor([k not in (1, 2) for k in range(len(ids))])
    assert (thin[full] != 0).float().sum(1).mean() == pytest.approx(100, rel=0.1)
    assert thin.shape[1] == (thin != 0).sum(1).max()  # what is left takes no more room than it needs
    for before, after in zip(ids, thin, strict=True):
        left = after[after != 0].tolist()
        places = [before.tolist().index(word) for word in left]
        assert places == sorted(places) and not after[len(left) :].any()
    assert not torch.equal(tokens.drop_words(ids)[0, :50], thin[0, :50])  # drawn anew


def test_inference_reads_every_word():
    torch.manual_seed(0)
    model, ids = build_model(Config(**SMALL, token_dropout=0.9), SHAPE), texts(3)
    assert model.tokens.drop_words(ids) is not ids
    model.eval()
    assert model.tokens.drop_words(ids) is ids
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


def test_what_is_for_words_is_refused_for_images_and_a_decoder_keeps_its_norm():
    for key in ("token_dropout", "embedding_scale"):
        with pytest.raises(ValidationError, match=key):
            Config(**{key: 0.5})
    with pytest.raises(UserError, match="final_norm=False: "):
        build_model(Config(**SMALL, final_norm=False, decoder_blocks=1), SHAPE)


def test_embeddings_start_as_large_as_asked():
    for scale in (1.0, 0.1):
        torch.manual_seed(0)
        embedding = TextTokens(vocabulary=5000, length=400, hidden=4, scale=scale).embedding.weight
        assert embedding.std().item() == pytest.approx(scale, rel=0.05) and not embedding[0].any()


def test_without_norms_a_model_sees_how_large_its_tokens_are():
    torch.manual_seed(0)
    ids = texts(4)
    for norms, same in ((1, True), (0, False)):
        model = build_model(Config(**SMALL, positions="none", field_norms=norms, final_norm=norms > 0), SHAPE)
        model.eval()
        slope = model.blocks[0].fields[0]
        y = torch.randn(2, 5, 4)
        assert torch.allclose(slope(y), slope(3 * y), atol=1e-3) is same
        assert any("norm" in name for name, _ in model.named_parameters()) is same
        model(ids).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_double_precision_agrees_without_norms():
    torch.manual_seed(0)
    options = {**SMALL, "field_norms": 0, "final_norm": False, "hidden": 8, "qubits": 4, "mlp": 4}
    single = build_model(Config(**options), SHAPE).eval()
    double = build_model(Config(**options, dtype="complex128"), SHAPE).eval()
    double.load_state_dict(single.state_dict())
    ids = texts(4)
    torch.testing.assert_close(double(ids).float(), single(ids), atol=1e-4, rtol=1e-4)
