"""What a scan tells of each entry beyond kind, mode, time and size: chosen by the job's options."""

from dataclasses import dataclass
from typing import Self

from syncengine.abilities import Abilities
from syncengine.attribute_reader import AttributeReader
from syncengine.model import RunOptions, Symlinks


@dataclass(frozen=True, slots=True)
class Details:
    """What is looked at, and told; each costs something for every entry."""

    owner: bool = False
    xattrs: bool = False
    acls: bool = False
    hardlinks: bool = False
    """Inode and number of names, of files that have several."""
    devices: bool = False
    """Special files as what they are, and not as SPECIAL."""
    inodes: bool = False
    """The inode and the ctime of every entry."""
    only_inside: bool = False
    """Symlinks that lead out of the tree are refused: shown as EXCLUDED, and named."""
    is_applied_to: bool = False
    """It is a target: attributes that it could not be given anyway are not told either."""

    @classmethod
    def of(cls, options: RunOptions, *, is_target: bool = False, is_member: bool = False) -> Self:
        """Return what a job's options ask for.

        `is_target` for the target of a one-way rule; `is_member` for what is source and target.
        """
        return cls(
            owner=options.keep_owner,
            xattrs=options.keep_xattrs,
            acls=options.keep_acls,
            hardlinks=options.keep_hardlinks,
            devices=options.keep_devices,
            inodes=is_member,
            only_inside=options.symlinks is Symlinks.INSIDE and not is_target,
            is_applied_to=is_target or is_member,
        )

    def reader(self, abilities: Abilities) -> AttributeReader | None:
        """Return a reader of the attributes that are asked for, None for none."""
        owner = self.owner and (abilities.owners or not self.is_applied_to)
        if not (self.owner or self.xattrs or self.acls):
            return None
        return AttributeReader(
            owner=owner, xattrs=self.xattrs, acls=self.acls, applies=self.is_applied_to
        )


def leads_out(path: bytes, link: bytes) -> bool:
    """Say whether the symlink at `path` may lead out of the tree that its path is relative to.

    Absolute links do. Of relative ones those stay inside that go up no further than the tree is
    deep there, and do not go up again after they went down: a name may be a symlink itself, and
    what is above its target is not what is above its name. So by induction no chain of links that
    pass gets out either.
    """
    if link.startswith(b"/"):
        return True
    depth = path.count(b"/")
    went_down = False
    for name in link.split(b"/"):
        if name in {b"", b"."}:
            continue
        if name != b"..":
            went_down = True
            continue
        depth -= 1
        if went_down or depth < 0:
            return True
    return False
