"""What all files of a client share."""

import errno

from nacrefs.client.cache import READ, Inode
from nacrefs.client.config import ClientConfig
from nacrefs.client.data.commit import commit, commit_quietly
from nacrefs.client.data.file import File
from nacrefs.client.data.memory import Memory
from nacrefs.client.data.objects import Objects
from nacrefs.client.session import Session


class Store:
    """Session, objects, memory, configuration, and which files are dirty."""

    def __init__(self, session: Session, objects: Objects, memory: Memory, config: ClientConfig) -> None:
        self.session = session
        self.objects = objects
        self.memory = memory
        self.config = config
        self.dirty: dict[int, File] = {}
        self.unreported = 0
        """bytes written to files whose owners have quotas, of which the MDS has not heard yet"""

    def file(self, inode: Inode) -> File:
        """The file of an inode, made if it is neither open nor dirty."""
        file = inode.file
        if file is None:
            file = inode.file = File(self, inode)
        return file

    def retry(self, file: File) -> None:
        """Try again, in the background, to bring what is dirty to the servers."""
        self.session.spawn(commit_quietly(file, READ))

    async def write_out_all(self) -> None:
        """Write and commit everything that is dirty (at unmount, and on syncfs); the first error is raised at the
        end."""
        failure: OSError | None = None
        for file in list(self.dirty.values()):
            try:
                await commit(file, sync=True)
            except OSError as error:
                if error.errno == errno.ESTALE or file.inode.gone:  # removed meanwhile: there is nowhere to store it
                    file.abandon(lost=False)
                    file.let_go()
                else:
                    failure = failure or error
        if failure is not None:
            raise failure
