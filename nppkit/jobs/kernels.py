"""Where a notebook's kernel comes from: this Python, whatever kernels the user has installed under whatever names.

It is forked by a warm server (nppkit/jobs/warm.py) where there is one, and started otherwise.
"""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import psutil
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

from nppkit.jobs import warm

NAME, PROVISIONER = "python3", "nppkit-provisioner"
FORKED: list[warm.Process] = []  # kernels of this process


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
            self.process = warm.Process(cmd[2:], dict(options["env"]), str(options.get("cwd") or Path.cwd()), session=True)
        except ConnectionError:
            return await super().launch_kernel(cmd, **options)
        FORKED.append(self.process)
        self.pid = self.pgid = self.process.pid
        self.cwd = Path(options.get("cwd") or Path.cwd())
        return self.connection_info


def use_forked_kernels() -> None:
    """Let jupyter_client start its kernels by way of this module."""
    factory = KernelProvisionerFactory.instance()
    factory.provisioners[PROVISIONER] = EntryPoint(PROVISIONER, f"{__name__}:{Provisioner.__name__}", factory.GROUP_NAME)
    factory.default_provisioner_name = PROVISIONER


def running() -> list[psutil.Process]:
    """The kernels of this process that run."""
    return psutil.Process().children() + [psutil.Process(kernel.pid) for kernel in FORKED if kernel.poll() is None]
