"""The analysis of a model: one trace, walked once."""

from .channel_graph import (
    WHOLE,
    ChannelGraph,
    Cost,
    DimMap,
    Group,
    LinearForm,
    SizedCall,
    Statistics,
    kind_of,
    same_groups,
)
from .handlers import HANDLERS, register_handler
from .nodes import operator_name
from .tracing import TraceError, kept_by_forward, trace
from .walk import first_keys

__all__ = [
    'HANDLERS',
    'WHOLE',
    'ChannelGraph',
    'Cost',
    'DimMap',
    'Group',
    'LinearForm',
    'SizedCall',
    'Statistics',
    'TraceError',
    'first_keys',
    'kept_by_forward',
    'kind_of',
    'operator_name',
    'register_handler',
    'same_groups',
    'trace',
]
