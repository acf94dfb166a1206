"""PyTorch's compiler is imported when something is first compiled, and is then the real one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.forking import run_command

START = """
import sys
from genre_lightning.lean_imports import load_lightning
load_lightning()
import torch
import pytorch_lightning as pl

def is_loaded():
    return "sympy" in sys.modules
"""

FIT = """
class Line(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
    def training_step(self, batch, number):
        return self.layer(batch).square().mean()
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())

quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False,
             enable_model_summary=False, accelerator="cpu", deterministic=False)
pl.Trainer(max_steps=2, **quiet).fit(Line(), torch.utils.data.DataLoader(torch.ones(4, 2)))
print(is_loaded(), *(name in sys.modules for name in ("scipy.stats", "matplotlib")))
"""

COMPILE = """
layer = torch.nn.Linear(3, 2)
compiled = torch.compile(layer, backend="eager")
numbers = torch.arange(6.0).view(2, 3)
print(is_loaded(), torch.equal(compiled(numbers), layer(numbers)))

from lightning_fabric import wrappers
from torch._dynamo import OptimizedModule
print(OptimizedModule is not wrappers.OptimizedModule)
print([isinstance(compiled, each) for each in (OptimizedModule, wrappers.OptimizedModule)])
print([isinstance(layer, each) for each in (OptimizedModule, wrappers.OptimizedModule)])
"""

SUBMODULE = """
import torch._dynamo.config as config
print(is_loaded(), config is sys.modules["torch._dynamo.config"], config is torch._dynamo.config)
print(type(config.__spec__.loader).__name__, torch._dynamo is sys.modules["torch._dynamo"])
import torch._dynamo.backends.registry as registry
print(registry is torch._dynamo.backends.registry, torch._dynamo.utils.config is config)
"""

DISABLE = """
compiling = []

@torch.compiler.disable
def disabled(x):
    compiling.append(torch.compiler.is_compiling())
    return x + 1

print(disabled(torch.ones(1)).item(), is_loaded())
compiled = torch.compile(lambda x: disabled(x) * 2, backend="eager")
print(compiled(torch.ones(1)).item(), is_loaded(), compiling)
"""

DETERMINISTIC = """
torch.use_deterministic_algorithms(False)
print(is_loaded(), torch.are_deterministic_algorithms_enabled())
torch.use_deterministic_algorithms(True, warn_only=True)
print(torch.are_deterministic_algorithms_enabled())
torch.use_deterministic_algorithms(False)
print(torch.are_deterministic_algorithms_enabled())
"""


TORCHVISION = """
import torchvision
from torchvision.ops import roi_align
print(is_loaded())
late = sys.modules["torch._dynamo.utils"]
boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
print(roi_align(torch.ones(1, 1, 4, 4), boxes, 2).mean().item(), late.is_compile_supported("cpu"))
import torch._dynamo.utils as utils
print(is_loaded(), utils is not late, utils is torch._dynamo.utils)
print(utils.is_compile_supported is not late.is_compile_supported, late.counters is utils.counters)
"""

DISTRIBUTED = """
import socket
import torch.distributed as distributed
from torch.nn.parallel import DistributedDataParallel

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=1, rank=0)
layer = DistributedDataParallel(torch.nn.Linear(2, 1))
layer(torch.ones(1, 2)).sum().backward()
distributed.destroy_process_group()
late, rules = torch._dynamo.utils, torch._dynamo.trace_rules
mode = late.get_optimize_ddp_mode()
print(is_loaded(), layer._use_python_reducer, mode)
import torch._dynamo.config
print(is_loaded(), torch._dynamo.utils is not late, late.get_optimize_ddp_mode() == mode)
torch._dynamo.config.optimize_ddp = False
print(late.get_optimize_ddp_mode(), rules.LEGACY_MOD_INLINELIST
      is torch._dynamo.trace_rules.LEGACY_MOD_INLINELIST)
found = torch._dynamo.trace_rules.get_mod_inlinelist()
rules.clear_lru_cache()
print(torch._dynamo.trace_rules.get_mod_inlinelist.cache_info().currsize)
"""

DECORATORS = """
import inspect

@torch._dynamo.allow_in_graph
def eager(x):
    return x + len(inspect.stack()[0].function)  # 5; the compiler can't trace this

calls = []

@torch._dynamo.assume_constant_result
def constant():
    calls.append(1)
    return len(calls)

print(eager(torch.ones(1)).item(), constant(), is_loaded())
compiled = torch.compile(lambda x: eager(x) * constant(), backend="eager", fullgraph=True)
print(compiled(torch.ones(1)).item(), compiled(torch.ones(1)).item(), calls, is_loaded())
torch._dynamo.allow_in_graph([torch.sin])
"""

INDEPENDENT_SUBMODULE = """
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex as index
places = torch.arange(3)
with index():
    found = torch.vmap(lambda place: torch.arange(3.0)[place])(places)
print(found.tolist(), "torch._dynamo.convert_frame" in sys.modules)
import torch._dynamo.config
print(torch._dynamo._trace_wrapped_higher_order_op.TransformGetItemToIndex is index)
"""

ASSERT_CLOSE = """
import inspect
inspect.getmodule(lambda: 0)
print(is_loaded())
torch.testing.assert_close(torch.ones(2), torch.ones(2))
from torch.distributed.tensor import DTensor
print(DTensor.__name__)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "printed"),
    [
        (FIT, "False False False"),
        (COMPILE, "True True|True|[True, True]|[False, False]"),
        (SUBMODULE, "True True True|SourceFileLoader True|True True"),
        (DISABLE, "2.0 False|4.0 True [False, False]"),
        (DETERMINISTIC, "False False|True|False"),
        (TORCHVISION, "False|1.0 True|True True True|True True"),
        (DISTRIBUTED, "False False ddp_optimizer|True True True|no_optimization True|0"),
        (DECORATORS, "6.0 1 False|12.0 12.0 [1, 1] True"),
        (INDEPENDENT_SUBMODULE, "[0.0, 1.0, 2.0] False|True"),
        (ASSERT_CLOSE, "False|DTensor"),
    ],
    ids=[
        "training",
        "compile",
        "submodule",
        "disable",
        "deterministic",
        "torchvision",
        "distributed",
        "decorators",
        "independent submodule",
        "assert_close",
    ],
)
def test_compiler_is_imported_only_when_needed(code: str, printed: str, repository: Path) -> None:
    if code == FIT:  # a new interpreter, since a forked one has already imported more
        done: Any = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", START + code],
            cwd=repository, capture_output=True, text=True,
        )  # fmt: skip
    else:
        done = run_command(["-c", START + code], repository)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == printed.split("|")


@pytest.mark.slow
def test_scipy_signal_is_complete(repository: Path) -> None:
    code = "import scipy.signal; print(hasattr(scipy.signal, 'convolve'), 'torch' in sys.modules)"
    done = run_command(["-c", START + code], repository)
    assert done.stdout == "True True\n", done.stderr
