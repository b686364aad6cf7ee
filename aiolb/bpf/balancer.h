/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The contract between the balancer program and user space: map layouts and constants.
 * aiolb/bpf/abi.py mirrors this file; a test compares the two. */
#ifndef AIOLB_BALANCER_H
#define AIOLB_BALANCER_H

#define LAYOUT_VERSION 1	/* first word of `config`; changes whenever a layout below does */
#define SLOT_COUNT 16384	/* hash slots; a power of two */
#define MAX_MEMBERS 1024	/* places in a group */
#define MAX_TRIES 16		/* slots tried by hash */
#define MAX_NEIGHBOURS 64	/* members tried in turn after that: all of a group of up to 64 */

#define FLAG_STRICT 1		/* drop when no member is alive, instead of leaving it to the kernel */

/* Placeholders for the maps' descriptors: the loader patches the real ones into the bytecode. */
#define MAP_TARGETS 1
#define MAP_CONFIG 2
#define MAP_SLOTS 3
#define MAP_MEMBER_STATS 4
#define MAP_SLOT_STATS 5
#define MAP_GROUP_STATS 6

/* config: array of 1 */
struct config {
	u32 layout;		/* LAYOUT_VERSION */
	u32 count;		/* members of the group, 1 … MAX_MEMBERS */
	u32 flags;		/* FLAG_… */
	u32 newest;		/* member that joined last: tried when the tries below found nobody */
	u64 seed[2];		/* key of the hash: low and high 64 bits */
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
};

/* slots: array of SLOT_COUNT, u32: the member that owns the slot
 * targets (udp_balancing_t, tcp_balancing_t): reuseport sockarray of MAX_MEMBERS, u64: the member's socket */

/* member_stats: per-CPU array of MAX_MEMBERS */
struct member_stats {
	u64 packets;		/* steered to this member; a train is one packet */
	u64 bytes;		/* their UDP payload */
	u64 failovers;		/* of those packets: taken over from a dead member */
};

/* slot_stats: per-CPU array of SLOT_COUNT, u64: packets whose first slot this was */

/* group_stats: per-CPU array of 1 */
struct group_stats {
	u64 failovers;		/* packets that went to another member because theirs was dead */
	u64 unsteered;		/* packets that found no live member and were left to the kernel */
	u64 dropped;		/* packets that found no live member and were dropped (FLAG_STRICT) */
};

#endif
