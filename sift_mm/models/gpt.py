"""GPT: a causal transformer of the GPT-3 shape, dense or of the family."""

import copy
import math
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional

from sift_mm.backbones.any_backbone import (
    apply_member,
    check_unmasked_flops,
)
from sift_mm.backbones.base import (
    FamilyName,
    Flops,
    Inner,
    SparseFactors,
    SparseIFTBackbone,
    make_member,
)
from sift_mm.errors import UserError
from sift_mm.flops import meta_image
from sift_mm.flops.isoflop import expansion
from sift_mm.layers import Composite
from sift_mm.validation import Count, Share, Sparsity, checked

# Target of a place whose prediction does not count.
IGNORED = -1
# Linear layers of a block; those that add to the residual stream are last.
LAYERS = ('q', 'k', 'v', 'up', 'out', 'down')
STD = 0.02


class Block(nn.Module):
    """Pre-norm transformer block.

    Args:
        d_model (int): Width of the residual stream.
        d_ff (int): Inner width of the feed-forward pair.
        heads (int): Number of attention heads.
        dropout (float): Dropout of attention weights and of both outputs.
    """

    def __init__(
        self, d_model: int, d_ff: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1 = nn.LayerNorm(d_model)
        self.q = nn.Linear(d_model, d_model)
        self.k = nn.Linear(d_model, d_model)
        self.v = nn.Linear(d_model, d_model)
        self.out = nn.Linear(d_model, d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.up = nn.Linear(d_model, d_ff)
        self.down = nn.Linear(d_ff, d_model)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual stream behind the block, of the same shape."""
        h = self.norm1(x)
        q, k, v = (self._split(f(h)) for f in (self.q, self.k, self.v))
        h = functional.scaled_dot_product_attention(
            q,
            k,
            v,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=True,
        )
        x = x + self.drop(self.out(h.transpose(1, 2).flatten(2)))
        h = functional.gelu(self.up(self.norm2(x)))
        return x + self.drop(self.down(h))

    def _split(self, x: Tensor) -> Tensor:
        """Split (batch, tokens, width) into heads before the tokens."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


@MODELS.register_module()
class GPT(SparseIFTBackbone, BaseModel):
    """Language model of the GPT-3 shape, as a model of MMEngine.

    Token embeddings are also the output layer. Sparse Wide widens the whole
    network and masks the six matrices of each block; embeddings, norms and
    attention scores are dense. The other members replace the six matrices.

    Args:
        vocabulary (int): Number of tokens, V.
        context (int): Largest number of tokens of a text, T.
        layers (int): Number of blocks, L.
        d_model (int): Width of the dense network.
        d_ff (int, optional): Inner width of the dense network's feed-forward
            pairs; None is ``4 * d_model``.
        heads (int): Number of attention heads. Their width grows with the
            network.
        dropout (float): Dropout of embeddings, attention and outputs.
        family (str, optional): Member of the Sparse-IFT family; None is the
            dense network.
        sparsity (float, optional): Nominal share of zero weights, in [0, 1).
        flops (str): 'match' and 'match_model': the sparsity of the masks is
            solved so that the network, with logits and attention at the
            context length, has the dense FLOPs. 'nominal': it is
            ``sparsity``, which matches the six matrices of each block alone.
        inner (str, optional): As for :class:`Member`.
        sparse_factors (str, optional): As for :class:`Member`.
        unmasked (bool): Whether a run may train all weights, without a hook.
        data_preprocessor (dict, optional): As for MMEngine's BaseModel.
        init_cfg (dict, optional): Config of type 'Pretrained', or one that
            MMEngine applies after our initialization.

    Raises:
        ValueError: If an argument is invalid, or the heads do not divide a
            width.
    """

    @checked
    def __init__(
        self,
        vocabulary: Count,
        context: Count,
        layers: Count,
        d_model: Count,
        d_ff: Count | None = None,
        heads: Count = 1,
        dropout: Share = 0.0,
        family: FamilyName | None = None,
        sparsity: Sparsity | None = None,
        flops: Flops = 'match',
        inner: Inner | None = None,
        sparse_factors: SparseFactors | None = None,
        unmasked: bool = False,
        data_preprocessor: Any = None,
        init_cfg: Any = None,
    ) -> None:
        member = make_member(family, sparsity, inner, sparse_factors)
        super().__init__(data_preprocessor)
        d_ff = d_ff or 4 * d_model
        self._dense: dict[str, Any] = dict(
            vocabulary=vocabulary,
            context=context,
            layers=layers,
            d_model=d_model,
            d_ff=d_ff,
            heads=heads,
            dropout=dropout,
        )
        _check_heads(d_model, heads)
        if member is not None and family == 'wide':
            wide = widened(d_model, member.sparsity, heads)
            d_ff, d_model = math.ceil(d_ff * wide / d_model), wide
        self.context, self.d_model, self.d_ff = context, d_model, d_ff
        self.embedding = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(context, d_model)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(d_model, d_ff, heads, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(d_model)
        masked = member is None or family == 'wide' or self._replace(member)
        self.init_cfg = copy.deepcopy(init_cfg)
        self._become(member, flops, (context,), unmasked)
        if not masked and flops != 'nominal':
            check_unmasked_flops(self)

    def _replace(self, member: Any) -> list[str]:
        """Replace the matrices of the blocks; return the masked weights."""
        self._is_init = True  # Else they would be drawn here, too.
        example = meta_image((min(self.context, 16),))
        replaced = apply_member(self, member, None, (), example)
        self._is_init = False
        return replaced

    def init_weights(self) -> None:
        """Draw normal weights, cut at two standard deviations.

        The standard deviation is 0.02, and 0.02 / sqrt(2 L) for the 2 L
        layers that add to the residual stream, as published for GPT-3.
        """
        if self._has_weights():
            return
        for table in (self.embedding, self.positions):
            nn.init.trunc_normal_(table.weight, 0, STD, -2 * STD, 2 * STD)
        for block in self.blocks:
            for name in LAYERS:
                std = STD
                if name in LAYERS[-2:]:
                    std /= math.sqrt(2 * len(self.blocks))
                draw(getattr(block, name), std)
        if self.init_cfg:
            super().init_weights()
        self._is_init = True

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor | None = None,
        mode: str = 'tensor',
    ) -> Any:
        """Run the network on token ids of shape (batch, tokens).

        Args:
            inputs (Tensor): Token ids.
            targets (Tensor, optional): Next token of each place; IGNORED
                leaves a place out.
            mode (str): 'tensor', 'loss' or 'predict', as in MMEngine.

        Returns:
            Tensor | dict | list: Logits (batch, tokens, V); the mean loss
            as ``dict(loss=...)``; or for each text a dict of the summed loss
            in nats and the number of tokens.

        Raises:
            ValueError: If the text is longer than the context.
        """
        tokens = inputs.shape[1]
        if tokens > self.context:
            raise UserError(
                f'A text has {tokens} tokens, and the context of this GPT is '
                f'{self.context}; set model.context and the context of the '
                'data sets to one number.'
            )
        x = self.embedding(inputs) + self.positions.weight[:tokens]
        x = self.drop(x)
        for block in self.blocks:
            x = block(x)
        logits = functional.linear(self.norm(x), self.embedding.weight)
        if mode == 'tensor':
            return logits
        if targets is None:
            raise UserError(f'mode={mode!r} needs targets.')
        if mode == 'loss':
            loss = functional.cross_entropy(
                logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED
            )
            return dict(loss=loss)
        nats = functional.cross_entropy(
            logits.transpose(1, 2).float(),
            targets,
            ignore_index=IGNORED,
            reduction='none',
        )
        counts = (targets != IGNORED).sum(1)
        return [
            dict(nats=float(sum_), tokens=int(count))
            for sum_, count in zip(nats.double().sum(1), counts, strict=True)
        ]

    def dense_twin(self) -> nn.Module:
        """Build the dense network on the same device, without its weights."""
        device = self.embedding.weight.device
        with torch.random.fork_rng(devices=[]), device:
            return GPT(**self._dense)

    @property
    def growth(self) -> float:
        """Width divided by the dense twin's."""
        return self.d_model / self._dense['d_model']

    def sparse_parameter_names(self) -> list[str]:
        """Return the names of masked weights; none with family=None."""
        if self.family != 'wide':
            return super().sparse_parameter_names()
        return [
            f'blocks.{i}.{name}.weight'
            for i in range(len(self.blocks))
            for name in LAYERS
        ]


def widened(width: int, sparsity: float, heads: int) -> int:
    """Return a Sparse Wide width, ``sqrt(1 / (1 - s))`` times as large.

    It is rounded up to a multiple of the heads: 768 of 12 heads becomes 1092
    at 0.5 and 1536 at 0.75. The inner width grows in the same ratio.
    """
    exact = width * math.sqrt(expansion(sparsity)) / heads
    return math.ceil(exact - 1e-9) * heads


def draw(layer: nn.Module, std: float) -> None:
    """Initialize a linear layer, or the layers in its place; zero biases."""
    if isinstance(layer, Composite):
        layer.scale = std
        layer.init_weights()
        return
    weight: Any = layer.weight
    bias: Any = layer.bias
    if isinstance(layer, nn.Linear):
        nn.init.trunc_normal_(weight, 0, std, -2 * std, 2 * std)
        nn.init.zeros_(bias)


def _check_heads(d_model: int, heads: int) -> None:
    if d_model % heads:
        raise UserError(
            f'{heads} heads do not divide d_model={d_model}; choose a '
            'multiple of the heads.'
        )
