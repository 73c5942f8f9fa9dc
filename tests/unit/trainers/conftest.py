"""Settings of the property tests."""

from hypothesis import settings

# No deadline: the first example pays for imports, and cores are shared.
settings.register_profile("shared-cores", deadline=None)
settings.load_profile("shared-cores")
