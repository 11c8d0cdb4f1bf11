"""What judges attacked texts: another encoder's similarity, a language model's likelihood."""

import torch
import torch.nn.functional as F

from bert.layout import Layout

ROWS = 64                                                    # sequences in one pass


@torch.inference_mode()
def sentence_vectors(bert, tokenizer, texts):
    """→ [n, H]: the mean of the last hidden states of each text."""
    vectors = []
    for first in range(0, len(texts), ROWS):
        hidden, layout = bert.embed(**tokenizer(texts[first:first + ROWS]))
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
    ids = torch.tensor(tokenizer.encode([text])[0][0])
    places = torch.arange(1, len(ids) - 1)
    total = 0.0
    for part in places.split(ROWS):
        masked = ids.repeat(len(part), 1)
        masked[torch.arange(len(part)), part] = tokenizer.mask_token_id
        layout = Layout(torch.ones_like(masked))
        chosen = torch.zeros_like(masked, dtype=torch.bool)
        chosen[torch.arange(len(part)), part] = True
        hidden, _ = lm.bert.embed(masked, layout)
        hidden = lm.bert.encode(hidden, layout, output_rows=layout.select(chosen))
        log_p = lm.head(hidden, lm.bert.word_embeddings.weight).log_softmax(dim=1)
        total += float(log_p.gather(1, ids[part][:, None]).sum())
    return total / len(places) if len(places) else float("nan")
