"""Modules that run as a part of themselves."""

from .base import ActiveSubnet, DynamicMixin, make_dynamic, make_static
from .plan import Selection, SubnetPlan, plan_subnet, sized_attributes
from .sizes import register_sizes

__all__ = [
    'ActiveSubnet',
    'DynamicMixin',
    'Selection',
    'SubnetPlan',
    'make_dynamic',
    'make_static',
    'plan_subnet',
    'register_sizes',
    'sized_attributes',
]
