"""What the paper's tables say: top-1 in percent, by network and method, for 15, 35 and 55 %."""

from __future__ import annotations

BUDGETS = (0.15, 0.35, 0.55)

Numbers = dict[str, dict[str, tuple[float, ...]]]

# Table 1: CIFAR-100. The dense networks have one number.
CIFAR100: Numbers = {
    'ResNet-50': {
        'dense': (78.14,),
        'rst-s': (75.02, 76.38, 76.48),
        'group-sl': (49.04, 77.90, 78.37),
        'otov2': (77.04, 77.65, 78.35),
        'refill': (75.12, 77.43, 78.19),
        'stp': (79.64, 80.00, 80.41),
    },
    'MBV3': {
        'dense': (78.09,),
        'rst-s': (72.90, 76.78, 77.30),
        'group-sl': (1.43, 4.90, 26.24),
        'otov2': (76.29, 77.35, 78.39),
        'refill': (69.57, 75.91, 76.96),
        'stp': (76.81, 78.57, 79.09),
    },
    'WRN28-10': {
        'dense': (82.17,),
        'rst-s': (78.56, 81.18, 82.19),
        'group-sl': (42.41, 67.71, 79.59),
        'otov2': (77.26, 80.61, 80.84),
        'refill': (75.98, 79.25, 79.56),
        'stp': (80.12, 81.63, 82.72),
    },
}

# Table 2: Tiny ImageNet.
TINY_IMAGENET: Numbers = {
    'ResNet-50': {
        'dense': (64.28,),
        'rst-s': (63.03, 63.24, 64.78),
        'group-sl': (0.95, 19.94, 55.49),
        'otov2': (60.38, 63.45, 65.16),
        'refill': (61.05, 64.14, 65.02),
        'stp': (65.93, 66.65, 68.27),
    },
}

# Table 3: CIFAR-100.
TRANSFORMERS: Numbers = {
    'ViT': {
        'dense': (76.49,),
        'rst-s': (70.74, 72.05, 74.65),
        'stp': (71.28, 74.49, 76.24),
    },
    'Swin': {
        'dense': (77.16,),
        'rst-s': (70.53, 72.98, 75.25),
        'stp': (75.63, 76.89, 77.14),
    },
}

# Table 5: ResNet-50 on CIFAR-100 at 15 %. Its rows, in order, by what is on.
COMPONENTS = (79.64, 78.12, 78.47, 78.23, 77.97, 77.46, 74.76)

# Table 8: the same, five seeds: architecture, top-1, MACs and parameters in percent.
SEEDS = (
    ('((2, 3, 5, 2), (0.3, 0.3, 0.3, 0.7))', 79.47, 14.88, 22.28),
    ('((1, 3, 6, 2), (0.3, 0.3, 0.3, 0.7))', 79.49, 14.69, 22.36),
    ('((1, 2, 5, 2), (0.5, 0.3, 0.3, 0.7))', 79.55, 15.22, 22.33),
    ('((2, 3, 4, 2), (0.3, 0.3, 0.3, 0.7))', 79.64, 14.89, 21.94),
    ('((2, 2, 6, 2), (0.3, 0.3, 0.3, 0.7))', 79.57, 15.23, 22.93),
)

# Table 9: the same: top-1 at once and at three times the epochs, seconds of an epoch.
SCHEDULES = {
    'rst-s': (75.02, 75.39, 46.58),
    'group-sl': (49.07, 50.12, 75.10),
    'otov2': (77.04, 77.34, 82.22),
    'refill': (75.12, 75.97, 77.32),
    'stp': (79.64, None, 61.92),
}
