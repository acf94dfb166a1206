"""train.py, evaluate.py and conf/ as part of the package.

In a clone they are in the top folder, to be read and edited there. In a built package they are
copies in this folder, made by ``setup.py``. Either way they are imported from here.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent
#: The folder with train.py, evaluate.py and conf/.
TOP = _HERE if (_HERE / "train.py").is_file() else _HERE.parents[1]
CONF = TOP / "conf"
#: Where Python searches for this package's modules.
__path__ = list(dict.fromkeys([str(_HERE), str(TOP)]))
