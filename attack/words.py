"""Which words may change, what may take their place, and the text that comes out."""

import torch
import torch.nn.functional as F

from bert.errors import UserError

APOSTROPHES = "'’`"


def usable_words(tokenizer):
    """→ the ids of the words that may stand in an attacked text, sorted: tokens of letters only
    that become themselves again when their text is tokenized. So no special or unused token and no
    piece of a word is among them."""
    vocabulary = tokenizer.backend.get_vocab()
    words = [token for token in vocabulary
             if token.isalpha() and (len(token) > 1 or token in ("a", "i"))]
    if len(words) < 2:
        raise UserError("the vocabulary holds no two whole words, so no word can be replaced")
    encoded, _ = tokenizer.encode(words)
    return sorted(vocabulary[word] for word, ids in zip(words, encoded)
                  if ids[1:-1] == [vocabulary[word]])


def word_spans(tokenizer, text, usable, count):
    """→ [(number of the token in the text, start, end)]: the words that may change, of the first
    `count` tokens. Each is one token, and no letter, digit or apostrophe stands beside it."""
    found, encoding = [], tokenizer.backend.encode(text, add_special_tokens=False)
    for number, (token, (start, end)) in enumerate(zip(encoding.ids, encoding.offsets)):
        beside = text[max(0, start - 1):start] + text[end:end + 1]
        if number < count and token in usable and not any(
                c.isalnum() or c in APOSTROPHES for c in beside):
            found.append((number, start, end))
    return found


def replace_words(text, spans, words, template="{}"):
    """Replace the span (number, start, end) by the word beside it (None: leave it), from the right;
    all else stays to the letter."""
    for (_, start, end), word in reversed(list(zip(spans, words))):
        if word is not None:
            text = text[:start] + template.format(word) + text[end:]
    return text


def nearest_words(embeddings, ids, usable, count):
    """→ [M, count]: for each of the word ids [M] the id itself, then the usable ones with the most
    similar embeddings (by the cosine). embeddings is [V, H]."""
    usable = torch.tensor(usable, device=embeddings.device)
    unit = F.normalize(embeddings[usable].float(), dim=1)
    cosines = F.normalize(embeddings[ids].float(), dim=1) @ unit.T       # [M, usable]
    cosines.masked_fill_(usable == ids[:, None], float("inf"))
    return usable[cosines.topk(min(count, len(usable)), dim=1).indices]
