"""Writing tensors as safetensors."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mimkit.files import write_atomic


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file atomically, with a copy of every tensor on the CPU.

    Copied, because safetensors refuses tensors that share memory.

    Raises: DataError if it cannot be written.
    """
    copies = {
        name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()
    }

    def write(temporary: Path) -> None:
        try:
            save_file(copies, temporary)
        except SafetensorError as error:
            # Its text is all that this error says of its cause.
            if cause := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(cause[1]), os.strerror(int(cause[1]))) from error
            raise

    write_atomic(path, write)
