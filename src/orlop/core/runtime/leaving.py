"""What is being removed has an owner still: nobody is to make one of that name, or to take it for nobody's."""

import contextlib
from collections import Counter
from collections.abc import Iterator

from orlop.core.runtime.bundle import Bundle


class Leaving:
    """Namespaces and ids of what is being removed, by one or by several at once. Belongs to one event loop."""

    def __init__(self) -> None:
        self._keys: Counter[tuple[str, str]] = Counter()

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._keys

    @contextlib.contextmanager
    def removing(self, bundle: Bundle) -> Iterator[None]:
        key = (bundle.namespace, bundle.id)
        self._keys[key] += 1
        try:
            yield
        finally:
            self._keys[key] -= 1
            if not self._keys[key]:
                del self._keys[key]
