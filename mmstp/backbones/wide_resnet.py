"""Wide ResNet of pre-activation basic blocks.

References:
    Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, https://arxiv.org/abs/1605.07146
"""

import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import nn

from mmstp.registry import MODELS

# Output channels of the three stages at widen_factor=1, and the stride of each stage's first block.
_BASE_CHANNELS = (16, 32, 64)
_STRIDES = (1, 2, 2)


class PreActBlock(BaseModule):
    """Basic block with normalisation and ReLU before each of its two 3x3 convolutions.

    Where the block changes the number of channels or the resolution, the shortcut is a 1x1
    convolution of the pre-activated input, as in the reference implementation; elsewhere it is the
    input itself.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolution and of the shortcut.
        dropout: Probability of dropping an element between the convolutions.
        norm_cfg: Config of the normalisation layers.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, dropout: float, norm_cfg: dict
    ) -> None:
        super().__init__()
        self.norm1 = build_norm_layer(norm_cfg, in_channels)[1]
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm2 = build_norm_layer(norm_cfg, out_channels)[1]
        # No operator at all without dropout: nothing to trace, nothing to count.
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = (
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            if in_channels != out_channels or stride != 1
            else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)``."""
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
        init_cfg: Initialisation. Defaults to the original one: He et al.'s normal distribution by
            fan-out for convolutions, one and zero for normalisation layers.

    Attributes:
        out_channels: Channels of the feature map that :meth:`forward` returns.

    Raises:
        ValueError: If ``depth`` is not ``6n + 4`` with n at least 1, ``widen_factor`` is below 1 or
            ``dropout`` is outside [0, 1).

    References:
        Zagoruyko and Komodakis, BMVC 2016, Table 1 and Section 3.
    """

    def __init__(
        self,
        depth: int = 28,
        widen_factor: int = 10,
        dropout: float = 0.0,
        in_channels: int = 3,
        norm_cfg: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        blocks, rest = divmod(depth - 4, 6)
        if blocks < 1 or rest:
            raise ValueError(f'WideResNet.depth must be 6n + 4 (10, 16, 22, 28, ...), got {depth}')
        if widen_factor < 1:
            raise ValueError(f'WideResNet.widen_factor must be at least 1, got {widen_factor}')
        if not 0 <= dropout < 1:
            raise ValueError(f'WideResNet.dropout must lie in [0, 1), got {dropout}')
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
            stage = nn.Sequential()
            for j in range(blocks):
                stage.append(
                    PreActBlock(
                        in_channels=channels,
                        out_channels=base * widen_factor,
                        stride=stride if j == 0 else 1,
                        dropout=dropout,
                        norm_cfg=norm_cfg,
                    )
                )
                channels = base * widen_factor
            self.add_module(f'layer{i}', stage)
        self.norm1 = build_norm_layer(norm_cfg, channels)[1]
        self.relu = nn.ReLU(inplace=True)
        self.out_channels = channels

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        """Map images ``(N, in_channels, H, W)`` to a feature map.

        Args:
            x: Images, ``(N, in_channels, H, W)``.

        Returns:
            A tuple of one tensor ``(N, out_channels, ⌈H/4⌉, ⌈W/4⌉)``.
        """
        x = self.conv1(x)
        x = self.layer3(self.layer2(self.layer1(x)))
        return (self.relu(self.norm1(x)),)
