"""The masked-LM head, and the encoder with it."""

import math

import torch

from bert import Bert, BertConfig
from pretraining.masking import Masking, masked_batch
from pretraining.model import MaskedLM


def test_head_is_the_formula_and_tied_to_the_embeddings():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=16, max_position_embeddings=9)
    model, hidden = MaskedLM(Bert(config)), torch.randn(5, 8)
    head, embeddings = model.head, model.bert.word_embeddings.weight
    torch.nn.init.normal_(head.bias)
    dense = head.transform["dense"]
    x = hidden @ dense.weight.T + dense.bias
    x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))                      # GELU
    x = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, unbiased=False, keepdim=True) + 1e-12)
    torch.testing.assert_close(head(hidden, embeddings), x @ embeddings.T + head.bias)
    assert sum(p.numel() for p in head.parameters()) == 8 * 8 + 8 + 2 * 8 + 11   # no decoder
    head(hidden, embeddings).sum().backward()
    assert embeddings.grad.abs().sum() > 0


def test_the_last_layer_computes_only_masked_tokens_with_the_same_result(checkpoint, tokenizer,
                                                                         corpus):
    model = MaskedLM(Bert.from_pretrained(checkpoint)).eval()
    batch = masked_batch(corpus, torch.arange(40), Masking(tokenizer))
    few, rows = model(batch)
    every, hidden = model(batch, all_rows=True)
    assert len(rows) == len(batch.labels) < len(hidden) == len(batch.ids)
    torch.testing.assert_close(few, every)
    whole = model.bert(batch.layout.pad(batch.ids), batch.layout.mask.long()).last_hidden_state
    torch.testing.assert_close(model.head(batch.layout.unpad(whole)[batch.output_rows.rows],
                                          model.bert.word_embeddings.weight), few)
    ids, _, _ = corpus.collate(batch.line_ids)
    assert torch.equal(ids[batch.output_rows.rows], batch.labels)
