"""Networks whose weights are constants."""

from torch import nn


def freeze(module: nn.Module) -> nn.Module:
    """Turns all parameters of a module into constants, in place, and returns it.

    They become buffers outside the state dict: they move with the module, but no optimizer sees
    them and no checkpoint holds them. A target that loads or trains a network in `Target.prepare`
    keeps it this way. The module is left in evaluation mode.

    >>> network = torch.nn.Linear(2, 2)
    >>> frozen = freeze(network)
    >>> list(frozen.parameters()), frozen.weight.requires_grad
    ([], False)
    """
    for child in module.modules():
        for name, parameter in list(child.named_parameters(recurse=False)):
            delattr(child, name)
            child.register_buffer(name, parameter.detach(), persistent=False)
    return module.eval()
