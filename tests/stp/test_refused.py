"""Fields of MMEngine's config under which a search cannot run."""

import pytest
from mmengine._strategy import FSDPStrategy, SingleDeviceStrategy
from mmengine.model import MMDistributedDataParallel, MMFullyShardedDataParallel

from mmstp.stp.refused import refuse_fields

FSDP, FLEXIBLE = 'MMFullyShardedDataParallel', dict(runner_type='FlexibleRunner')


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (dict(compile=True), r'compile=True: torch\.compile cannot follow'),
        (dict(compile=dict(mode='default')), r"compile=\{'mode': 'default'\}: torch"),
        (dict(model_wrapper_cfg=dict(type=FSDP)), f'model_wrapper_cfg.type={FSDP!r}: .*pieces'),
        (dict(model_wrapper_cfg=dict(type=MMFullyShardedDataParallel)), 'model_wrapper_cfg.*FSDP'),
        (dict(model_wrapper_cfg=dict(type='MMSeparateDistributedDataParallel')), 'parts of the'),
        (
            dict(FLEXIBLE, strategy=dict(type='FSDPStrategy')),
            "type='FSDPStrategy': .*FSDP",
        ),
        (dict(FLEXIBLE, strategy=dict(type=FSDPStrategy)), 'strategy.type=.*FSDP'),
        (dict(FLEXIBLE, strategy=dict(type='DeepSpeedStrategy')), 'DeepSpeedStrategy.*DeepSpeed'),
        (dict(FLEXIBLE, launcher='pytorch'), "strategy.type='DDPStrategy': the survivor's phase"),
    ],
)
def test_each_is_refused_with_its_reason(config, message):
    with pytest.raises(RuntimeError, match=message):
        refuse_fields(config)


@pytest.mark.parametrize(
    'config',
    [
        {},
        dict(compile=False, launcher='pytorch', model_wrapper_cfg=None),
        dict(model_wrapper_cfg=dict(find_unused_parameters=False)),
        dict(model_wrapper_cfg=dict(type='MMDistributedDataParallel')),
        dict(model_wrapper_cfg=dict(type=MMDistributedDataParallel)),
        dict(FLEXIBLE, strategy=dict(type='SingleDeviceStrategy')),
        dict(FLEXIBLE, strategy=dict(type=SingleDeviceStrategy)),
        FLEXIBLE,
    ],
)
def test_what_works_is_not(config):
    refuse_fields(config)
