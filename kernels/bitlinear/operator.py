"""How a function becomes an operator of PyTorch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch

_HERE = contextlib.nullcontext()
_PLAIN = (torch.Tensor, torch.nn.Parameter)

F = TypeVar("F", bound=Callable[..., Any])


def operator(fake: Callable[..., Any]) -> Callable[[F], F]:
    """Make a function `tersparse::<its name>`, the same on the CPU and on CUDA; fake: what it returns, without the values.

    `torch.library.custom_op` does so too, and looks for aliases among the tensors of every call, which takes longer than a launch.
    """

    def register(function: F) -> F:
        name = f"tersparse::{function.__name__}"
        torch.library.define(name, torch.library.infer_schema(function, mutates_args=()), tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(name, ("cpu", "cuda"), function)
        torch.library.register_fake(name, fake)
        made: F = getattr(torch.ops.tersparse, function.__name__).default
        return made

    return register


def direct(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a call on plain CUDA tensors may go past PyTorch's dispatcher: nothing is compiled or traced, no mode watches."""
    if torch.compiler.is_compiling():
        return False
    return (
        x.is_cuda and type(x) is torch.Tensor and type(weight) in _PLAIN and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0 and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
    )


def on(tensor: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make the tensor's device the current one."""
    if not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(tensor.device)
