"""Small models, and a pruning step, that the tests of this folder share."""

import pytest
import torch
from torch import nn

HIDDEN, HEADS, SIZE = 32, 4, 8


class MaskedAttention(nn.Module):
    """Self-attention with the layer names of Llama, whose heads a mask multiplies."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.head_dim = HEADS, SIZE
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))

    def forward(self, x, mask=None):
        query, key, value = (
            layer(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        heads = (query @ key.transpose(-1, -2) * self.head_dim**-0.5).softmax(-1) @ value
        if mask is not None:
            heads = heads * mask[:, None, None]
        return self.o_proj(heads.transpose(1, 2).flatten(-2))


class SharedAttention(MaskedAttention):
    """As Gemma3n says that an attention stores its keys and values for other layers, or reuses those of another."""

    def __init__(self, reuses=False, stores=False):
        super().__init__()
        self.is_kv_shared_layer, self.store_full_length_kv = reuses, stores
        if reuses:
            del self.k_proj, self.v_proj


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = MaskedAttention()
        self.fc1, self.fc2 = nn.Linear(HIDDEN, 64), nn.Linear(64, HIDDEN)

    def forward(self, x, mask=None):
        x = x + self.attention(x, mask)
        return x + self.fc2(self.fc1(x).relu())


class Encoder(nn.Module):
    """Two blocks; ``forward`` takes a ``head_mask`` of shape (layers, heads)."""

    def __init__(self, layers=2, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.ModuleList(Block() for _ in range(layers))

    def forward(self, x, head_mask=None):
        for i, block in enumerate(self.layer):
            x = block(x, None if head_mask is None else head_mask[i])
        return x


def batch(seed=0):
    return torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(seed))


def backward(model, head_mask=None, seed=0):
    """One backward pass from fresh gradients."""
    model.zero_grad()
    model(batch(seed), head_mask).square().mean().backward()


def head_config(**changes):
    parameters = {
        "target": 2,
        "normalize": True,
        "stride": SIZE,
        "transpose": False,
        "importance_inputs": ["head_mask"],
        "importance_metric": "abs_gradient",
    }
    names = [f"layer.*.attention.{x}_proj.{kind}" for x in "qkv" for kind in ("weight", "bias")]
    return {"names": names, "parameters": parameters | changes}


def neuron_config(**changes):
    parameters = {
        "target": 24,
        "normalize": False,
        "stride": 1,
        "transpose": False,
        "importance_inputs": ["layer.*.fc1.weight", "layer.*.fc1.bias"],
        "importance_metric": "weighted_gradient",
    }
    return {"names": ["layer.*.fc1.weight", "layer.*.fc1.bias"], "parameters": parameters | changes}


def run_epoch(pruner, step, steps=2, epoch=0):
    """One epoch of a training loop without an optimizer; ``step(i)`` leaves gradients."""
    pruner.on_epoch_begin(epoch)
    for i in range(steps):
        pruner.on_step_begin(i)
        step(i)
        pruner.on_step_end()
    pruner.on_epoch_end()


def tiny_transformers(name):
    """A randomly initialised transformers model with 2 layers and its input ids; skips without transformers."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch.manual_seed(0)
    common = {"vocab_size": 99, "attn_implementation": "eager"}
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6}
    t5 = {"vocab_size": 99, "d_model": 48, "d_kv": 8, "d_ff": 80, "num_layers": 2, "num_heads": 6,
          "decoder_start_token_id": 0}  # fmt: skip
    configs = {
        "albert": lambda: transformers.AlbertConfig(**sizes, embedding_size=16, intermediate_size=80, **common),
        "falcon": lambda: transformers.FalconConfig(**sizes, ffn_hidden_size=80, **common),
        "gptj": lambda: transformers.GPTJConfig(n_embd=48, n_layer=2, n_head=6, rotary_dim=4, n_inner=80, **common),
        "phi": lambda: transformers.PhiConfig(**sizes, intermediate_size=80, **common),
        "phi3": lambda: transformers.Phi3Config(**sizes, intermediate_size=80, pad_token_id=0, bos_token_id=1,
                                                eos_token_id=2, **common),
        "t5": lambda: transformers.T5Config(**t5),
        "flan_t5": lambda: transformers.T5Config(feed_forward_proj="gated-gelu", **t5),
        "bert": lambda: transformers.BertConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=6,
                                                intermediate_size=80, **common),
        "gpt2": lambda: transformers.GPT2Config(n_embd=48, n_layer=2, n_head=6, n_inner=80, **common),
        "llama": lambda: transformers.LlamaConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=6,
                                                  num_key_value_heads=3, head_dim=8, intermediate_size=80, **common),
        "opt": lambda: transformers.OPTConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=6, ffn_dim=80,
                                              word_embed_proj_dim=48, **common),
        "qwen3": lambda: transformers.Qwen3Config(hidden_size=48, num_hidden_layers=2, num_attention_heads=6,
                                                  num_key_value_heads=3, head_dim=8, intermediate_size=80, **common),
    }  # fmt: skip
    classes = {
        "albert": transformers.AlbertForMaskedLM,
        "bert": transformers.BertForSequenceClassification,
        "falcon": transformers.FalconForCausalLM,
        "flan_t5": transformers.T5ForConditionalGeneration,
        "gpt2": transformers.GPT2LMHeadModel,
        "gptj": transformers.GPTJForCausalLM,
        "llama": transformers.LlamaForCausalLM,
        "opt": transformers.OPTForCausalLM,
        "phi": transformers.PhiForCausalLM,
        "phi3": transformers.Phi3ForCausalLM,
        "qwen3": transformers.Qwen3ForCausalLM,
        "t5": transformers.T5ForConditionalGeneration,
    }
    model = classes[name](configs[name]()).eval()
    for parameter in model.parameters():  # fresh biases are zero, and cutting zeros wrongly would not show
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 0.5, 0.1)
    return model, torch.randint(0, 99, (2, 7), generator=torch.Generator().manual_seed(1))
