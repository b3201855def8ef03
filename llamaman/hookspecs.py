"""Every hook, typed and documented, without logic."""

import pluggy

hookimpl = pluggy.HookimplMarker("llamaman")
