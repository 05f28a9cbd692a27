"""Every file of a package is imported, so that a new one registers itself."""

import importlib
import pkgutil
from collections.abc import Collection


def import_modules(
    package: str, optional: Collection[str] = ()
) -> dict[str, Exception]:
    """Import all modules of a package, in alphabetical order.

    To be called at the end of the package's ``__init__``, after what its
    modules may import from it. A module that imports one of the ``optional``
    packages is left out where that is not installed; so is the module of that
    name where the package is broken.

    Returns:
        dict[str, Exception]: Errors of broken packages, by their names.

    Raises:
        ImportError: If a module cannot be imported for another reason.
    """
    broken = {}
    path = importlib.import_module(package).__path__
    for found in pkgutil.iter_modules(path, f'{package}.'):
        try:
            importlib.import_module(found.name)
        except Exception as error:
            missing = getattr(error, 'name', None) or ''
            if missing.partition('.')[0] in optional:
                continue
            name = found.name.rpartition('.')[2]
            if name not in optional:
                raise
            broken[name] = error
    return broken
