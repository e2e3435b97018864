"""The registry of components: what they last said, what they should be doing, and the orders given to them.

``news`` wakes whoever waits for a component or an item · ``desired`` computes assignments from the items and makes a new
generation when one changed · ``intake`` takes heartbeats and answers them · ``orders`` gives orders and awaits results ·
``waiting`` waits until the database says something.

Everything stands in the database; news is only a wake-up within this process. Whoever changes an item's side, epoch, pass or
servers calls :func:`announce_item` after the transaction, and the three components are told within milliseconds.
"""

from failback.configuration_server.registry.intake import Registry
from failback.configuration_server.registry.news import News, announce_item
from failback.configuration_server.registry.orders import Orders
from failback.configuration_server.registry.waiting import Cancelled, wait_for

__all__ = ["Cancelled", "News", "Orders", "Registry", "announce_item", "wait_for"]
