"""The examples of a run's task that are attacked, and what came of each."""

from dataclasses import dataclass

import torch

from attack import words
from attack.baselines import METHODS
from attack.objective import Objective, Victim
from attack.problem import Problem
from bert import UserError
from bert.files import fingerprint
from bert.tokenizer import SPECIAL
from multitask.course import Example
from multitask.data import tokenize
from multitask.evaluation import read_split, run_split
from multitask.tasks import TASKS

TOKENS = 512                                                 # real tokens of a batch's examples


@dataclass
class Attack:
    """An opened run, one of its tasks, and the examples drawn of its dev set."""

    session: object
    task: str
    settings: dict                                           # of the attack: __main__.py's flags
    lm: object = None                                        # a MaskedLM, and whether it has a head
    has_head: bool = False

    def __post_init__(self):
        session, row = self.session, TASKS[self.task]
        if row.is_regression:
            raise UserError(f"{self.task} is a regression: no answer is right or wrong, so there "
                            f"is nothing to mislead; choose a task with classes")
        given = read_split(self.task, row.dev_sets[0], session.settings.data,
                           session.settings.strict_rows)
        order = torch.randperm(len(given), generator=torch.Generator().manual_seed(
            self.settings["seed"]))
        self.examples = [given[n] for n in order[:self.settings["limit"] or None].tolist()]
        self.tokenizer = session.tokenizer
        self.text = self.settings["sentence"] - 1 if row.pair else 0     # the one that may change
        self.split = tokenize(self.examples, self.tokenizer, session.settings.pairs)
        self.usable = words.usable_words(self.tokenizer)
        known = set(self.usable)
        self.spans = [words.word_spans(self.tokenizer, example.texts[self.text], known,
                                       self.place(n)[1]) for n, example in enumerate(self.examples)]
        self.before = self.predict(self.examples)
        self.right = [n for n, example in enumerate(self.examples)
                      if self.before[n] == example.label]
        attacked = {n for n in self.right if self.spans[n]}
        batches = ([n for n in batch if n in attacked] for batch in self.split.by_length(TOKENS))
        self.batches = [batch for batch in batches if batch]
        self.victim = Victim(session.model, self.task, session.autocast)
        self.idf = self.inverse_frequencies(given)

    def place(self, n):
        """→ the column of the first token of the text that may change, and its number of tokens."""
        separate = len(self.split.segments) == 2
        ids, types = (part[n] for part in self.split.segments[self.text if separate else 0])
        second = types.index(1) if 1 in types else len(types)            # joint: both texts
        if separate or self.text == 0:
            return 1, (len(ids) if separate else second) - 2
        return second, len(ids) - second - 1

    def inverse_frequencies(self, examples):
        """log((n + 1)/(df + 1)) of each token over the dev set's texts [V]; 0 of special tokens."""
        size = self.victim.embeddings.size(0)
        count, texts = torch.zeros(size), [text for e in examples for text in e.texts if text]
        for ids in self.tokenizer.encode(texts)[0]:
            count[list(set(ids))] += 1
        idf = ((len(texts) + 1) / (count + 1)).log()
        idf[[self.tokenizer.backend.token_to_id(token) for token in SPECIAL]] = 0
        return idf.to(self.session.device)

    def predict(self, examples):
        split = tokenize(examples, self.tokenizer, self.session.settings.pairs)
        outputs = run_split(self.session.model, self.task, split, self.session.device,
                            self.session.autocast)
        return TASKS[self.task].predict(outputs).tolist()

    def problem(self, numbers):
        """The Problem of the examples with these numbers."""
        device, separate = self.session.device, len(self.split.segments) == 2
        batch = self.split.batch(numbers).to(device)
        example, row, column = [], [], []
        for at, n in enumerate(numbers):
            first = self.place(n)[0]
            for place, _, _ in self.spans[n]:
                example.append(at)
                row.append(at + len(numbers) * self.text * separate)
                column.append(first + place)
        example, row, column = (torch.tensor(x, device=device) for x in (example, row, column))
        candidates = words.nearest_words(self.victim.embeddings, batch.input_ids[row, column],
                                         self.usable, self.settings["candidates"])
        counts = torch.bincount(example, minlength=len(numbers))
        budget = (self.settings["max_changed"] * counts.double() + 1e-9).floor().clamp(1).long()
        return Problem(batch, batch.labels.long(), torch.arange(len(numbers), device=device),
                       torch.arange(len(batch.input_ids), device=device),
                       torch.arange(len(row), device=device), example, row, column, candidates,
                       budget)

    def attack(self, numbers, method):
        """Attack a batch → a record of each example."""
        given, problem = self.settings, self.problem(numbers)
        function, similarity, lr = METHODS[method]
        objective = Objective(
            self.victim, problem, self.idf,
            similarity if given["similarity"] is None else given["similarity"],
            given["fluency"] if method != "hotflip" else 0.0, lm=self.lm, has_head=self.has_head,
            mask_id=self.tokenizer.mask_token_id)
        generators = [torch.Generator().manual_seed(int(fingerprint(
            str(given["seed"]), *self.examples[n].texts)[:12], 16)) for n in numbers]
        chosen, soft = function(objective, problem, steps=given["steps"], least=given["least"],
                                lr=lr, samples=given["samples"], generators=generators)
        passes = objective.passes.tolist()
        hard = objective.hard_margins(problem, chosen).tolist()
        return self.records(numbers, problem, chosen, soft.tolist(), hard, passes)

    def records(self, numbers, problem, chosen, soft, hard, passes):
        """What came of a batch. The new texts are tokenized and classified as any other text."""
        ids = problem.candidates.gather(1, chosen[:, None]).squeeze(1).tolist()
        changed, owner = (chosen > 0).tolist(), problem.example.tolist()
        found, examples = [], []
        for at, n in enumerate(numbers):
            new = [self.tokenizer.backend.id_to_token(ids[i]) if changed[i] else None
                   for i in range(len(ids)) if owner[i] == at]
            texts, example = list(self.examples[n].texts), self.examples[n]
            original = texts[self.text]
            texts[self.text] = words.replace_words(original, self.spans[n], new)
            examples.append(Example(example.id, tuple(texts), example.label))
            kept = [None if word is None else original[start:end]
                    for word, (_, start, end) in zip(new, self.spans[n])]
            found.append({
                "id": example.id, "label": int(example.label), "texts": list(example.texts),
                "adversarial": texts[self.text], "changed": sum(w is not None for w in new),
                "words": len(new), "tokens": self.place(n)[1],
                "marked": [words.replace_words(original, self.spans[n], new_words, "[{}]")
                           for new_words in (kept, new)],
                "misled_as_ids": hard[at] < 0, "soft_margin": soft[at], "hard_margin": hard[at],
                "forward": passes[at][0], "backward": passes[at][1]})
        for record, after in zip(found, self.predict(examples)):
            record["after"] = int(after)
            record["success"] = record["after"] != record["label"]
        return found

