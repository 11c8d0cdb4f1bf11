"""Compression in runs: model/model.safetensors lacks the compressed matrices; their stored form is
in a file beside it, and opening the run decodes them."""

from contextlib import contextmanager
from pathlib import Path

from torch import nn

from bert import UserError
from bert.files import read_tensors, write_tensors
from compression.stored import CODECS, Compressed, find_modules

FILE = Path("model", "compressed.safetensors")               # in a run's folder
EDIT = {"codec": set(CODECS), "matrices": list[str]}       # in run.json
KEEPS_EDIT = False                                           # an opened run has plain matrices


def rebuild(bert, edit):
    """Remove the weights of the compressed matrices, before the saved weights are loaded."""
    for module in find_modules(bert, edit["matrices"]).values():
        module.weight = None                                 # stays registered as a parameter


def restore(bert, edit, folder):
    """Decode the stored matrices and insert them, after the saved weights are loaded."""
    modules, stored = find_modules(bert, edit["matrices"]), read_tensors(folder / FILE)
    shapes = {target: (module.num_embeddings, module.embedding_dim)
              if isinstance(module, nn.Embedding) else (module.out_features, module.in_features)
              for target, module in modules.items()}
    try:
        decoded = Compressed(edit["codec"], shapes, stored).decode()
    except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / FILE} does not fit run.json ({error!r}); compress the run "
                        f"again") from error
    for target, weight in decoded.items():
        modules[target].weight = nn.Parameter(weight)


@contextmanager
def encoder_alone(bert):
    """Within this context bert lacks the weights that are saved in stored form."""
    weights = {}
    for edit in bert.edits:
        if edit["method"] == "compression":
            modules = find_modules(bert, edit["matrices"]).values()
            weights |= {module: module.weight for module in modules}
            rebuild(bert, edit)
    try:
        yield
    finally:
        for module, weight in weights.items():
            module.weight = weight


def save(model, tasks, folder):
    """Write the stored form: the attribute `compressed` that `--save` sets on the Bert."""
    return {folder / FILE: write_tensors(folder / FILE, model.bert.compressed.stored)}


def weight_files(folder):
    return [folder / FILE]
