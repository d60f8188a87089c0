# Makes `tests.networks` importable: another distribution installs a package named `tests` too.
