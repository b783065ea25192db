"""What all parts share.

The constructor rule: ``__init__(self, geometry, *, option: type = default, ...)``. What stands
after ``*`` are the recipe's keys, so the signature is the schema: every option has a type, none
is hidden in ``**kwargs``. A constructor is cheap and offline; what costs time or the network
belongs in `Target.prepare`.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, Protocol, TypeVar

from torch import nn


class Part(ABC):  # noqa: B024 -- abstract by what its subclasses declare
    """What all parts share: the constructor rule (see the contract of a part), and plain options.

    >>> class Halves(Masker):
    ...     miniature = {"upper": True}  # what `mimkit check` tries it with
    ...
    ...     def __init__(self, geometry, *, upper: bool):
    ...         self.upper = upper
    ...
    ...     def sample(self, batch_size, generator): ...
    >>> Halves(Geometry(Grid(2, 2, 4)), upper=False).upper
    False

    Attributes:
        miniature: options, other than the defaults, that make it small, quick and offline, for
            the checks of `mimkit.conformance`; also what has no default.
    """

    miniature: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def settle(cls, options: Mapping[str, Any], say: Callable[[str], None]) -> Mapping[str, Any]:
        """Decides what options such as ``"auto"`` mean on this machine; by default nothing.

        Is called when a run starts, before its recipe is written out in full, so that the
        written recipe says what was done. May look at the disk and the network.

        Args:
            options: all options of the constructor, defaults included.
            say: receives a line of text for people.

        Returns: the options to construct the part with.
        """
        return options


if TYPE_CHECKING:
    _P = ParamSpec("_P")
    _R_co = TypeVar("_R_co", covariant=True)

    class _HasForward(Protocol[_P, _R_co]):
        def forward(self, *args: _P.args, **kwargs: _P.kwargs) -> _R_co: ...

    class _AsForward:
        """A module is called as its ``forward`` is; to torch's own ``__call__`` all is Any."""

        def __get__(self, module: _HasForward[_P, _R_co], owner: type) -> Callable[_P, _R_co]: ...


class Module(nn.Module):
    """`torch.nn.Module` as the core needs it; calls are type-checked as ``forward`` is.

    >>> class Tokened(Module):
    ...     def no_weight_decay(self):
    ...         return frozenset({"mask_token"})
    >>> sorted(Tokened().no_weight_decay())
    ['mask_token']
    >>> tokened = Tokened()
    >>> tokened.blocks = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))
    >>> len(tokened.units())
    3
    """

    def no_weight_decay(self) -> frozenset[str]:
        """Names of parameters, relative to this module, that weight decay leaves alone.

        Parameters of one axis (biases, norms) are always left alone.
        """
        return frozenset()

    def units(self) -> list[nn.Module]:
        """Modules whose weights come and go together where a model is spread over devices.

        Such a unit is run by calling it, and nothing reads its weights while it is not running. By
        default the members of every `torch.nn.ModuleList` that is this module's own, such as the
        blocks of a transformer. What belongs to no unit is there all the time.
        """
        lists = [child for child in self.children() if isinstance(child, nn.ModuleList)]
        return [member for each in lists for member in each]

    if TYPE_CHECKING:
        __call__ = _AsForward()
