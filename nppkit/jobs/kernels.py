"""Where a notebook's kernel comes from: this Python, whatever kernels the user has installed under whatever names.

It is forked by a warm server (nppkit/jobs/warm.py) where there is one, and started otherwise.
"""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from subprocess import Popen

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

from nppkit.jobs import warm

NAME, PROVISIONER = "python3", "nppkit-provisioner"
KERNELS: list[Popen] = []  # those that this process has started, forked ones among them


class OwnKernel(AsyncKernelManager):
    """Starts ipykernel in the interpreter that runs this, and no other that is installed under the name `python3`."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python")


class Provisioner(LocalProvisioner):
    """jupyter_client's own, whose process may be a forked one."""

    async def launch_kernel(self, cmd: list[str], **options: object) -> dict:
        """Start `python -m ipykernel_launcher ...` and say where it listens."""
        try:
            self.cwd = options.get("cwd") or Path.cwd()
            self.process = warm.Process(cmd[2:], dict(options["env"]), str(self.cwd), session=True)
            self.pid = self.pgid = self.process.pid
        except ConnectionError:
            await super().launch_kernel(cmd, **options)
        KERNELS.append(self.process)
        return self.connection_info


def use_forked_kernels() -> None:
    """Let jupyter_client start its kernels by way of this module."""
    factory = KernelProvisionerFactory.instance()
    factory.provisioners[PROVISIONER] = EntryPoint(PROVISIONER, f"{__name__}:{Provisioner.__name__}", factory.GROUP_NAME)
    factory.default_provisioner_name = PROVISIONER
