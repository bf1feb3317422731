"""A meeting of machines whose every round has a store of its own, so that one may come anew.

torch's handler (2.13) tells where the processes' store is in a machine's first round only: a
launcher that is started later would wait for that in vain, and the others for it.
"""

from torch.distributed import (  # type: ignore[attr-defined]  # public by their documentation
    PrefixStore,
    TCPStore,
)
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
)

OPT_OUT = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Variable by which torch's handler is asked not to keep one store for all rounds."""


class FreshStores(RendezvousHandler):
    """A handler like another one, of which the first machine opens a new store in each round."""

    def __init__(self, inner: RendezvousHandler, address: str) -> None:
        self._inner = inner
        self._address = address
        self._server: TCPStore | None = None

    def next_rendezvous(self) -> RendezvousInfo:
        """Meet the other machines; the processes' store of the former round is closed."""
        info = self._inner.next_rendezvous()
        self._server, port = None, None
        if info.rank == 0:
            self._server = TCPStore(self._address, 0, is_master=True, multi_tenant=True)
            port = self._server.port
        round_store = PrefixStore("newtune", info.store)
        place = RendezvousStoreInfo.build(info.rank, round_store, self._address, server_port=port)
        return RendezvousInfo(info.store, info.rank, info.world_size, place)

    @property
    def use_agent_store(self) -> bool:
        """Tell that the launcher holds the processes' store."""
        return True

    def get_backend(self) -> str:
        """Return the name of how machines meet."""
        return self._inner.get_backend()

    def is_closed(self) -> bool:
        """Tell whether no further round begins."""
        return self._inner.is_closed()

    def set_closed(self) -> None:
        """Let no further round begin."""
        self._inner.set_closed()  # type: ignore[no-untyped-call]

    def num_nodes_waiting(self) -> int:
        """Return how many machines wait for the next round."""
        return self._inner.num_nodes_waiting()

    def get_run_id(self) -> str:
        """Return the name of the meeting."""
        return self._inner.get_run_id()

    def shutdown(self) -> bool:
        """Leave for good."""
        self._server = None
        return self._inner.shutdown()
