"""Every file of a package is imported, so that a new one registers itself."""

import importlib
import pkgutil
from collections.abc import Collection


def import_modules(package: str, optional: Collection[str] = ()) -> None:
    """Import all modules of a package, in alphabetical order.

    To be called at the end of the package's ``__init__``, after what its
    modules may import from it. A module that imports one of the ``optional``
    packages is left out where that is not installed.

    Raises:
        ImportError: If a module cannot be imported for another reason.
    """
    path = importlib.import_module(package).__path__
    for found in pkgutil.iter_modules(path, f'{package}.'):
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            if (error.name or '').partition('.')[0] not in optional:
                raise
