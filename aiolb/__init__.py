"""aiolb: many collector processes share one UDP port, and eBPF keeps each source on one of them."""
