"""Make tests/reference/ with transformers and peft: what our encoder's numbers must be.

    pip install transformers peft && python tests/make_reference.py

Needs PLAINBERT_WEIGHTS and PLAINBERT_DATA (see conftest.py). Small random models are stored whole:
their weights in several forms, their outputs and all gradients. Of the real model's hidden states
every 48th number is kept; of its gradients, each tensor's norm and its products with a few random
signs. Two adapters for the real model are stored whole, one that peft wrote and one that we wrote,
and what peft makes of them. """

import os
from pathlib import Path

import torch
from parity import PROBES, REFERENCE, gradient_probes, real_texts, summed_loss, tiny_batch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import BertConfig, BertForPreTraining, BertModel

import lora
from bert import Bert, Tokenizer

TINY = {
    "gelu": {},
    "relu_three_types": {"hidden_act": "relu", "type_vocab_size": 3, "layer_norm_eps": 1e-5},
    "one_wide_head": {"num_attention_heads": 1, "num_hidden_layers": 3},
}


def tiny_models():
    """Random models of three shapes: in safetensors, as .bin, and as .bin with the names of old."""
    for number, (name, changes) in enumerate(TINY.items()):
        torch.manual_seed(number)
        config = BertConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2,
                            num_attention_heads=4, intermediate_size=24,
                            max_position_embeddings=20, initializer_range=0.3)
        config.update(changes)
        whole = BertForPreTraining(config).eval()
        for parameter in whole.parameters():                 # biases and LayerNorms too
            parameter.data += 0.1 * torch.randn_like(parameter)
        folder = REFERENCE / name
        if number == 0:
            whole.bert.save_pretrained(folder)
        else:
            config.save_pretrained(folder)
            weights = whole.state_dict() if number == 2 else whole.bert.state_dict()
            old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
            for new, legacy in old.items() if number == 2 else ():
                weights = {k.replace(new, legacy): v for k, v in weights.items()}
            prefix = "bert." if number == 2 else ""
            weights[f"{prefix}embeddings.position_ids"] = torch.arange(20)[None]
            torch.save(weights, folder / "pytorch_model.bin")
        store(whole.bert, tiny_batch(config.type_vocab_size), folder / "expected.safetensors")


def store(bert, batch, path):
    """Hidden states, pooler and every gradient of the summed loss."""
    bert.zero_grad()
    out = bert(**batch, output_hidden_states=True)
    summed_loss(out, batch).backward()
    mask = batch["attention_mask"].bool()
    values = {f"hidden.{number}": state[mask].detach().clone()
              for number, state in enumerate(out.hidden_states)}
    values["pooler"] = out.pooler_output.detach()
    values |= {f"gradient.{n}": p.grad for n, p in bert.named_parameters()}
    save_file(values, path)


def real_model():
    """The real weights on 64 real sentences and 64 real pairs."""
    weights = os.environ["PLAINBERT_WEIGHTS"]
    bert = BertModel.from_pretrained(weights, attn_implementation="eager").eval()
    tokenizer = Tokenizer.from_pretrained(weights)
    values = {}
    for kind, texts in real_texts(Path(os.environ["PLAINBERT_DATA"]) / "cs224n").items():
        batch = tokenizer(*texts)
        bert.zero_grad()
        out = bert(**batch, output_hidden_states=True)
        summed_loss(out, batch).backward()
        mask = batch["attention_mask"].bool()
        for number, state in enumerate(out.hidden_states):
            values[f"{kind}.hidden.{number}"] = state[mask][:, ::PROBES].detach().contiguous()
        values[f"{kind}.pooler"] = out.pooler_output[:, ::PROBES].detach().contiguous()
        values[f"{kind}.input_ids_sum"] = (batch["input_ids"] * mask).sum(dim=1)
        for name, parameter in bert.named_parameters():
            values[f"{kind}.gradient.{name}"] = gradient_probes(name, parameter.grad)
    save_file(values, REFERENCE / "minilm.safetensors")


def perturb(parameters):
    """Change parameters as training does: B is not zero, LayerNorms are not the pretrained ones."""
    torch.manual_seed(0)
    for parameter in parameters:
        parameter.data += 0.05 * torch.randn_like(parameter)


def adapters():
    """An adapter that peft writes, one that lora/ writes, and peft's outputs with each."""
    weights, folder = os.environ["PLAINBERT_WEIGHTS"], REFERENCE / "adapters"
    config = LoraConfig(r=2, lora_alpha=6, rank_pattern={"layer.5.attention.self.query": 3},
                        alpha_pattern={"intermediate.dense": 5}, modules_to_save=["LayerNorm"],
                        target_modules=["query", "attention.output.dense", "intermediate.dense"],
                        layers_to_transform=[0, 5], layers_pattern="layer")
    theirs = get_peft_model(BertModel.from_pretrained(weights), config)
    perturb(p for p in theirs.parameters() if p.requires_grad)
    theirs.peft_config["default"].base_model_name_or_path = Path(weights).name
    theirs.save_pretrained(folder / "peft")
    (folder / "peft" / "README.md").unlink()

    ranks = {(0, "query"): 2, (1, "value"): 3, (4, "attention_output"): 1, (5, "fc_in"): 2,
             (5, "fc_out"): 2}
    ours = lora.attach(Bert.from_pretrained(weights), rank=ranks, alpha=4, layernorms=True)
    perturb(lora.adapter_parameters(ours, "default").values())
    lora.save(ours, "default", folder / "ours")

    batch = Tokenizer.from_pretrained(weights)(*real_texts(
        Path(os.environ["PLAINBERT_DATA"]) / "cs224n")["single"])
    mask, values = batch["attention_mask"].bool(), {}
    for name in ("peft", "ours"):
        bert = PeftModel.from_pretrained(BertModel.from_pretrained(weights), folder / name).eval()
        hidden = bert(**batch).last_hidden_state[mask][:, ::PROBES]
        values[name] = hidden.detach().contiguous()
    save_file(values, folder / "expected.safetensors")


if __name__ == "__main__":
    REFERENCE.mkdir(exist_ok=True)
    tiny_models()
    real_model()
    adapters()
    for file in sorted(REFERENCE.rglob("*.*")):
        print(f"{file.stat().st_size:9,} {file}")
