"""Who may enter a folder, told from the permissions on the way there."""

from __future__ import annotations

import pytest

from aiolb.bpf import ownership

UID, GID, OTHER = 60001, 60002, 60003


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder in a folder, on a way that is open to all."""
    above = tmp_path / "above"
    (above / "below").mkdir(parents=True)
    real = type(tmp_path).stat

    def stat(path, **options):
        # What is above of the tests' own is theirs, and none of our business.
        return real(path if path.is_relative_to(above) else type(path)("/"), **options)

    monkeypatch.setattr(type(tmp_path), "stat", stat)
    above.chmod(0o755)
    (above / "below").chmod(0o755)
    return above / "below"


@pytest.mark.parametrize(
    ("mode", "closed"), [(0o755, False), (0o711, False), (0o701, False), (0o700, True), (0o754, True)]
)
def test_others(folder, mode, closed):
    """Who is neither owner nor of the group needs the permission of all others, of every folder on the way."""
    folder.chmod(mode)
    assert ownership.closed_to(folder, UID, [GID]) == (folder if closed else None)
    folder.chmod(0o755)
    folder.parent.chmod(mode)
    assert ownership.closed_to(folder, UID, [GID]) == (folder.parent if closed else None)


def test_names():
    """Users and groups have names, or numbers where nobody gave them one."""
    assert (ownership.user_name(0), ownership.group_name(0)) == ("root", "root")
    assert (ownership.user_name(4_000_000_000), ownership.group_name(4_000_000_000)) == ("4000000000",) * 2
