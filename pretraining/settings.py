"""The settings of a pretraining run: one field for each flag."""

from dataclasses import dataclass, fields

from bert import BertConfig, UserError
from common.flags import check, flag_of, setting


@dataclass
class Settings:
    text: str = setting("", "folder of .txt files, or one file: a sentence or passage a line")
    out: str = setting("", "folder of the new checkpoint")
    overwrite: bool = setting(False, "replace the pretraining run that is in --out")
    init: str = setting("", "start from this checkpoint: its weights, head and vocabulary")
    teacher: str = setting("", "a larger BERT, whose sentence vectors the model learns to match")
    teacher_weight: float = setting(5.0, "weight of the teacher's loss in the sum", min=0)
    whole_word: bool = setting(False, "mask all pieces of a word together")
    hidden: int = setting(128, "width of the hidden states", min=1, group="new model")
    layers: int = setting(4, "number of layers", min=1, group="new model")
    heads: int = setting(4, "attention heads in each layer", min=1, group="new model")
    intermediate: int = setting(512, "width of the feed-forward network", min=1, group="new model")
    max_positions: int = setting(128, "longest sequence, in tokens", min=8, group="new model")
    dropout: float = setting(0.1, "dropout, of attention too", min=0, max=1, group="new model")
    vocab_size: int = setting(6000, "size of the new vocabulary", min=10, group="new model")
    max_length: int = setting(128, "tokens of a line; longer lines are truncated", min=8)
    batch_tokens: int = setting(4096, "tokens in a batch, padding not counted", min=8)
    heldout: float = setting(0.02, "fraction of the lines that is never trained on", min=0, max=1)
    epochs: int = setting(10, "passes over the text", min=1)
    steps: int = setting(0, "number of steps, instead of --epochs (0: use --epochs)", min=0)
    lr: float = setting(1e-3, "highest learning rate", min=0)
    warmup: float = setting(0.1, "fraction of the steps with a rising learning rate", min=0, max=1)
    weight_decay: float = setting(0.01, "AdamW's weight decay, of matrices only", min=0)
    clip: float = setting(1.0, "largest norm of the gradient (0: no limit)", min=0)
    seed: int = setting(0, "seed of weights, masks, dropout and the order of lines", min=0)
    eval_every: int = setting(0, "steps between evaluations (0: an epoch)", min=0)
    save_every: int = setting(500, "steps between states to --resume from", min=1)
    device: str = setting("auto", "auto: CUDA if there is one", choices=("auto", "cuda", "cpu"))
    precision: str = setting("auto", "auto: bf16 on CUDA", choices=("auto", "fp32", "bf16"))

    def __post_init__(self):
        check(self)
        if not self.text or not self.out:
            raise UserError("--text and --out are needed: the text to learn from, and the folder "
                            "of the new checkpoint (or --resume FOLDER); see --help")
        for limit in ("batch_tokens",) if self.init else ("batch_tokens", "max_positions"):
            if self.max_length > getattr(self, limit):
                raise UserError(f"--max-length {self.max_length} is more than --"
                                f"{limit.replace('_', '-')} {getattr(self, limit)}; lower the "
                                f"first or raise the second")
        shape = [flag_of(f) for f in fields(self)
                 if f.metadata["group"] == "new model" and getattr(self, f.name) != f.default]
        if self.init and shape:
            raise UserError(f"--init has its own architecture and vocabulary, so {shape[0]} has no "
                            f"effect beside it; leave out one of the two")

    def bert_config(self, vocab_size):
        """→ the configuration of a new model."""
        return BertConfig(
            vocab_size, self.hidden, self.layers, self.heads, self.intermediate,
            hidden_dropout_prob=self.dropout, attention_probs_dropout_prob=self.dropout,
            max_position_embeddings=self.max_positions)
