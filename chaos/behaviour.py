"""How the collectors behave, for those who run them and do not want to import all of a collector."""

LEDGER = "AIOLB_CHAOS_LEDGER"
"""The environment variable that holds the path of the ledger."""
BROKEN = "AIOLB_CHAOS_BROKEN"
"""The environment variable that holds the path of a file: while it is there, workers of BROKEN_MEMBER exit at once."""

RAISES_EVERY = 7
"""Datagrams of a source; the handler raises for the last of them."""
BLOCKS_FOR = 1.0
"""Seconds for which a handler of source 0 waits."""
BLOCKS_EVERY = 500
"""Datagrams of source 0 from one wait to the next."""
SLOW_FOR = 0.001
"""Seconds that each handler of the slow collector keeps the process busy."""
BROKEN_MEMBER = 1
"""The member that does not start while the file is there."""
BROKEN_STATUS = 7
