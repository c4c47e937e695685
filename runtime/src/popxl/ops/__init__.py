"""Every op.

Most modules here bear the name of the function they define: after this import the attribute is the
function, and ``from popxl.ops.add import add`` still finds the module.
"""

from popxl.ops import collectives, var_updates
from popxl.ops.abs import abs
from popxl.ops.add import add, add_
from popxl.ops.argminmax import argmax, argmin
from popxl.ops.batch_norm import batch_norm_inference
from popxl.ops.call import CallSiteInfo, call, call_with_info
from popxl.ops.cast import cast, pow2scale_cast_from_fp8, pow2scale_cast_to_fp8
from popxl.ops.ceil import ceil
from popxl.ops.clip import clamp, clip
from popxl.ops.code_copy import remote_code_load as remote_code_load
from popxl.ops.concat import concat, concat_
from popxl.ops.conditional import conditional, conditional_with_info
from popxl.ops.conv import PadType, conv, conv_pow2scaled, conv_transpose, conv_transpose_pow2scaled
from popxl.ops.cos import cos
from popxl.ops.cumsum import cumsum
from popxl.ops.detach import detach, detach_
from popxl.ops.div import div
from popxl.ops.dropout import dropout
from popxl.ops.dynamic_slice import dynamic_slice
from popxl.ops.dynamic_update import dynamic_update, dynamic_update_
from popxl.ops.equal import equal
from popxl.ops.exp import exp, exp_
from popxl.ops.floor import floor as floor
from popxl.ops.fmod import fmod
from popxl.ops.gather import gather, groupedgather, tied_gather
from popxl.ops.gelu import gelu, gelu_
from popxl.ops.geluerf import geluerf, geluerf_
from popxl.ops.greater import greater
from popxl.ops.group_norm import group_norm, layer_norm
from popxl.ops.histogram import histogram
from popxl.ops.host_load import host_load
from popxl.ops.host_store import host_store
from popxl.ops.identity import identity, rename
from popxl.ops.increment_mod import increment_mod, increment_mod_
from popxl.ops.init import init
from popxl.ops.interpolate import interpolate
from popxl.ops.io_tile_copy import io_tile_copy
from popxl.ops.ipu_copy import ipu_copy
from popxl.ops.isfinite import isfinite
from popxl.ops.isinf import isinf
from popxl.ops.isnan import isnan
from popxl.ops.l1 import l1
from popxl.ops.l2 import l2
from popxl.ops.lamb import lamb_square
from popxl.ops.log import log
from popxl.ops.log import log2 as log2
from popxl.ops.logical_and import logical_and
from popxl.ops.logical_not import logical_not
from popxl.ops.logical_or import logical_or
from popxl.ops.logsum import logsum
from popxl.ops.logsumexp import logsumexp
from popxl.ops.matmul import matmul, matmul_pow2scaled
from popxl.ops.max import max, maximum
from popxl.ops.mean import mean
from popxl.ops.median import median
from popxl.ops.min import min
from popxl.ops.mul import mul
from popxl.ops.negate import negate
from popxl.ops.negative_log_likelihood import nll_loss, nll_loss_with_softmax_grad
from popxl.ops.onehot import onehot
from popxl.ops.pool import average_pool, max_pool
from popxl.ops.pow import pow
from popxl.ops.print_tensor import print_tensor
from popxl.ops.prod import prod
from popxl.ops.random import random_normal, random_uniform
from popxl.ops.random_seed import split_random_seed
from popxl.ops.relu import relu, relu_
from popxl.ops.remote_load import remote_load, remote_load_
from popxl.ops.remote_store import remote_store
from popxl.ops.repeat import repeat, repeat_with_info
from popxl.ops.reshape import flatten, flatten_, reshape, reshape_
from popxl.ops.roialign import roi_align
from popxl.ops.scaled_add import scaled_add, scaled_add_
from popxl.ops.scatter import scatter
from popxl.ops.scatter_reduce import scatter_reduce
from popxl.ops.shaped_dropout import shaped_dropout
from popxl.ops.sign import sign
from popxl.ops.sin import sin
from popxl.ops.slice import slice, slice_
from popxl.ops.softmax import softmax
from popxl.ops.split import split
from popxl.ops.sqrt import sqrt
from popxl.ops.squeeze import squeeze
from popxl.ops.sub import sub
from popxl.ops.subsample import subsample
from popxl.ops.sum import sum
from popxl.ops.sumsquare import sumsquare
from popxl.ops.swish import swish, swish_
from popxl.ops.tanh import tanh
from popxl.ops.topk import topk
from popxl.ops.transpose import transpose, transpose_
from popxl.ops.where import where

__all__ = [
    "CallSiteInfo",
    "PadType",
    "abs",
    "add",
    "add_",
    "argmax",
    "argmin",
    "average_pool",
    "batch_norm_inference",
    "call",
    "call_with_info",
    "cast",
    "ceil",
    "clamp",
    "clip",
    "collectives",
    "concat",
    "concat_",
    "conditional",
    "conditional_with_info",
    "conv",
    "conv_pow2scaled",
    "conv_transpose",
    "conv_transpose_pow2scaled",
    "cos",
    "cumsum",
    "detach",
    "detach_",
    "div",
    "dropout",
    "dynamic_slice",
    "dynamic_update",
    "dynamic_update_",
    "equal",
    "exp",
    "exp_",
    "flatten",
    "flatten_",
    "fmod",
    "gather",
    "gelu",
    "gelu_",
    "geluerf",
    "geluerf_",
    "greater",
    "group_norm",
    "groupedgather",
    "histogram",
    "host_load",
    "host_store",
    "identity",
    "increment_mod",
    "increment_mod_",
    "init",
    "interpolate",
    "io_tile_copy",
    "ipu_copy",
    "isfinite",
    "isinf",
    "isnan",
    "l1",
    "l2",
    "lamb_square",
    "layer_norm",
    "log",
    "logical_and",
    "logical_not",
    "logical_or",
    "logsum",
    "logsumexp",
    "matmul",
    "matmul_pow2scaled",
    "max",
    "max_pool",
    "maximum",
    "mean",
    "median",
    "min",
    "mul",
    "negate",
    "nll_loss",
    "nll_loss_with_softmax_grad",
    "onehot",
    "pow",
    "pow2scale_cast_from_fp8",
    "pow2scale_cast_to_fp8",
    "print_tensor",
    "prod",
    "random_normal",
    "random_uniform",
    "relu",
    "relu_",
    "remote_load",
    "remote_load_",
    "remote_store",
    "rename",
    "repeat",
    "repeat_with_info",
    "reshape",
    "reshape_",
    "roi_align",
    "scaled_add",
    "scaled_add_",
    "scatter",
    "scatter_reduce",
    "shaped_dropout",
    "sign",
    "sin",
    "slice",
    "slice_",
    "softmax",
    "split",
    "split_random_seed",
    "sqrt",
    "squeeze",
    "sub",
    "subsample",
    "sum",
    "sumsquare",
    "swish",
    "swish_",
    "tanh",
    "tied_gather",
    "topk",
    "transpose",
    "transpose_",
    "var_updates",
    "where",
]
