/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The contract between the balancer program and user space: map layouts and constants.
 * aiolb/bpf/abi.py mirrors this file; a test compares the two. */
#ifndef AIOLB_BALANCER_H
#define AIOLB_BALANCER_H

#define LAYOUT_VERSION 3	/* first word of `config`; changes whenever a layout below does */
#define SLOT_COUNT 16384	/* hash slots; a power of two */
#define MAX_MEMBERS 1024	/* places in a group */
#define MAX_TRIES 16		/* slots tried by hash */
#define MAX_NEIGHBOURS 64	/* members tried in turn after that: all of a group of up to 64 */
#define STAT_PARTS 2		/* values of slot_stats: the kernel allows 32 KiB for one of a per-CPU array */
#define BUCKET_SETS 4096	/* sets of token buckets; a power of two */
#define BUCKET_WAYS 4		/* buckets of a set, of which a source may have one: as many as a cache line holds */

#define FLAG_STRICT 1		/* drop when no member is alive, instead of leaving it to the kernel */
#define FLAG_RULES 2		/* look every source up in `rules` */
#define FLAG_LISTED_ONLY 4	/* with FLAG_RULES: drop the sources that no rule allows */
#define FLAG_LIMIT 8		/* take a token of the source's bucket for every packet */
#define FLAG_EVENTS 16777216	/* write decisions to `events`; the program clears this byte when nobody reads them */

#define KEY_SOURCE 0		/* the address under the masks: the source, or its prefix */
#define KEY_FLOW 1		/* the address under the masks, and the port */
#define KEY_RANDOM 2		/* a random number for each packet */
#define KEY_CUSTOM 3		/* what the function of a key file says */

#define RULE_DENY 0
#define RULE_ALLOW 1

#define ACTION_STEER 0		/* to the member that owns the slot */
#define ACTION_FAILOVER 1	/* to another one, for that one is dead */
#define ACTION_UNSTEERED 2	/* left to the kernel: no member is alive */
#define ACTION_DROP 3		/* dropped: no member is alive (FLAG_STRICT) */
#define ACTION_DENY 4		/* dropped by a rule */
#define ACTION_UNLISTED 5	/* dropped: no rule allows the source (FLAG_LISTED_ONLY) */
#define ACTION_LIMIT 6		/* dropped: the source's bucket is empty */

#define NO_MEMBER 65535		/* in an event: nobody was selected */

#define TIME_BUCKETS 40		/* of a report: bucket i has the times below 2^i ns, the last one all others too */
#define SIZE_BUCKETS 16		/* of a report: bucket i has the batches of fewer than 2^i datagrams */
#define SKETCH_WORDS 256	/* of a report: marks of two sources each, or 8 registers of a HyperLogLog sketch */
#define TOP_SOURCES 16		/* in a report */
#define TOP_WORDS 64		/* 4 for each of them */

/* Placeholders for the maps' descriptors: the loader patches the real ones into the bytecode. */
#define MAP_TARGETS 1
#define MAP_CONFIG 2
#define MAP_SLOTS 3
#define MAP_MEMBER_STATS 4
#define MAP_SLOT_STATS 5
#define MAP_GROUP_STATS 6
#define MAP_RULES 7
#define MAP_BUCKETS 8
#define MAP_OFFENDERS 9
#define MAP_EVENTS 10

/* config: array of 1 */
struct config {
	u32 layout;		/* LAYOUT_VERSION */
	u32 count;		/* members of the group, 1 … MAX_MEMBERS */
	u32 flags;		/* FLAG_… */
	u32 newest;		/* member that joined last: tried when the tries below found nobody */
	u64 seed[2];		/* key of the hash: low and high 64 bits */
	u32 key;		/* KEY_… */
	u32 mask4;		/* of an IPv4 source, in network byte order */
	u64 mask6[2];		/* of an IPv6 source, in network byte order */
	u64 key_digest;		/* KEY_CUSTOM: first 8 bytes of SHA-256 of the key file; user space only */
	u64 limit_interval_ns;	/* FLAG_LIMIT: time that a token takes */
	u64 limit_burst_ns;	/* FLAG_LIMIT: time that all tokens but one of a full bucket take */
	u64 event_source[2];	/* FLAG_EVENTS: only of sources with this address (IPv4 as ::ffff:a.b.c.d) … */
	u64 event_mask[2];	/* … under this mask, both in network byte order */
	u64 event_patience_ns;	/* FLAG_EVENTS: nobody reads when `events` is full and nothing was taken out so long */
	u64 event_full_ns;	/* when it was found full first (CLOCK_MONOTONIC) … */
	u64 event_position;	/* … with the reader at this position */
	u32 event_sample;	/* FLAG_EVENTS: one of so many, by chance; 0 and 1 are all */
	u32 generation;		/* grows whenever slots get other owners; user space only */
	u64 program;		/* first 8 bytes of SHA-256 of the attached bytecode; user space only */
	u64 created_ns;		/* CLOCK_REALTIME of the group's creation; user space only */
	u64 namespace;		/* SO_NETNS_COOKIE of its network namespace; user space only */
};

/* members: array of MAX_MEMBERS; user space only */
struct member {
	u64 cookie;		/* cookie of the socket that joined last */
	u64 joined_ns;		/* CLOCK_REALTIME when it did */
	u32 pid;		/* of the process that joined it, as that process saw itself */
	u32 uid;		/* its effective user */
	u32 weight;		/* its part of the slots, beside the other members' weights */
	u32 drained;		/* 1: it is to own no slot, whatever its weight */
};

/* reports: array of MAX_MEMBERS; user space only: each member tells here of its socket, through mapped memory.
 * Counters begin with the socket, and go on when another process takes it over. For TCP, a datagram is a connection:
 * accepted ones are received, open ones in flight, those in the accept queue are waiting; the fields of a kind that TCP
 * has not are 0. */
struct report {
	u64 checksum;		/* CRC-32 of all that follows: a reader that finds another one reads again */
	u64 cookie;		/* of the socket that this is about; 0: nobody has told anything */
	u64 pid;		/* of the process that reads from the socket, as that process sees itself */
	u64 uid;		/* its effective user */
	u64 started_ns;		/* CLOCK_REALTIME when it began to read */
	u64 written_ns;		/* CLOCK_REALTIME of this report */
	u64 received;		/* datagrams; those of a train are counted one by one */
	u64 received_bytes;	/* their payload */
	u64 messages;		/* what the kernel handed over: a datagram, or a train */
	u64 truncated;		/* datagrams that the kernel had to cut */
	u64 handled;		/* datagrams whose handler returned */
	u64 errors;		/* datagrams whose handler raised */
	u64 in_flight;		/* datagrams whose handler runs now */
	u64 waiting;		/* datagrams received that no handler has got yet */
	u64 abandoned;		/* datagrams given up at the end of the graceful timeout */
	u64 sent;		/* datagrams replied */
	u64 sent_bytes;		/* their payload */
	u64 send_errors;	/* replies that the kernel refused */
	u64 queued_bytes;	/* in the receive queue now, with the kernel's overhead (SO_MEMINFO) */
	u64 queue_limit;	/* bytes that the queue may have; TCP: connections in the accept queue */
	u64 kernel_drops;	/* packets that the kernel dropped; a train is one */
	u64 sources;		/* marks in the sketch; 0 when it has registers, for more than 512 sources */
	u64 handler_ns;		/* sum of the times below */
	u64 handler_times[40];	/* TIME_BUCKETS: sampled times of a handler, or of a batch's handler */
	u64 batch_sizes[16];	/* SIZE_BUCKETS: datagrams that one call of the receiver handed out */
	u64 sketch[256];	/* SKETCH_WORDS: of all sources seen */
	u64 top_error;		/* what a count below may lack */
	u64 top_others;		/* what a source that is not below may have sent, but for top_error */
	u64 top[64];		/* TOP_SOURCES, those that send most now: source (network byte order; IPv4 as ::ffff:a.b.c.d),
				 * datagrams, and thousandths of a datagram per second */
};

/* slots: array of 1, SLOT_COUNT u16: the member that owns the slot. User space maps it and writes one at a time.
 * targets (udp_balancing_t, tcp_balancing_t): reuseport sockarray of MAX_MEMBERS, u64: the member's socket */

/* member_stats: per-CPU array of MAX_MEMBERS */
struct member_stats {
	u64 packets;		/* steered to this member; a train, or a connection, is one packet */
	u64 bytes;		/* their UDP payload */
	u64 failovers;		/* of those packets: taken over from a dead member */
};

/* slot_stats: per-CPU array of STAT_PARTS, SLOT_COUNT / STAT_PARTS u32 each: packets whose first slot this was.
 * They begin again at 0 after 2^32. */

/* group_stats: per-CPU array of 1 */
struct group_stats {
	u64 failovers;		/* packets that went to another member because theirs was dead */
	u64 unsteered;		/* packets that found no live member and were left to the kernel */
	u64 dropped;		/* packets that found no live member and were dropped (FLAG_STRICT) */
	u64 denied;		/* packets that a rule denied */
	u64 unlisted;		/* packets that no rule allowed (FLAG_LISTED_ONLY) */
	u64 limited;		/* packets whose source had no token (FLAG_LIMIT) */
	u64 migrated;		/* TCP connections that moved here from a listener that was closed */
	u64 events_lost;	/* decisions that found `events` full */
};

/* rules: longest-prefix-match trie, by prefix length (u32) and address (16 bytes, IPv4 as ::ffff:a.b.c.d) */
struct rule {
	u32 action;		/* RULE_… */
	u32 ipv6;		/* 1: of an IPv6 network, which no IPv4 source is in, though ::/0 has ::ffff:a.b.c.d in it */
	u64 packets;		/* that it was the longest match of */
	u64 bytes;		/* their UDP payload */
};

/* buckets: array of 1: BUCKET_SETS sets of BUCKET_WAYS struct bucket, and a struct tick. A source has a bucket in its
 * set, which its hash names, while that is not full; a full one says nothing, and is anybody's. So the table is of one
 * size whoever sends, nothing is ever evicted from it, and no source pays for the packets of another one. Who finds no
 * bucket in its set passes. */
struct bucket {
	u64 source;		/* IPv4: the second half of ::ffff:a.b.c.d; IPv6: the first half, its /64 */
	u64 full_ns;		/* CLOCK_MONOTONIC when all tokens are back */
};

struct tick {
	u64 jiffies;		/* when ns was read */
	u64 ns;			/* CLOCK_MONOTONIC */
};

/* offenders: LRU hash, by source (16 bytes, IPv4 as ::ffff:a.b.c.d, IPv6 its /64), u64: packets dropped by its limit */

/* events: ring buffer */
struct event {
	u64 time_ns;		/* CLOCK_MONOTONIC */
	u64 source[2];		/* network byte order; IPv4 as ::ffff:a.b.c.d */
	u32 bytes;		/* UDP payload */
	u16 port;		/* the sender's */
	u16 slot;		/* the key's; 0 where it was dropped before */
	u16 member;		/* or NO_MEMBER */
	u16 action;		/* ACTION_… */
	u32 unused;
};

#endif
