"""Every op function of PopXL with the kind, class and output names that its op has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import popxl
from popxl import ops
from popxl.ops import collectives, var_updates

Build = Callable[[], Any]


def var(*shape: int, dtype: popxl.dtype = popxl.float32, name: str = "w") -> popxl.Tensor:
    """A new variable of ones in the main graph."""
    return popxl.variable(np.ones(shape), dtype, name=name)


def x() -> popxl.Tensor:
    return var(2, 4, name="x")


def ints(*shape: int) -> popxl.Tensor:
    return var(*shape, dtype=popxl.int32, name="i")


def seed() -> popxl.Tensor:
    return var(2, dtype=popxl.uint32, name="seed")


def flags() -> popxl.Tensor:
    return var(2, 4, dtype=popxl.bool, name="b")


def scalar() -> popxl.Tensor:
    return var(name="s")


def scale() -> popxl.Tensor:
    return popxl.constant(0, popxl.int32, name="scale")


def fp8(*shape: int) -> popxl.Tensor:
    return var(*shape, dtype=popxl.float8_143, name="f")


def buffer() -> popxl.RemoteBuffer:
    return popxl.remote_buffer((2, 4), popxl.float32, 1)


def graph(fn: Callable[..., Any] = lambda t: t + t) -> popxl.Graph:
    return popxl.gir().create_graph(fn, popxl.TensorSpec((2, 4), popxl.float32))


def image() -> popxl.Tensor:
    return var(1, 2, 4, 4, name="x")


def last(graph: popxl.Graph) -> Any:
    """The handle of the newest op."""
    return graph._pb_graph.getOps()[-1]


# function -> (kind, class, names of the outputs, what builds it)
UNARY = {
    "abs": ("Abs", "AbsOp", "abs_out"),
    "argmax": ("ArgMax", "ArgMaxOp", "argmax_out"),
    "argmin": ("ArgMin", "ArgMinOp", "argmin_out"),
    "ceil": ("Ceil", "CeilOp", "ceil_out"),
    "clip": ("Clip", "ClipOp", "clip_out"),
    "cos": ("Cos", "CosOp", "cos_out"),
    "cumsum": ("CumSum", "CumSumOp", "cumsum_out"),
    "detach": ("Detach", "DetachOp", "detach_out"),
    "detach_": ("DetachInplace", "DetachInplaceOp", "detach_out"),
    "exp": ("Exp", "ExpOp", "exp_out"),
    "exp_": ("ExpInplace", "ExpInplaceOp", "exp_inplace_out"),
    "floor": ("Floor", "FloorOp", "floor_out"),
    "gelu": ("Gelu", "GeluOp", "gelu_out"),
    "gelu_": ("GeluInplace", "GeluInplaceOp", "gelu_inplace_out"),
    "geluerf": ("GeluErf", "GeluErfOp", "geluerf_out"),
    "geluerf_": ("GeluErfInplace", "GeluErfInplaceOp", "geluerf_inplace_out"),
    "identity": ("Identity", "IdentityOp", "identity_x"),
    "io_tile_copy": ("IoTileCopy", "IoTileCopyOp", "x_iotilecopy"),
    "isinf": ("IsInf", "IsInf", "isinf_out"),
    "isnan": ("IsNaN", "IsNaN", "isnan_out"),
    "l1": ("ReduceL1", "ReduceL1Op", "l1_out"),
    "l2": ("ReduceL2", "ReduceL2Op", "l2_out"),
    "lamb_square": ("LambSquare", "LambSquareOp", "lamb_square_out"),
    "log": ("Log", "LogOp", "log_out"),
    "logsum": ("ReduceLogSum", "ReduceLogSumOp", "logsum_out"),
    "logsumexp": ("ReduceLogSumExp", "ReduceLogSumExpOp", "logsumexp_out"),
    "max": ("ReduceMax", "ReduceMaxOp", "max_out"),
    "mean": ("ReduceMean", "ReduceMeanOp", "mean_out"),
    "median": ("ReduceMedian", "ReduceMedianOp", "median_out median_indices_out"),
    "min": ("ReduceMin", "ReduceMinOp", "min_out"),
    "negate": ("Neg", "NegateOp", "negate_out"),
    "print_tensor": ("PrintTensor", "PrintTensorOp", "print_out"),
    "prod": ("ReduceProd", "ReduceProdOp", "prod_out"),
    "relu": ("Relu", "ReluOp", "relu_out"),
    "relu_": ("ReluInplace", "ReluInplaceOp", "relu_inplace_out"),
    "sign": ("Sign", "SignOp", "sign_out"),
    "sin": ("Sin", "SinOp", "sin_out"),
    "sqrt": ("Sqrt", "SqrtOp", "sqrt_out"),
    "sum": ("ReduceSum", "ReduceSumOp", "sum_out"),
    "sumsquare": ("ReduceSumSquare", "ReduceSumSquareOp", "sumsquare_out"),
    "swish": ("Swish", "SwishOp", "swish_out"),
    "swish_": ("SwishInplace", "SwishInplaceOp", "swish_inplace_out"),
    "tanh": ("Tanh", "TanhOp", "tanh_out"),
    "transpose": ("Transpose", "TransposeOp", "x_T"),
    "transpose_": ("TransposeInplace", "TransposeInplaceOp", "x_T"),
}
BINARY = {
    "add": ("Add", "AddOp", "add_out"),
    "add_": ("AddLhsInplace", "AddLhsInplaceOp", "add_lhs_inplace_out"),
    "div": ("Div", "DivOp", "div_out"),
    "equal": ("Equal", "EqualOp", "equal_out"),
    "fmod": ("Fmod", "FmodOp", "fmod_out"),
    "greater": ("Greater", "GreaterOp", "greater_out"),
    "maximum": ("Max", "MaxOp", "maximum_out"),
    "mul": ("Mul", "MulOp", "mul_out"),
    "pow": ("Pow", "PowOp", "pow_out"),
    "scaled_add": ("ScaledAdd", "ScaledAddOp", "scaled_add_out"),
    "scaled_add_": ("ScaledAddLhsInplace", "ScaledAddLhsInplaceOp", "scaled_add__x"),
    "sub": ("Sub", "SubtractOp", "sub_out"),
}
OTHERS: list[tuple[str, str, str, str, Build]] = [
    (
        "average_pool", "AveragePool", "AveragePoolOp", "averagepool_out",
        lambda: ops.average_pool(image(), (2, 2)),
    ),
    (
        "batch_norm_inference", "BatchNormalization", "BatchNormOp", "batch_norm_out",
        lambda: ops.batch_norm_inference(image(), var(2), var(2), var(2), var(2)),
    ),
    ("call", "Call", "CallOp", "add_out", lambda: ops.call(graph(), x())),
    ("cast", "Cast", "CastOp", "x_float16", lambda: ops.cast(x(), popxl.float16)),
    ("concat", "Concat", "ConcatOp", "concat_out", lambda: ops.concat([x(), var(1, 4)])),
    ("concat_", "ConcatInplace", "ConcatInplaceOp", "concat_out", lambda: ops.concat_([x(), x()])),
    (
        "conditional", "If", "IfOp", "add_out_or_add_out",
        lambda: ops.conditional(var(dtype=popxl.bool), graph(), graph(), [x()], [x()]),
    ),
    (
        "conv", "Conv", "ConvOp", "conv_out",
        lambda: ops.conv(image(), var(3, 2, 2, 2)),
    ),
    (
        "conv_pow2scaled", "Conv", "ConvOp", "conv_out",
        lambda: ops.conv_pow2scaled(fp8(1, 2, 4, 4), fp8(3, 2, 2, 2), scale()),
    ),
    (
        "conv_transpose", "ConvTranspose", "ConvTransposeOp", "convtranspose_out",
        lambda: ops.conv_transpose(image(), var(2, 3, 2, 2)),
    ),
    (
        "conv_transpose_pow2scaled", "ConvTranspose", "ConvTransposeOp", "convtranspose_out",
        lambda: ops.conv_transpose_pow2scaled(fp8(1, 2, 4, 4), fp8(2, 3, 2, 2), scale()),
    ),
    ("dropout", "Dropout", "DropoutOp", "dropout_out", lambda: ops.dropout(x(), seed(), 0.5)),
    (
        "dynamic_slice", "DynamicSlice", "dynamic.DynamicSliceOp", "dynamic_slice_out",
        lambda: ops.dynamic_slice(x(), var(1, dtype=popxl.uint32), [0], [1], True),
    ),
    (
        "dynamic_update", "DynamicUpdate", "dynamic.DynamicUpdateOp", "dynamic_update_out",
        lambda: ops.dynamic_update(x(), var(1, dtype=popxl.uint32), var(1, 4), [0], [1], True),
    ),
    (
        "dynamic_update_", "DynamicUpdateInplace", "dynamic.DynamicUpdateInplaceOp",
        "dynamicupdateinplace_out",
        lambda: ops.dynamic_update_(x(), var(1, dtype=popxl.uint32), var(1, 4), [0], [1], True),
    ),
    ("gather", "Gather", "GatherOp", "gather_out", lambda: ops.gather(x(), ints(3))),
    (
        "groupedgather", "Gather", "GatherOp", "gather_out",
        lambda: ops.groupedgather(x(), ints(2, 3), axis=1, group_size=2),
    ),
    (
        "group_norm", "GroupNormalization", "GroupNormOp",
        "group_norm_out group_norm_mean group_norm_inv_std_dev",
        lambda: ops.group_norm(x(), var(4), var(4), 2),
    ),
    (
        "layer_norm", "GroupNormalization", "GroupNormOp",
        "group_norm_out group_norm_mean group_norm_inv_std_dev",
        lambda: ops.layer_norm(x(), var(4), var(4)),
    ),
    (
        "histogram", "Histogram", "HistogramOp", "histogram_out",
        lambda: ops.histogram(var(4), [0.5], False),
    ),
    (
        "host_load", "HostLoad", "exchange.HostLoadOp", "in_hostload",
        lambda: ops.host_load(popxl.h2d_stream((2,), popxl.float32, "in")),
    ),
    (
        "host_store", "HostStore", "exchange.HostStoreOp", "",
        lambda: ops.host_store(popxl.d2h_stream((2, 4), popxl.float32, "out"), x()),
    ),
    (
        "increment_mod", "IncrementMod", "IncrementModOp", "increment_mod_out",
        lambda: ops.increment_mod(x(), 1, 3),
    ),
    (
        "increment_mod_", "IncrementModInplace", "IncrementModInplaceOp",
        "increment_mod_inplace_out",
        lambda: ops.increment_mod_(x(), 1, 3),
    ),
    ("init", "Init", "InitOp", "t", lambda: ops.init((2,), popxl.float32)),
    (
        "interpolate", "Resize", "ResizeOp", "interpolate_out",
        lambda: ops.interpolate(image(), (1.0, 1.0, 2.0, 2.0)),
    ),
    ("ipu_copy", "IpuCopy", "IpuCopyOp", "x_c1", lambda: ops.ipu_copy(x(), 1, 0)),
    ("logical_and", "And", "AndOp", "and_out", lambda: ops.logical_and(flags(), flags())),
    ("logical_not", "Not", "NotOp", "not_out", lambda: ops.logical_not(flags())),
    ("logical_or", "Or", "OrOp", "or_out", lambda: ops.logical_or(flags(), flags())),
    ("matmul", "MatMul", "MatMulOp", "matmul_out", lambda: ops.matmul(x(), var(4, 3))),
    (
        "matmul_pow2scaled", "MatMul", "MatMulOp", "matmul_pow2scaled_out",
        lambda: ops.matmul_pow2scaled(fp8(2, 4), fp8(4, 3), scale()),
    ),
    ("max_pool", "MaxPool", "MaxPoolOp", "maxpool_out", lambda: ops.max_pool(image(), (2, 2))),
    ("nll_loss", "Nll", "NllOp", "loss", lambda: ops.nll_loss(x(), ints(2))),
    (
        "nll_loss_with_softmax_grad", "NlllWithSoftmaxGradDirect", "NlllWithSoftmaxGradDirectOp",
        "loss dx",
        lambda: ops.nll_loss_with_softmax_grad(x(), ints(2)),
    ),
    (
        "onehot", "OneHot", "OnehotOp", "onehot_out",
        lambda: ops.onehot(ints(3), popxl.constant(4, popxl.int32), var(2), 0),
    ),
    (
        "pow2scale_cast_from_fp8", "CastThenPow2Scale", "CastThenPow2ScaleOp", "f_float16",
        lambda: ops.pow2scale_cast_from_fp8(fp8(2), scale(), popxl.float16),
    ),
    (
        "pow2scale_cast_to_fp8", "Pow2ScaleThenCast", "Pow2ScaleThenCastOp", "h_float8_143",
        lambda: ops.pow2scale_cast_to_fp8(
            var(2, dtype=popxl.float16, name="h"), scale(), popxl.float8_143
        ),
    ),
    (
        "random_normal", "RandomNormal", "RandomNormalOp", "random_normal_out",
        lambda: ops.random_normal(seed(), (2,)),
    ),
    (
        "random_uniform", "RandomUniform", "RandomUniformOp", "random_uniform_out",
        lambda: ops.random_uniform(seed(), (2,)),
    ),
    (
        "remote_code_load", "RemoteCodeLoad", "exchange.RemoteCodeLoadOp", "",
        lambda: ops.remote_code_load(graph(), "executable"),
    ),
    (
        "remote_load", "RemoteLoad", "exchange.RemoteLoadOp", "r_remote_loaded",
        lambda: ops.remote_load(buffer(), ints(1), "r"),
    ),
    (
        "remote_load_", "RemoteLoadInplace", "exchange.RemoteLoadInplaceOp",
        "remote_load_inplace_out",
        lambda: ops.remote_load_(buffer(), ints(1), x()),
    ),
    (
        "remote_store", "RemoteStore", "exchange.RemoteStoreOp", "",
        lambda: ops.remote_store(buffer(), ints(1), x()),
    ),
    ("reshape", "Reshape", "ReshapeOp", "x_reshaped", lambda: ops.reshape(x(), (8,))),
    ("reshape_", "ReshapeInplace", "ReshapeInplaceOp", "x_reshaped", lambda: x().reshape_((8,))),
    ("flatten", "Reshape", "ReshapeOp", "x_reshaped", lambda: ops.flatten(x())),
    ("squeeze", "Reshape", "ReshapeOp", "w_reshaped", lambda: ops.squeeze(var(1, 4))),
    (
        "roi_align", "RoiAlign", "RoiAlignOp", "roi_align_out",
        lambda: ops.roi_align(image(), var(3, 4), ints(3), (2, 2), 1.0, 1),
    ),
    (
        "scatter", "Scatter", "ScatterOp", "scatter_out",
        lambda: ops.scatter(x(), ints(1, 4), var(1, 4)),
    ),
    (
        "scatter_reduce", "ScatterReduce", "ScatterReduceOp", "scatterreduce_out",
        lambda: ops.scatter_reduce(x(), ints(2, 4), "sum", axis_size=3),
    ),
    (
        "shaped_dropout", "ShapedDropout", "ShapedDropoutOp", "shapeddropout_out",
        lambda: ops.shaped_dropout(x(), seed(), (2, 1), 0.5),
    ),
    ("slice", "Slice", "SliceOp", "slice_out", lambda: ops.slice(x(), 0, 1, axis=0)),
    ("slice_", "SliceInplace", "SliceInplaceOp", "slice_out", lambda: ops.slice_(x(), 0, 1)),
    ("softmax", "Softmax", "SoftmaxOp", "softmax_out", lambda: ops.softmax(x(), 1)),
    ("split", "Split", "SplitOp", "x_split_0 x_split_1", lambda: ops.split(x(), 2)),
    (
        "split_random_seed", "ModifyRandomSeed", "ModifyRandomSeedOp", "modified_seed",
        lambda: ops.split_random_seed(seed(), 1),
    ),
    ("subsample", "Subsample", "SubsampleOp", "subsample_out", lambda: ops.subsample(x(), 2)),
    (
        "tied_gather", "PopartTiedGather", "TiedGatherOp", "tiedgather_out",
        lambda: ops.tied_gather(x(), ints(3)),
    ),
    (
        "topk", "TopK", "TopKOp", "topk_out_value topk_out_indices",
        lambda: ops.topk(x(), 2, 1, True, True),
    ),
    ("where", "Where", "WhereOp", "where_out", lambda: ops.where(flags(), x(), x())),
    (
        "all_reduce", "AllReduce", "collectives.AllReduceOp",
        "all_reduce_out_0 all_reduce_out_1",
        lambda: collectives.all_reduce([x(), x().copy_to_ipu(1, 0)], [0, 1]),
    ),
    (
        "replicated_all_gather", "ReplicatedAllGather", "collectives.ReplicatedAllGatherOp",
        "x_all_gathered",
        lambda: collectives.replicated_all_gather(x()),
    ),
    (
        "replicated_all_reduce", "ReplicatedAllReduce", "collectives.ReplicatedAllReduceOp",
        "x_all_reduce",
        lambda: collectives.replicated_all_reduce(x()),
    ),
    (
        "replicated_all_reduce_", "ReplicatedAllReduceInplace",
        "collectives.ReplicatedAllReduceInplaceOp", "x_all_reduce",
        lambda: collectives.replicated_all_reduce_(x()),
    ),
    (
        "replicated_reduce_scatter", "ReplicatedReduceScatter",
        "collectives.ReplicatedReduceScatterOp", "x_reduce_scattered",
        lambda: collectives.replicated_reduce_scatter(x()),
    ),
    (
        "replica_sharded_slice", "ReplicatedReduceScatter",
        "collectives.ReplicatedReduceScatterOp", "x_sharded_slice",
        lambda: collectives.replica_sharded_slice(x()),
    ),
    (
        "replicated_slice", "ReplicatedReduceScatter",
        "collectives.ReplicatedReduceScatterOp", "x_replicated_slice",
        lambda: collectives.replicated_slice(x()),
    ),
    *(
        (
            function, "Accumulate", "AccumulateOp", f"{name}__x",
            lambda function=function: getattr(var_updates, function)(x(), x(), 0.5),
        )
        for function, name in {
            "accumulate_": "accumulate",
            "accumulate_mean_": "accumulate_mean",
            "accumulate_moving_average_": "accumulate_moving_avg",
            "accumulate_moving_average_square_": "accumulate_moving_avg_square",
            "accumulate_square_": "accumulate_square",
        }.items()
    ),
    (
        "accumulator_scale_", "AccumulatorScale", "AccumulatorScaleOp", "accumulator_scale__x",
        lambda: var_updates.accumulator_scale_(x(), 0.5),
    ),
    (
        "accumulator_zero_", "AccumulatorScale", "AccumulatorScaleOp", "accumulator_scale__x",
        lambda: var_updates.accumulator_zero_(x()),
    ),
    (
        "sparse_accumulate_", "PopartSparseAccumulate", "SparseAccumulateOp",
        "sparse_accumulate__x",
        lambda: var_updates.sparse_accumulate_(x(), var(3, 4), ints(3)),
    ),
    (
        "adam_updater", "AdamUpdater", "AdamUpdaterOp", "Updater",
        lambda: var_updates.adam_updater(x(), x()),
    ),
    (
        "lamb_updater", "AdamUpdater", "AdamUpdaterOp", "Updater",
        lambda: var_updates.lamb_updater(x(), x()),
    ),
    (
        "adamax_updater", "AdamUpdater", "AdamUpdaterOp", "Updater",
        lambda: var_updates.adamax_updater(x(), x(), time_step=scalar()),
    ),
    (
        "adam_var_update", "AdamVarUpdate", "AdamVarUpdateOp", "adam_var_update_out",
        lambda: var_updates.adam_var_update(x(), x(), scalar(), scalar(), 0.1, 1.0),
    ),
    (
        "copy_var_update_", "CopyVarUpdate", "CopyVarUpdateOp", "updated__x",
        lambda: var_updates.copy_var_update_(x(), var(2, 4)),
    ),
]  # fmt: skip
CASES = [
    *((f, *facts, lambda f=f: getattr(ops, f)(x())) for f, facts in UNARY.items()),
    *((f, *facts, lambda f=f: getattr(ops, f)(x(), var(2, 4))) for f, facts in BINARY.items()),
    *OTHERS,
]
