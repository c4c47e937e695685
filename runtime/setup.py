"""What pyproject.toml cannot say: a library in C++ that may be missing.

Where there is no compiler, or the build fails, setuptools says so in one line and the installation
goes on: popxl_torch.kernels.native then finds no library and torch does its work. It is no Python
module but is loaded with ctypes; an Extension is what wheels and editable installs know to place.
"""

from setuptools import Extension, setup

NATIVE = "src/popxl_torch/kernels/native"
HEADERS = ("attention_loops", "gemm_loops", "parallel", "quantised_loops")

# The last two: GCC 12 finds uninitialized values in its own header of AVX-512.
QUIET = ("-Wno-uninitialized", "-Wno-maybe-uninitialized")
FLAGS = ("-O3", "-std=c++17", "-g0", "-fvisibility=hidden", *QUIET)

setup(
    ext_modules=[
        Extension(
            "popxl_torch.kernels.native._gemm",
            sources=[f"{NATIVE}/{name}.cpp" for name in ("gemm", "quantised")],
            depends=[f"{NATIVE}/{name}.h" for name in HEADERS],
            language="c++",
            extra_compile_args=[*FLAGS, "-pthread"],
            extra_link_args=["-pthread"],
            optional=True,
        )
    ]
)
