"""Correct solutions of the exercises, written another way than the project's: {exercise: [{dotted
name of the function: body}]}. Each must get full points."""

VARIANTS = {
    "attention": [
        {"bert.attention.eager_attention": """
import torch as t
scores = t.einsum("bhqd,bhkd->bhqk", query, key) * query.shape[-1] ** -0.5
if key_mask is not None:
    scores = t.where(key_mask, scores, -1e30)
weights = probabilities(scores, -1)
return t.einsum("bhqk,bhkd->bhqd", F.dropout(weights, dropout, dropout > 0), value)
"""},
        {"bert.attention.eager_attention": """
rows = []
for b in range(query.size(0)):
    heads = []
    for h in range(query.size(1)):
        scores = (key[b, h] @ query[b, h].T).T / query.size(-1) ** 0.5
        if key_mask is not None:
            scores = torch.where(key_mask[b, 0], scores, torch.finfo(scores.dtype).min)
        heads.append(F.dropout(probabilities(scores, dim=-1), dropout) @ value[b, h])
    rows.append(torch.stack(heads))
return torch.stack(rows)
"""}],
    "add-and-norm": [
        {"bert.model.BertLayer.add_and_norm": """
total = self.dropout(ffn_output) + hidden
mean = total.mean(-1, keepdim=True)
deviation = (total.var(-1, unbiased=False, keepdim=True) + self.output_norm.eps).sqrt()
return (total - mean) / deviation * self.output_norm.weight + self.output_norm.bias
"""},
        {"bert.model.BertLayer.attention_block": """
residual = hidden if output_rows is None else hidden[output_rows.rows]
where = layout if output_rows is None else output_rows
total = self.dropout(self.attention(hidden, layout, head_mask, output_rows)) + residual
return self.attention_norm(total, where)
"""}],
    "ffn": [
        {"bert.model.FeedForward.activate": """
return self.activation(hidden @ self.fc_in.weight.T + self.fc_in.bias)
""", "bert.model.FeedForward.project": """
return activations @ self.fc_out.weight.T + self.fc_out.bias
"""},
        {"bert.model.FeedForward.forward": """
rows = [self.fc_out(self.activation(self.fc_in(row[None], layout)), layout) for row in hidden]
return torch.cat(rows)
"""}],
    "embeddings": [
        {"bert.model.Bert.embed": """
layout = input_layout(self.config, input_ids, attention_mask, inputs_embeds, dense)
hidden = self.position_embeddings.weight[layout.positions]
if input_ids is None:
    hidden = hidden + layout.unpad(inputs_embeds)
else:
    ids = unpad_ids("input_ids", input_ids, layout, self.config.vocab_size)
    hidden = hidden + self.word_embeddings.weight[ids]
if token_type_ids is None:
    hidden = hidden + self.token_type_embeddings.weight[0]
else:
    types = unpad_ids("token_type_ids", token_type_ids, layout, self.config.type_vocab_size)
    hidden = hidden + self.token_type_embeddings(types)
return self.dropout(self.embedding_norm(hidden, layout)), layout
"""},
        {"bert.model.Bert.embed": """
layout = input_layout(self.config, input_ids, attention_mask, inputs_embeds, dense)
if token_type_ids is None:
    token_type_ids = torch.zeros_like(layout.mask, dtype=torch.long)
words = inputs_embeds if input_ids is None else self.word_embeddings(input_ids)
types = self.token_type_embeddings(token_type_ids)
grid = words + types + self.position_embeddings(torch.arange(words.size(1)))
return self.dropout(self.embedding_norm(layout.unpad(grid))), layout
"""}],
    "adamw": [
        {"course.adamw.adamw_step": """
first = first.lerp(gradient, 1 - betas[0])
second = second.mul(betas[1]).addcmul(gradient, gradient, value=1 - betas[1])
weight = weight * (1 - lr * weight_decay)
size = lr / (1 - betas[0] ** step)
return weight - size * first / (second.sqrt() / (1 - betas[1] ** step) ** 0.5 + eps), first, second
"""},
        {"course.adamw.adamw_step": """
import torch
flat = [t.reshape(-1) for t in (weight, gradient, first, second)]
found = []
for w, g, m, v in zip(*flat):
    m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
    ratio = m / (1 - betas[0] ** step) / ((v / (1 - betas[1] ** step)) ** 0.5 + eps)
    found.append(torch.stack([w - lr * ratio - lr * weight_decay * w, m, v]))
return tuple(t.view_as(weight) for t in torch.stack(found).unbind(1))
"""}],
    "masking": [
        {"pretraining.masking.Masking.choose": """
words, last = [], None
for n, token in enumerate(ids.tolist()):
    if not (self.is_continuation[token] and n):
        words.append([])
    words[-1].append(n)
ordinary = [[n for n in word if not self.special[ids[n]]] for word in words]
ordinary = [word for word in ordinary if word]
left = max(1, round(0.15 * sum(map(len, ordinary))))
chosen = torch.zeros(len(ids), dtype=torch.bool)
for number in torch.randperm(len(ordinary), generator=generator).tolist():
    if left > 0:
        chosen[ordinary[number]] = True
        left -= len(ordinary[number])
return chosen
"""},
        {"pretraining.masking.Masking.__call__": """
draw, chosen = torch.rand(len(ids), generator=generator), self.choose(ids, generator)
masked = ids.clone()
masked[chosen & (draw >= 0.2)] = self.mask_id
random = chosen & (draw < 0.1)
picks = torch.randint(len(self.ordinary_ids), (int(random.sum()),), generator=generator)
masked[random] = self.ordinary_ids[picks]
return masked, chosen
"""}],
    "lora": [
        {"lora.layers.LoRA.forward": """
return out + F.dropout(rows, self.dropout, self.training) @ self.delta().T
"""},
        {"lora.layers.LoRA.forward": """
low = torch.einsum("ni,ri->nr", F.dropout(rows, self.dropout, self.training), self.A)
return torch.einsum("nr,or->no", low, self.B) * (self.alpha / self.rank) + out
""", "lora.layers.LoRA.delta": """
return sum(torch.outer(b, a) for a, b in zip(self.A, self.B.T)) * self.alpha / self.rank
""", "lora.layers.LoRA.merge_into": """
base.weight.data = base.weight.data + self.delta().detach()
"""}],
    "low-rank": [
        {"laser.reduce.low_rank": """
u, s, v = torch.svd(weight.double())
return sum(s[i] * torch.outer(u[:, i], v[:, i]) for i in range(rank)).to(weight.dtype)
""", "laser.reduce.Decomposition.energy": """
return (self.values[:rank] ** 2).sum() / (self.values ** 2).sum()
"""},
        {"laser.reduce.Decomposition.__init__": """
v, self.values, uh = torch.linalg.svd(weight.detach().double().T, full_matrices=False)
self.right = v.T.to(weight.dtype)
self.left = torch.einsum("ro,r->or", uh, self.values).to(weight.dtype)
"""}],
    "pcgrad": [
        {"multitask.pcgrad.coefficients": """
gram, total = torch.tensor(gram, dtype=torch.float64), torch.zeros(len(gram)).double()
for i, others in enumerate(orders):
    c = torch.eye(len(gram), dtype=torch.float64)[i]
    for j in others:
        dot = c @ gram[:, j]
        if dot < 0 and gram[j, j] > 0:
            c[j] = c[j] - dot / gram[j, j]
    total = total + c
return total.tolist()
"""},
        {"multitask.pcgrad.coefficients": """
n = len(gram)
found = [[0.0] * n for _ in range(n)]
for i in reversed(range(n)):
    found[i][i] = 1.0
    for j in orders[i]:
        dot = sum(found[i][k] * gram[j][k] for k in reversed(range(n)))
        found[i][j] += max(0.0, -dot) / gram[j][j] if gram[j][j] else 0.0
return [sum(column) for column in zip(*found)]
"""}],
    "annealing": [
        {"multitask.schedule.draw": """
import random
names = sorted(sizes)
weights = [sizes[name] ** alpha for name in names]
return random.Random(f"{seed} {step}").choices(names, weights)
"""},
        {"multitask.schedule.annealing_exponent": """
return 1.0 - (c * (epoch - 1) / (epochs - 1) if epochs > 1 else 0.0)
""", "multitask.schedule.draw": """
names, logits = list(sizes), alpha * torch.tensor(list(sizes.values())).double().log()
generator = torch.Generator().manual_seed(seed * 7919 + step)
uniform = torch.rand(len(names), generator=generator, dtype=torch.float64)
return [names[int((logits - (-uniform.log()).log()).argmax())]]
"""}],
    "importance": [
        {"pruning.gates.normalize": """
if not (~raw.isnan()).any():
    raise UserError("no part is left")
scale = raw.nan_to_num().pow(2)
per_row = by == "layer" and raw.size(1) > 1
size = (scale.sum(1, keepdim=True) if per_row else scale.sum()).sqrt()
scaled = raw / (size + 1e-20)
values = scaled.flatten()[~scaled.flatten().isnan()]
span = values.max() - values.min()
return (scaled - values.min()) / max(span, torch.tensor(1e-20))
"""},
        {"pruning.gates.importance": """
raw, tokens = zero_importance(bert.config, kind), 0
for batch in batches:
    size = len(batch.labels)
    gates, hooks = {}, []
    for number, layer, _ in bert.walk():
        there = ~raw[number].isnan()
        one = bert.word_embeddings.weight.new_ones(size, int(there.sum()))
        gates[number] = one.requires_grad_()
        hooks.append(GATES[kind](layer, torch.cat([one] * (batch.layout.batch // size))))
    needed = [weight for weight in bert.parameters() if weight.requires_grad]
    bert.requires_grad_(False)
    loss(batch).backward()
    for weight in needed:
        weight.requires_grad_(True)
    for hook in hooks:
        hook.remove()
    for number, gate in gates.items():
        there = ~raw[number].isnan()
        for example in gate.grad:
            raw[number, there] += example.double().abs()
    tokens += int(batch.layout.mask.sum())
if not tokens:
    raise UserError("importance needs at least one example")
return raw / tokens
"""}],
    "head-removal": [
        {"pruning.removal.keep_rows": """
import torch
linear.weight = nn.Parameter(linear.weight.detach()[rows].clone(), linear.weight.requires_grad)
index = torch.tensor(rows, dtype=torch.long)
linear.bias = nn.Parameter(linear.bias.detach().index_select(0, index), linear.bias.requires_grad)
linear.out_features = len(rows)
""", "pruning.removal.keep_columns": """
import torch
mask = torch.zeros(linear.weight.size(1), dtype=torch.bool)
mask[columns] = True
linear.weight = nn.Parameter(linear.weight.detach()[:, mask], linear.weight.requires_grad)
linear.in_features = len(columns)
"""},
        {"pruning.removal.remove_heads": """
heads = _check_parts(bert, heads, "head", bert.config.remaining_heads)
four = plain_matrices(bert, "heads", heads)
gone = _union(bert.config.pruned_heads, heads)
off = {n: [h for h in m if h not in heads.get(n, [])] for n, m in bert.config.masked_heads.items()}
config = replace(bert.config, pruned_heads=gone, masked_heads=off)
_record(bert, config, kind="remove_heads", heads=heads)
for layer in heads:
    attention, rows, left = bert.layers[layer].attention, [], []
    for place, head in enumerate(attention.head_indices):
        if head not in heads[layer]:
            left.append(head)
            rows += range(place * attention.head_size, (place + 1) * attention.head_size)
    *three, output = four[layer]
    keep_columns(output, rows)
    for linear in three:
        keep_rows(linear, rows)
    attention.head_indices, attention.num_heads = left, len(left)
    attention.set_masked_heads(config, config.masked_heads.get(layer, ()))
"""}],
    "exit-ensemble": [
        {"early_exit.exits.geometric": """
total = 0
for weight, scores in zip(weights, log_probs):
    total = total + weight.exp() * scores
return total / len(weights) + bias
"""},
        {"early_exit.exits.geometric": """
return torch.einsum("m,mbc->bc", weights.exp() / weights.numel(), log_probs) + bias
""", "early_exit.exits.arithmetic": """
shares = torch.log(torch.softmax(weights, 0)).view(-1, 1, 1)
scores = shares + log_probs
largest = scores.max(0).values
return bias + largest + (scores - largest).exp().sum(0).log()
"""}],
    "r-softmax": [
        {"bert.r_softmax.threshold": """
k = zero_count(zeros, count).expand(*scores.shape[:-1], 1)
ordered = scores.sort(dim=-1).values
limit = ordered.gather(-1, k)
below = ordered.masked_fill(ordered >= limit, -math.inf)
return below.max(dim=-1, keepdim=True).values
"""},
        {"bert.r_softmax.r_softmax": """
if valid is None:
    valid = scores > torch.finfo(scores.dtype).min
if valid is True:
    valid = torch.ones_like(scores, dtype=torch.bool)
valid = valid.expand_as(scores)
rows, masks = scores.reshape(-1, scores.size(-1)), valid.reshape(-1, scores.size(-1))
found = []
for number, (row, mask) in enumerate(zip(rows, masks)):
    share = zeros[number].item() if isinstance(zeros, torch.Tensor) else zeros
    result = torch.zeros_like(row)
    if mask.any():
        x = row[mask]
        weight, n = torch.ones_like(x), len(x)
        k = min(math.floor(share * n + 5e-7), n - 1)
        ordered = x.sort().values
        below = ordered[ordered < ordered[k]]
        if ramp > 0 and k and len(below):
            t = x.max() - below[-1]
            t = (t.detach() if detached else t) + RAMP_SCALE * (1 - ramp) / ramp
            weight = torch.relu(x - x.max() + t)
        e = weight * (x - x.max()).exp()
        result = result.masked_scatter(mask, e / e.sum())
    found.append(result)
return torch.stack(found).view_as(scores)
"""}],
}
