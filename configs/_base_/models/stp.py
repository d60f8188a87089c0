# The paper's options. The network, `model.model`, and the size of its input come from the files
# that inherit this one, `target` from each final config.
model = dict(
    type='mmstp.STP',
    metric='macs',
    tolerance=0.02,
    preset='paper',
    space=dict(widths=(0.3, 0.5, 0.7, 0.9, 1.0), divisor=8),
    pool=dict(size=1000, sampling='even', alpha=0.3),
    normalize='layer_norm',
    beta1=1.0,
    beta2=1.0,
    pretrained=None,
)
