"""What judges attacked texts: another encoder's similarity, a language model's likelihood."""

import torch
import torch.nn.functional as F

from bert.layout import Layout

ROWS = 64                                                    # sequences in one pass


@torch.inference_mode()
def sentence_vectors(bert, tokenizer, texts):
    """→ [n, H]: the mean of the last hidden states of each text."""
    vectors, device = [], bert.word_embeddings.weight.device
    for first in range(0, len(texts), ROWS):
        batch = tokenizer(texts[first:first + ROWS])
        layout = Layout(batch["attention_mask"]).to(device)
        hidden, layout = bert.embed(batch["input_ids"].to(device), layout)
        grid = layout.pad(bert.encode(hidden, layout))
        vectors.append(grid.sum(dim=1) / layout.mask.sum(dim=1, keepdim=True))
    return torch.cat(vectors)


def similarities(bert, tokenizer, texts, others):
    """→ [n]: the cosines of the texts' vectors with the others'."""
    return F.cosine_similarity(*(sentence_vectors(bert, tokenizer, side)
                                 for side in (texts, others))).tolist()


@torch.inference_mode()
def pseudo_likelihood(lm, tokenizer, text):
    """The mean of log p(token | all others) over the tokens of a text, each masked in turn (Salazar
    et al. 2020); NaN without a token."""
    ids, device = torch.tensor(tokenizer.encode([text])[0][0]), lm.head.bias.device
    places = torch.arange(1, len(ids) - 1)
    total = 0.0
    for part in places.split(ROWS):
        masked = ids.repeat(len(part), 1)
        masked[torch.arange(len(part)), part] = tokenizer.mask_token_id
        layout = Layout(torch.ones_like(masked))
        chosen = torch.zeros_like(masked, dtype=torch.bool)
        chosen[torch.arange(len(part)), part] = True
        rows = layout.select(chosen).to(device)
        hidden, layout = lm.bert.embed(masked.to(device), layout.to(device))
        hidden = lm.bert.encode(hidden, layout, output_rows=rows)
        log_p = lm.head(hidden, lm.bert.word_embeddings.weight).log_softmax(dim=1)
        total += float(log_p.cpu().gather(1, ids[part][:, None]).sum())
    return total / len(places) if len(places) else float("nan")
