/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The balancer: every packet of one source goes to the socket of one member.
 *
 * A BPF_PROG_TYPE_SK_REUSEPORT program. key -> slot -> member -> socket, each an array look-up.
 * aiolb/bpf/hashing.py is the pure twin of the hash and of the order of tries; a test compares them
 * with the kernel's choices. */
#include "balancer.h"

/* bcc's names for the helpers: bpf_pseudo_fd() becomes a load that the loader patches. */
#define MAP(number) bpf_pseudo_fd(1, number)
#define ROTATE(x, bits) (((x) << (bits)) | ((x) >> (64 - (bits))))

/* What steering looks at. An IPv4 source is one word, an IPv6 source two. */
struct key {
	u64 words[2];
	u32 length;		/* bytes: 4 or 16 */
};

#ifdef AIOLB_DEBUG
/* %pI4 and %pI6 (Linux 5.13) read the address in network byte order. */
#define TRACE_AS(format_of_source, key, slot, member, action)                                         \
	do {                                                                                          \
		char format[] = "aiolb: source=" format_of_source " slot=%d member=%d action=" action "\n"; \
		bpf_trace_printk_(format, sizeof(format), (key)->words, slot, member);                \
	} while (0)
#define TRACE(key, slot, member, action)                                                              \
	do {                                                                                          \
		if ((key)->length == 4)                                                               \
			TRACE_AS("%pI4", key, slot, member, action);                                  \
		else                                                                                  \
			TRACE_AS("%pI6", key, slot, member, action);                                  \
	} while (0)
#else
#define TRACE(key, slot, member, action) do { } while (0)
#endif

static inline __attribute__((always_inline)) int read_key(struct sk_reuseport_md *ctx, struct key *key)
{
	u32 mapped[2];

	key->words[0] = key->words[1] = 0;
	if (ctx->eth_protocol == __builtin_bswap16(0x0800)) {
		key->length = 4;
		return bpf_skb_load_bytes_relative(ctx, 12, key->words, 4, BPF_HDR_START_NET);
	}
	key->length = 16;
	if (bpf_skb_load_bytes_relative(ctx, 8, key->words, 16, BPF_HDR_START_NET))
		return -1;
	/* ::ffff:a.b.c.d counts as a.b.c.d */
	mapped[0] = key->words[1];
	mapped[1] = key->words[1] >> 32;
	if (key->words[0] == 0 && mapped[0] == __builtin_bswap32(0xffff)) {
		key->words[0] = mapped[1];
		key->words[1] = 0;
		key->length = 4;
	}
	return 0;
}

#define SIP_ROUND                                                                                     \
	do {                                                                                          \
		v0 += v1; v1 = ROTATE(v1, 13); v1 ^= v0; v0 = ROTATE(v0, 32);                         \
		v2 += v3; v3 = ROTATE(v3, 16); v3 ^= v2;                                              \
		v0 += v3; v3 = ROTATE(v3, 21); v3 ^= v0;                                              \
		v2 += v1; v1 = ROTATE(v1, 17); v1 ^= v2; v2 = ROTATE(v2, 32);                         \
	} while (0)

/* SipHash-1-3 of the key's bytes: keyed, so that nobody who lacks the seed can aim sources at a member. */
static inline __attribute__((always_inline)) u64 hash_key(const struct config *config, const struct key *key)
{
	u64 v0 = config->seed[0] ^ 0x736f6d6570736575ULL, v1 = config->seed[1] ^ 0x646f72616e646f6dULL;
	u64 v2 = config->seed[0] ^ 0x6c7967656e657261ULL, v3 = config->seed[1] ^ 0x7465646279746573ULL;
	u64 last = (u64)key->length << 56;

	if (key->length == 4) {
		last |= key->words[0];
	} else {
		v3 ^= key->words[0]; SIP_ROUND; v0 ^= key->words[0];
		v3 ^= key->words[1]; SIP_ROUND; v0 ^= key->words[1];
	}
	v3 ^= last; SIP_ROUND; v0 ^= last;
	v2 ^= 0xff;
	SIP_ROUND; SIP_ROUND; SIP_ROUND;
	return v0 ^ v1 ^ v2 ^ v3;
}

/* The hash for the next try: a step of SplitMix64, so that a dead member's sources spread evenly. */
static inline __attribute__((always_inline)) u64 rehash(u64 hash)
{
	hash += 0x9e3779b97f4a7c15ULL;
	hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9ULL;
	hash = (hash ^ (hash >> 27)) * 0x94d049bb133111ebULL;
	return hash ^ (hash >> 31);
}

static inline __attribute__((always_inline)) int select_member(struct sk_reuseport_md *ctx, u32 member)
{
	return bpf_sk_select_reuseport(ctx, (void *)MAP(MAP_TARGETS), &member, 0) == 0;
}

static inline __attribute__((always_inline)) void count_packet(struct sk_reuseport_md *ctx, u32 slot, u32 member,
							       int failover)
{
	struct member_stats *stats = bpf_map_lookup_elem_(MAP(MAP_MEMBER_STATS), &member);
	u64 *packets = bpf_map_lookup_elem_(MAP(MAP_SLOT_STATS), &slot);

	if (stats) {
		stats->packets++;
		stats->bytes += ctx->len - 8;
		stats->failovers += failover;
	}
	if (packets)
		++*packets;
}

/* Unrolled by hand: a user with CAP_BPF but not CAP_PERFMON has a verifier that also follows mispredicted branches
 * (Spectre v1), and it never finds the end of a counted loop. */
#define REPEAT_4(step, n) step(n) step((n) + 1) step((n) + 2) step((n) + 3)
#define REPEAT_16(step, n)                                                                            \
	REPEAT_4(step, n) REPEAT_4(step, (n) + 4) REPEAT_4(step, (n) + 8) REPEAT_4(step, (n) + 12)
#define REPEAT_64(step, n)                                                                            \
	REPEAT_16(step, n) REPEAT_16(step, (n) + 16) REPEAT_16(step, (n) + 32) REPEAT_16(step, (n) + 48)

/* MAX_TRIES times: the member that owns the slot, or else another slot by hash. */
#define TRY_SLOT(n)                                                                                   \
	owner = bpf_map_lookup_elem_(MAP(MAP_SLOTS), &slot);                                          \
	if (!owner)                                                                                   \
		return SK_PASS;                                                                       \
	member = *owner;                                                                              \
	if (select_member(ctx, member))                                                               \
		goto selected;                                                                        \
	failover = 1;                                                                                 \
	hash = rehash(hash);                                                                          \
	slot = hash & (SLOT_COUNT - 1);

/* MAX_NEIGHBOURS times, when nearly every member is dead: one member after the other, from one that the hash names. */
#define TRY_NEIGHBOUR(n)                                                                              \
	if ((n) < config->count) {                                                                    \
		member = (start + (n)) % config->count;                                               \
		if (select_member(ctx, member))                                                       \
			goto selected;                                                                \
	}

int balancer(struct sk_reuseport_md *ctx)
{
	u32 zero = 0, slot, first_slot, member, start, failover = 0;
	struct config *config = bpf_map_lookup_elem_(MAP(MAP_CONFIG), &zero);
	struct group_stats *stats = bpf_map_lookup_elem_(MAP(MAP_GROUP_STATS), &zero);
	struct key key;
	u32 *owner;
	u64 hash;

	if (!config || !stats || read_key(ctx, &key))
		return SK_PASS;

	hash = hash_key(config, &key);
	first_slot = slot = hash & (SLOT_COUNT - 1);
	REPEAT_16(TRY_SLOT, 0)
	start = hash;
	REPEAT_64(TRY_NEIGHBOUR, 0)
	member = config->newest;
	if (member < config->count && select_member(ctx, member))
		goto selected;
	if (config->flags & FLAG_STRICT) {
		stats->dropped++;
		TRACE(&key, first_slot, -1, "drop");
		return SK_DROP;
	}
	stats->unsteered++;
	TRACE(&key, first_slot, -1, "unsteered");
	return SK_PASS;

selected:
	stats->failovers += failover;
	count_packet(ctx, first_slot, member, failover);
	if (failover)
		TRACE(&key, first_slot, member, "failover");
	else
		TRACE(&key, first_slot, member, "steer");
	return SK_PASS;
}
