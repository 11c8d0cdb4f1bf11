"""A BERT written by hand: plain modules, real weights, no padding.

    from bert import Bert, BertConfig, Tokenizer
"""

from bert.config import BertConfig
from bert.dense_layout import DenseLayout
from bert.errors import UserError
from bert.layout import Layout
from bert.model import Bert, BertOutput
from bert.tokenizer import Tokenizer
