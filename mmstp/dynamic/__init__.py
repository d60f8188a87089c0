"""Modules that run as a part of themselves."""

from .base import ActiveSubnet, DynamicMixin, make_dynamic, make_static
from .calls import Call, CallError
from .forwards import forward_of, register_forward
from .plan import DENSE, Selection, SubnetPlan, plan_subnet, sized_calls
from .sizes import Size, register_sizes, sizes_of
from .static import Skipped, replace_forward, supply_sizes

__all__ = [
    'DENSE',
    'ActiveSubnet',
    'Call',
    'CallError',
    'DynamicMixin',
    'Selection',
    'Size',
    'Skipped',
    'SubnetPlan',
    'forward_of',
    'make_dynamic',
    'make_static',
    'plan_subnet',
    'register_forward',
    'register_sizes',
    'replace_forward',
    'sized_calls',
    'sizes_of',
    'supply_sizes',
]
