"""Events: envelopes with time, namespace and topic, from publishers to subscribers within one daemon."""

from orlop.core.events.exchange import Exchange, Subscription, pack

__all__ = ["Exchange", "Subscription", "pack"]
