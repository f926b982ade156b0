"""Compiling for tests: small programs that run a few times, so the compiler hurries."""

import functools

import jax


@functools.cache
def options():
    """Compiler options that trade speed of the program for that of the compiler."""
    wanted = {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_use_fusion_emitters": False,
    }
    try:
        jax.jit(lambda x: x, compiler_options=wanted)(0.0)
    except jax.errors.JaxRuntimeError:  # another version of XLA has other options
        return {}
    return wanted


def jit(function):
    """`jax.jit` that compiles several times faster and runs several times slower."""
    return jax.jit(function, compiler_options=options())
