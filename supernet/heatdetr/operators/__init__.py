"""The operator table: one row for each kind of latency entry.

To add an operator, write its file (module, MACs, deployed form) and add its row here.
"""

from collections.abc import Mapping

from . import (
    aggregation,
    channelwise,
    condensed,
    decode,
    distributions,
    head,
    original,
    repcnn,
    transitions,
    window,
)
from .base import Operator, Unit

OPERATORS: Mapping[str, Operator] = {
    "preprocess": head.PREPROCESS,
    "stem": transitions.STEM,
    "repcnn": repcnn.OPERATOR,
    "wmsa": window.WMSA,
    "swmsa": window.SWMSA,
    "cw": channelwise.OPERATOR,
    "oa": original.OPERATOR,
    "act": condensed.ACT,
    "enact": condensed.ENACT,
    "pool": condensed.POOL,
    "down": transitions.DOWN,
    "pool_down": transitions.POOL_DOWN,
    "fuse": aggregation.FUSE,
    "lat1": aggregation.LAT1,
    "lat1_fine": aggregation.LAT1_FINE,
    "lat2": aggregation.LAT2,
    "ffn1": aggregation.FFN1,
    "ffn2": aggregation.FFN2,
    "up4": aggregation.UP4,
    "t1_cw": aggregation.T1_CW,
    "t1_oa": aggregation.T1_OA,
    "t1_act": aggregation.T1_ACT,
    "t1_enact": aggregation.T1_ENACT,
    "t1_pool": aggregation.T1_POOL,
    "head": head.HEAD,
    "head_distributions": distributions.HEAD_OF_DISTRIBUTIONS,
    "decode": decode.DECODE,
    "decode_voted": decode.DECODE_VOTED,
    "top_k": decode.TOP_K,
}

__all__ = ["OPERATORS", "Operator", "Unit"]
