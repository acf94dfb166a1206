"""Making the objects of the classes that a configuration names."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.loggers import CSVLogger, Logger

from genre_lightning.errors import SettingError
from genre_lightning.runs.instantiating import make_parts


def test_parts_are_made_in_order_and_null_is_left_out(tmp_path: Any) -> None:
    timer = {"_target_": "pytorch_lightning.callbacks.Timer", "duration": "00:00:01:00"}
    choices = OmegaConf.create({"first": timer, "left_out": None, "second": timer})
    parts = make_parts("callbacks", choices, Callback)
    assert [type(part) for part in parts] == [Timer, Timer]
    files = {"_target_": "pytorch_lightning.loggers.CSVLogger", "save_dir": str(tmp_path)}
    (logger,) = make_parts("logger", {"files": files}, Logger)  # type: ignore[type-abstract]
    assert isinstance(logger, CSVLogger)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"_target_": "mine.PrintRate"}, r"^callbacks\.own: .*No module named 'mine'"),
        ({"_target_": "pytorch_lightning.Callbakc"}, r"^callbacks\.own: .*Callbakc"),
        ({"_target_": "pytorch_lightning.callbacks.Timer", "x": 3}, r"^callbacks\.own: .*'x'"),
        ({"_target_": "builtins.dict"}, r"^callbacks\.own: builtins\.dict makes a dict, which is "),
        (
            {"_target_": "pytorch_lightning.loggers.CSVLogger", "save_dir": "."},
            r"makes a CSVLogger, which is not a Callback of Lightning$",
        ),
    ],
    ids=["module", "class", "argument", "another kind", "a logger"],
)
def test_error_names_the_key_of_an_unusable_class(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        make_parts("callbacks", OmegaConf.create({"own": choice}), Callback)
    assert "\n" not in str(caught.value)
