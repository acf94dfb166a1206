"""train.py, evaluate.py and conf/ as part of the package.

In a clone they are at its top, where one reads and edits them. ``setup.py`` puts copies into this
folder of the package that is built. Either way they are imported from here.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent
#: The folder that has train.py, evaluate.py and conf/.
TOP = _HERE if (_HERE / "train.py").is_file() else _HERE.parents[1]
CONF = TOP / "conf"
#: Where Python looks for the modules of this package.
__path__ = list(dict.fromkeys([str(_HERE), str(TOP)]))
