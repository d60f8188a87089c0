"""The analysis of a model: one trace, walked once."""

from .channel_graph import WHOLE, ChannelGraph, Cost, DimMap, Group, LinearForm, kind_of
from .handlers import HANDLERS, register_handler
from .walk import TraceError, first_keys

__all__ = [
    'HANDLERS',
    'WHOLE',
    'ChannelGraph',
    'Cost',
    'DimMap',
    'Group',
    'LinearForm',
    'TraceError',
    'first_keys',
    'kind_of',
    'register_handler',
]
