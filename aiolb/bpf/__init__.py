"""The loader: the balancer program, its maps and the groups they make. Knows nothing of asyncio."""
