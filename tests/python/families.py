"""Models of transformers, torchvision and timm, with small random weights, split and compared with the whole.

By hand, for the table in docs/splitting-models.md: `python families.py [name...]`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dualpipe

# Of all families; None in a family's own takes one away.
COMMON = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
EXPERTS = dict(num_local_experts=4, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
LATENT = dict(
    q_lora_rank=16,
    kv_lora_rank=8,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=8,
    n_routed_experts=4,
    n_group=1,
    topk_group=1,
    first_k_dense_replace=1,
    num_key_value_heads=4,
)
GPT2 = dict(n_embd=32, n_layer=4, n_head=4, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
OPT = dict(ffn_dim=48, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, layerdrop=0.0)
MAMBA = dict(state_size=8, expand=2, conv_kernel=4)

CAUSAL: dict[str, dict] = {
    "apertus": {},
    "arcee": {},
    "bamba": dict(mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, attn_layer_indices=[1]),
    "bart": dict(d_model=32, decoder_layers=4, decoder_attention_heads=4, decoder_ffn_dim=48, dropout=0.0),
    "biogpt": dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    "bloom": dict(n_layer=4, n_head=4, hidden_dropout=0.0, attention_dropout=0.0),
    "codegen": dict(GPT2, rotary_dim=4),
    "cohere": {},
    "cohere2": {},
    "ctrl": dict(n_embd=32, dff=48, n_layer=4, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0),
    "deepseek_v2": dict(EXPERTS, **LATENT),
    "deepseek_v3": dict(EXPERTS, **LATENT),
    "ernie4_5": {},
    "exaone4": {},
    "falcon": dict(head_dim=None, hidden_dropout=0.0, attention_dropout=0.0, num_kv_heads=2),
    "gemma": {},
    "gemma2": dict(query_pre_attn_scalar=8),
    "gemma3_text": dict(query_pre_attn_scalar=8),
    "glm": {},
    "glm4": {},
    "glm4_moe": dict(EXPERTS, n_routed_experts=4, n_group=1, topk_group=1),
    "gpt2": GPT2,
    "gpt_bigcode": GPT2,
    "gpt_neo": dict(
        num_layers=4, num_heads=4, attention_types=[[["global", "local"], 2]], embed_dropout=0.0, resid_dropout=0.0
    ),
    "gpt_neox": dict(hidden_dropout=0.0, attention_dropout=0.0),
    "gpt_oss": EXPERTS,
    "gptj": dict(GPT2, rotary_dim=4),
    "granite": {},
    "granitemoe": EXPERTS,
    "helium": {},
    "jamba": dict(EXPERTS, attn_layer_period=2, attn_layer_offset=1, mamba_d_state=8, use_mamba_kernels=False),
    "llama": {},
    "llama tied": dict(tie_word_embeddings=True),
    "mamba": MAMBA,
    "mamba2": dict(MAMBA, num_heads=8, head_dim=8, n_groups=1, chunk_size=8),
    "mistral": {},
    "mixtral": EXPERTS,
    "mixtral with its auxiliary loss": dict(EXPERTS, output_router_logits=True),
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmoe": EXPERTS,
    "opt": dict(OPT, word_embed_proj_dim=32),
    "phi": dict(resid_pdrop=0.0, embd_pdrop=0.0, num_key_value_heads=4),
    "phi3": dict(resid_pdrop=0.0, embd_pdrop=0.0),
    "qwen2": {},
    "qwen2_moe": dict(EXPERTS, shared_expert_intermediate_size=16),
    "qwen3": {},
    "qwen3_moe": EXPERTS,
    "recurrent_gemma": dict(lru_width=32, attention_window_size=16),
    "smollm3": {},
    "stablelm": {},
    "starcoder2": dict(residual_dropout=0.0, embedding_dropout=0.0),
    "xglm": dict(OPT, d_model=32, num_layers=4, attention_heads=4),
}

TORCHVISION: dict[str, dict] = {
    "alexnet": {},
    "convnext_tiny": {},
    "densenet121": {},
    "efficientnet_b0": {},
    "efficientnet_v2_s": {},
    "googlenet": dict(aux_logits=False, init_weights=False),
    "inception_v3": dict(aux_logits=False, init_weights=False),
    "maxvit_t": {},
    "mnasnet0_5": {},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "regnet_y_400mf": {},
    "resnet18": {},
    "resnet50": {},
    "shufflenet_v2_x0_5": {},
    "squeezenet1_1": {},
    "swin_t": {},
    "swin_v2_t": {},
    "vgg11_bn": {},
    "vit_b_32": {},
    "wide_resnet50_2": {},
}
TIMM: dict[str, int] = {  # and the size of their images
    "beit_base_patch16_224": 224,
    "cait_xxs24_224": 224,
    "coatnet_0_rw_224": 224,
    "convmixer_768_32": 64,
    "convnextv2_atto": 64,
    "deit_tiny_patch16_224": 224,
    "edgenext_xx_small": 64,
    "efficientformer_l1": 224,
    "eva02_tiny_patch14_224": 224,
    "ghostnet_100": 64,
    "hrnet_w18_small": 64,
    "mixer_s32_224": 224,
    "mobilevit_xxs": 64,
    "nfnet_f0": 64,
    "poolformer_s12": 64,
    "regnetx_002": 64,
    "repvgg_a0": 64,
    "res2net50_26w_4s": 64,
    "resnest14d": 64,
    "rexnet_100": 64,
    "tresnet_m": 64,
    "twins_svt_small": 64,
    "vit_tiny_patch16_224": 224,
    "xcit_nano_12_p16_224": 224,
}


def causal(name: str) -> tuple[nn.Module, dict]:
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = name.split()[0]
    accepted = type(AutoConfig.for_model(kind))
    own = CAUSAL[name]
    options = {**COMMON, "tie_word_embeddings": False, **own}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(accepted(**{k: v for k, v in options.items() if v is not None}))
    ids = torch.randint(3, 97, (4, 12))
    labels = ids.clone()
    labels[0, :3] = -100
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def images(rows: int, size: int) -> Tensor:
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(1))


def vision(name: str) -> tuple[nn.Module, dict | tuple]:
    import torchvision

    torch.manual_seed(0)
    size = 75 if name == "inception_v3" else 224 if name.startswith(("maxvit", "vit", "swin")) else 64
    model = torchvision.models.get_model(name, num_classes=7, **TORCHVISION[name])
    return without_dropout(model), (images(2, size),)


def of_timm(name: str) -> tuple[nn.Module, dict | tuple]:
    import timm

    torch.manual_seed(0)
    return without_dropout(timm.create_model(name, num_classes=7)), (images(2, TIMM[name]),)


def without_dropout(model: nn.Module) -> nn.Module:
    """The stages draw other random numbers than the whole."""
    for module in model.modules():
        if type(module).__name__ in ("StochasticDepth", "DropPath"):
            module.p = module.drop_prob = 0.0
        elif isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for attribute in ("dropout", "drop_path_rate", "attention_dropout", "drop_rate"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
    return model


def loss_of(outputs: Tensor | list | dict) -> Tensor:
    if isinstance(outputs, dict):
        return outputs["loss"]
    tensor = outputs if isinstance(outputs, Tensor) else outputs[0]
    return tensor if tensor.dim() == 0 else F.cross_entropy(tensor, torch.arange(len(tensor)) % tensor.size(-1))


def through(stages: dualpipe.Split, inputs: tuple[Tensor, ...]) -> Tensor:
    """Loss and gradients as a pipeline computes them, in one process."""
    values: list = list(inputs)
    made = []
    for stage in stages:
        if not stage.is_first:
            leaf = values[0].detach().contiguous().requires_grad_()
            made.append((values[0], leaf))
            values = [leaf * 1, *values[1:]]  # a leaf may not be changed in place
        output = stage(*values)
        values = output if isinstance(output, list) else [output]
    loss = loss_of(values)
    loss.backward()
    for sent, leaf in reversed(made):
        sent.backward(leaf.grad)
    return loss.detach()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def compare(model: nn.Module, example: dict | tuple, count: int) -> float:
    """The largest difference of a gradient, the loss, or a buffer, relative to the largest gradient, or the loss.
    0.0: bit by bit the same."""
    model.train()
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    outputs = model(**example) if isinstance(example, dict) else model(*example)
    expected = loss_of(outputs)
    expected.backward()
    whole = gradients(model)
    changed = {n: b.clone() for n, b in model.named_buffers()}
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    stages = dualpipe.split(model, count, example)
    loss = through(stages, stages.inputs(example))
    pairs = [(loss, expected.detach())] + [(b, changed[n]) for n, b in model.named_buffers()]
    got = gradients(model)
    assert got.keys() == whole.keys(), got.keys() ^ whole.keys()
    pairs += [(got[name], gradient) for name, gradient in whole.items()]
    model.zero_grad(set_to_none=True)
    check_names(model, stages)
    # Some gradients, of a bias before a BatchNorm say, are zero, and what comes out is noise.
    largest = max([expected.item(), *(gradient.norm().item() for gradient in whole.values())])
    different = [(a.float() - b.float()).norm().item() for a, b in pairs if not torch.equal(a, b)]
    return max(different, default=0.0) / largest


def check_names(model: nn.Module, stages: dualpipe.Split) -> None:
    """The stages' state_dicts add up to the model's; a parameter is on one stage, unless it is shared."""
    parts = [stage.state_dict() for stage in stages]
    whole = model.state_dict()
    assert {name for part in parts for name in part} == set(whole)
    assert all(torch.equal(tensor, whole[name]) for part in parts for name, tensor in part.items())
    for name, parameter in model.named_parameters():
        held = [i for i, stage in enumerate(stages) if any(p is parameter for p in stage.parameters())]
        assert held == stages.shared.get(name, held[:1]), (name, held)


FAMILIES: dict[str, Callable] = {
    **{name: causal for name in CAUSAL},
    **{name: vision for name in TORCHVISION},
    **{name: of_timm for name in TIMM},
}


def verdict(name: str, count: int) -> str:
    try:
        model, example = FAMILIES[name](name)
    except Exception as error:
        return f"not made here: {type(error).__name__}: {error}"
    try:
        difference = compare(model, example, count)
    except dualpipe.InputError as error:
        return f"refused: {error}"
    return "bitwise" if difference == 0 else f"{difference:.0e}"


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in sys.argv[1:] or FAMILIES:
        try:
            print("|", name, "|", verdict(name, 2), "|", verdict(name, 4), "|", flush=True)
        except Exception as error:
            print("|", name, "| FAILED", type(error).__name__, error, "|", flush=True)


if __name__ == "__main__":
    main()
