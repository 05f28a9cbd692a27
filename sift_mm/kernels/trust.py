"""Checks that no other user can change a file, like OpenSSH's of its keys."""

import os
import stat
from pathlib import Path


def find_flaw(folder: Path) -> str:
    """Return why other users could change files in a folder, or ''.

    The folder and its parents have to belong to this user or to root, and no
    other user may write to them. A parent may have the sticky bit, like
    ``/tmp``, where only its owner can replace an entry.

    Args:
        folder: An existing folder without symbolic links.

    Raises:
        OSError: If the status of a folder cannot be read.
    """
    for place in (folder, *folder.parents):
        status = place.lstat()
        is_shared = place != folder and status.st_mode & stat.S_ISVTX
        flaw = find_flaw_of(status, bool(is_shared))
        if flaw:
            return f'{place} {flaw}'
    return ''


def find_flaw_of(status: os.stat_result, is_sticky: bool = False) -> str:
    """Return why other users could change one file or folder, or ''."""
    if status.st_uid not in (0, os.geteuid()):
        return f'belongs to another user (number {status.st_uid})'
    is_writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if is_writable and not (is_sticky and status.st_uid == 0):
        return f'can be written by others (mode {status.st_mode & 0o7777:o})'
    return ''
