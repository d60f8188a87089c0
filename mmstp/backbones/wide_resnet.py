"""Wide ResNet of pre-activation basic blocks."""

from collections.abc import Sequence

import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import OptionError
from ..foreign import BatchNorm
from ..registry import MODELS

# Output channels of the three stages at widen_factor=1, and the stride of each stage's first block.
_BASE_CHANNELS = (16, 32, 64)
_STRIDES = (1, 2, 2)


class PreActBlock(BaseModule):
    """Basic block with normalisation and ReLU before each of its two 3x3 convolutions.

    Where the block changes the number of channels or the resolution, the shortcut is a 1x1
    convolution of the pre-activated input, as in the reference implementation; elsewhere it is the
    input itself. Options are those of `WideResNet`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        dropout: float,
        norm_cfg: dict,
        with_cp: bool,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.norm1 = build_norm_layer(norm_cfg, in_channels)[1]
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm2 = build_norm_layer(norm_cfg, out_channels)[1]
        # No operator at all without dropout: nothing to trace, nothing to count.
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = None
        if in_channels != out_channels or stride != 1:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)``."""
        if self.with_cp and x.requires_grad:
            out: torch.Tensor = checkpoint(self._forward, x, use_reentrant=False)
            return out
        return self._forward(x)

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        preact = self.relu(self.norm1(x))
        identity = x if self.shortcut is None else self.shortcut(preact)
        out = self.relu(self.norm2(self.conv1(preact)))
        return identity + self.conv2(self.dropout(out))


@MODELS.register_module()
class WideResNet(BaseBackbone):
    """Wide ResNet: 3x3 stem of 16 channels, three stages of ``16k``, ``32k``, ``64k`` channels.

    The last normalisation and ReLU belong to the backbone, so a pooling neck and a linear head
    follow directly. WRN-28-10 with a linear head of 100 classes has 36.5 million parameters.

    Args:
        depth: Number of convolutions, stem and shortcuts included: ``6n + 4`` for n blocks in each
            stage.
        widen_factor: The factor k on the channels of the stages.
        dropout: Probability of dropping an element between the convolutions of a block.
        in_channels: Channels of the input image.
        norm_cfg: Config of the normalisation layers. Defaults to ``dict(type='BN')``.
        out_indices: The stages whose outputs are returned, of 0, 1 and 2; the last one's by
            default. Those of the others are what the next stage takes, before it normalises.
        frozen_stages: Stages (and the stem before them) that are not trained; -1 for none, 0 for
            the stem alone.
        norm_eval: Whether normalisation layers use their running statistics in training too.
        with_cp: Keep only the inputs of blocks for the backward pass: less memory, more time.
        init_cfg: Initialisation. Defaults to the original one: He et al.'s normal distribution by
            fan-out for convolutions, one and zero for normalisation layers.

    Attributes:
        out_channels: Channels of the feature map that :meth:`forward` returns.

    Raises:
        OptionError: If ``depth`` is not ``6n + 4`` with n at least 1, ``widen_factor`` is below 1,
            ``dropout`` is outside [0, 1), or there is no such stage.

    References:
        Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, Table 1 and Section 3,
        https://arxiv.org/abs/1605.07146
    """

    def __init__(
        self,
        depth: int = 28,
        widen_factor: int = 10,
        dropout: float = 0.0,
        in_channels: int = 3,
        norm_cfg: dict | None = None,
        out_indices: Sequence[int] = (2,),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        blocks, rest = divmod(depth - 4, 6)
        if blocks < 1 or rest:
            raise OptionError(f'WideResNet.depth must be 6n + 4 (10, 16, 22, 28, ...), got {depth}')
        if widen_factor < 1:
            raise OptionError(f'WideResNet.widen_factor must be at least 1, got {widen_factor}')
        if not 0 <= dropout < 1:
            raise OptionError(f'WideResNet.dropout must lie in [0, 1), got {dropout}')
        if not out_indices or not set(out_indices) <= {0, 1, 2}:
            raise OptionError(f'WideResNet.out_indices must be of 0, 1 and 2, got {out_indices}')
        if frozen_stages not in (-1, 0, 1, 2, 3):
            raise OptionError(f'WideResNet.frozen_stages must lie in [-1, 3], got {frozen_stages}')
        if init_cfg is None:
            init_cfg = [
                dict(type='Kaiming', layer='Conv2d', mode='fan_out', nonlinearity='relu'),
                dict(type='Constant', layer=['_BatchNorm', 'GroupNorm'], val=1, bias=0),
            ]
        super().__init__(init_cfg)
        norm_cfg = norm_cfg or dict(type='BN')

        channels = _BASE_CHANNELS[0]
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        for i, (base, stride) in enumerate(zip(_BASE_CHANNELS, _STRIDES, strict=True), start=1):
            stage, width = nn.Sequential(), base * widen_factor
            for _ in range(blocks):
                stage.append(PreActBlock(channels, width, stride, dropout, norm_cfg, with_cp))
                channels, stride = width, 1
            self.add_module(f'layer{i}', stage)
        self.norm1 = build_norm_layer(norm_cfg, channels)[1]
        self.relu = nn.ReLU(inplace=True)
        self.out_channels = channels
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self._freeze_stages()

    def _freeze_stages(self) -> None:
        for name in ('conv1', 'layer1', 'layer2', 'layer3')[: self.frozen_stages + 1]:
            self.get_submodule(name).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> 'WideResNet':
        """Train or eval mode, but for what is frozen."""
        super().train(mode)
        if mode:
            self._freeze_stages()
            for module in self.modules():
                if self.norm_eval and isinstance(module, BatchNorm):
                    module.eval()
        return self

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map images ``(N, in_channels, H, W)`` to the feature maps of ``out_indices``.

        The last stage's is ``(N, out_channels, ⌈H/4⌉, ⌈W/4⌉)``.
        """
        x = self.conv1(x)
        outputs = []
        for i, stage in enumerate((self.layer1, self.layer2, self.layer3)):
            x = stage(x)
            if i == 2:
                x = self.relu(self.norm1(x))
            if i in self.out_indices:
                outputs.append(x)
        return tuple(outputs)
