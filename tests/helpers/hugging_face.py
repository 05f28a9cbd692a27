"""Networks of Hugging Face's transformers, and stand-ins of their parts."""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HAS_TRANSFORMERS = importlib.util.find_spec('transformers') is not None
D = 16


class Conv1D(nn.Module):
    """Linear layer of GPT-2, whose weight is (in, out)."""

    __module__ = 'transformers.pytorch_utils'

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(0.02 * torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.addmm(self.bias, x.view(-1, self.nx), self.weight)
        return rows.view(*x.shape[:-1], self.nf)


class Attention(nn.Module):
    """Causal attention of two heads, with the names of GPT-2."""

    def __init__(self, causal: bool = True) -> None:
        super().__init__()
        self.causal = causal
        self.c_attn = Conv1D(3 * D, D)
        self.c_proj = Conv1D(D, D)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (2, -1)).transpose(1, 2)
            for part in self.c_attn(x).split(D, -1)
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.c_proj(out.transpose(1, 2).flatten(2))


class Plain(nn.Module):
    """Feed-forward pair of GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.c_fc = Conv1D(4 * D, D)
        self.c_proj = Conv1D(D, 4 * D)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class Gated(nn.Module):
    """Gated feed-forward block, with layers in any order."""

    def __init__(self, gate: str, up: str, down: str, order: str) -> None:
        super().__init__()
        self.names = gate, up, down
        for name in order.split():
            sizes = (2 * D, D) if name == down else (D, 2 * D)
            self.add_module(name, nn.Linear(*sizes, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = map(self.get_submodule, self.names)
        return down(F.silu(gate(x)) * up(x))


class Dense(nn.Module):
    """Module of one linear layer, and of a norm in BERT's ``output``."""

    def __init__(self, d_in: int, d_out: int, norm: bool) -> None:
        super().__init__()
        self.dense = nn.Linear(d_in, d_out)
        self.norm = nn.LayerNorm(d_out) if norm else None

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        out = self.dense(x)
        return self.norm(out + added) if self.norm else F.gelu(out)


class Block(nn.Module):
    """Attention and a feed-forward part, one module or BERT's two."""

    def __init__(self, mlp: nn.Module | None) -> None:
        super().__init__()
        self.attn = Attention(causal=mlp is not None)
        self.ln = nn.LayerNorm(D)
        self.mlp = mlp
        if mlp is None:
            self.intermediate = Dense(D, 2 * D, norm=False)
            self.output = Dense(2 * D, D, norm=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln(x))
        if self.mlp is None:
            return self.output(self.intermediate(x), x)
        return x + self.mlp(self.ln(x))


class StandIn(nn.Module):
    """Language model of two blocks with a tied embedding."""

    def __init__(self, mlp: Callable[[], nn.Module | None]) -> None:
        super().__init__()
        self.wte = nn.Embedding(40, D)
        self.h = nn.ModuleList(Block(mlp()) for _ in range(2))
        self.lm_head = nn.Linear(D, 40, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.wte(input_ids)
        for block in self.h:
            x = block(x)
        return self.lm_head(x)


def real(kind: str, **sizes: Any) -> Callable[[], nn.Module]:
    """Return a constructor of a tiny network of transformers, untrained."""

    def build() -> nn.Module:
        import transformers

        network = getattr(transformers, kind)
        return network(network.config_class(**sizes))

    return build


LLAMA = 'gate_proj up_proj down_proj'
TEXT = dict(vocab_size=40, bos_token_id=0, eos_token_id=1)
BASE = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
)
LENGTH = dict(max_position_embeddings=32)
#: By name: constructor, the widened layers' names within a block or module,
#: and whether no output depends on later tokens.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], str, bool]] = {
    'stand-in of GPT-2': (lambda: StandIn(Plain), 'c_fc c_proj', True),
    'stand-in of Llama': (
        lambda: StandIn(lambda: Gated(*LLAMA.split(), LLAMA)),
        LLAMA,
        True,
    ),
    'stand-in of Mixtral': (  # Its second layer is registered last.
        lambda: StandIn(lambda: Gated('w1', 'w3', 'w2', 'w1 w2 w3')),
        'w1 w2 w3',
        True,
    ),
    'stand-in of BERT': (lambda: StandIn(lambda: None), 'dense', False),
}
if HAS_TRANSFORMERS:
    NETWORKS |= {
        'GPT-2': (
            real(
                'GPT2LMHeadModel',
                **TEXT,
                n_positions=32,
                n_embd=32,
                n_layer=2,
                n_head=2,
            ),
            'c_fc c_proj',
            True,
        ),
        'OPT': (
            real(
                'OPTForCausalLM',
                **BASE | TEXT | LENGTH,
                ffn_dim=64,
                word_embed_proj_dim=32,
            ),
            'fc1 fc2',
            True,
        ),
        'GPT-NeoX': (
            real('GPTNeoXForCausalLM', **BASE | TEXT | LENGTH),
            'dense_h_to_4h dense_4h_to_h',
            True,
        ),
        'Llama': (
            real(
                'LlamaForCausalLM',
                **BASE | TEXT | LENGTH,
                num_key_value_heads=1,
            ),
            LLAMA,
            True,
        ),
        'BERT': (
            real('BertForMaskedLM', **BASE | LENGTH, vocab_size=40),
            'dense',
            False,
        ),
        'ViT': (
            real(
                'ViTForImageClassification',
                **BASE,
                image_size=32,
                patch_size=8,
            ),
            'dense fc1 fc2',
            False,
        ),
    }
