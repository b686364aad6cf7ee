/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The balancer: every packet of one key goes to the socket of one member.
 *
 * A BPF_PROG_TYPE_SK_REUSEPORT program. key -> slot -> member -> socket, each an array look-up.
 * aiolb/bpf/hashing.py is the pure twin of the hash and of the order of tries; a test compares them
 * with the kernel's choices.
 *
 * AIOLB_MIGRATE: for TCP, also chooses where the waiting connections of a closed listener go (Linux 5.14).
 * AIOLB_KEY_FILE: a file with a function that makes the key (key.h).
 * AIOLB_DEBUG: writes every decision to the kernel's trace file. */
#include "balancer.h"

#define INLINE static inline __attribute__((always_inline))

/* bcc's names for the helpers: bpf_pseudo_fd() becomes a load that the loader patches. VALUE is the address of the
 * one value of an array, which needs no look-up. */
#define MAP(number) ((void *)bpf_pseudo_fd(1, number))
#define VALUE(number) ((void *)bpf_pseudo_fd(2, number))
#define ROTATE(x, bits) (((x) << (bits)) | ((x) >> (64 - (bits))))

#define IPV4 __builtin_bswap16(0x0800)
#define MAPPED __builtin_bswap32(0xffff)	/* the word before a, b, c, d in ::ffff:a.b.c.d */
#define FAMILY_IPV4 2
#define UDP 17

/* Who sent the packet. */
struct packet {
	struct sk_reuseport_md *ctx;
	u64 source[2];		/* network byte order; an IPv4 address as ::ffff:a.b.c.d */
	u32 bytes;		/* UDP payload */
	u16 port;		/* of a connection that moves, in network byte order; else see read_port() */
	u8 is_v4;
	u8 migrates;		/* a connection moves; there is no packet */
};

/* What is hashed: 4 or 6 bytes in words[0]; 16 in words; or 18 with the two in tail. */
struct key {
	u64 words[2];
	u64 tail;
	u32 length;		/* bytes */
};

#ifdef AIOLB_KEY_FILE
#include "key.h"
#include AIOLB_KEY_FILE
#endif

INLINE void read_ipv4(struct packet *packet, u32 address)
{
	packet->is_v4 = 1;
	packet->source[0] = 0;
	packet->source[1] = (u64)address << 32 | MAPPED;
}

INLINE void read_ipv6(struct packet *packet)
{
	/* ::ffff:a.b.c.d counts as a.b.c.d */
	packet->is_v4 = packet->source[0] == 0 && (u32)packet->source[1] == MAPPED;
}

#ifdef AIOLB_MIGRATE
/* A connection whose listener was closed: there is no packet to read, but its socket. */
INLINE int read_connection(struct packet *packet)
{
	struct bpf_sock *connection = packet->ctx->migrating_sk;

	if (!connection)
		return 0;
	if (connection->family == FAMILY_IPV4) {
		read_ipv4(packet, connection->dst_ip4);
	} else {
		packet->source[0] = (u64)connection->dst_ip6[1] << 32 | connection->dst_ip6[0];
		packet->source[1] = (u64)connection->dst_ip6[3] << 32 | connection->dst_ip6[2];
		read_ipv6(packet);
	}
	packet->port = connection->dst_port;
	packet->migrates = 1;
	return 1;
}
#endif

INLINE int read_source(struct packet *packet)
{
	u32 address;

#ifdef AIOLB_MIGRATE
	if (read_connection(packet))
		return 0;
#endif
	if (packet->ctx->eth_protocol == IPV4) {
		if (bpf_skb_load_bytes_relative(packet->ctx, 12, &address, 4, BPF_HDR_START_NET))
			return -1;
		read_ipv4(packet, address);
		return 0;
	}
	if (bpf_skb_load_bytes_relative(packet->ctx, 8, packet->source, 16, BPF_HDR_START_NET))
		return -1;
	read_ipv6(packet);
	return 0;
}

INLINE int read_packet(struct packet *packet)
{
	struct sk_reuseport_md *ctx = packet->ctx;

	packet->bytes = 0;
	if (ctx->ip_protocol == UDP)
		packet->bytes = ctx->len - 8;
	packet->port = 0;
	packet->migrates = 0;
	return read_source(packet);
}

/* In network byte order. Not read for each packet: few need it. */
INLINE u16 read_port(const struct packet *packet)
{
	u16 port = packet->port;

	if (!packet->migrates)
		bpf_skb_load_bytes(packet->ctx, 0, &port, 2);
	return port;
}

INLINE void make_key_of_source(const struct config *config, struct packet *packet, struct key *key)
{
	u16 port = config->key == KEY_FLOW ? read_port(packet) : 0;

	if (packet->is_v4) {
		key->words[0] = (packet->source[1] >> 32 & config->mask4) | (u64)port << 32;
		key->words[1] = 0;
		key->length = 4;
	} else {
		key->words[0] = packet->source[0] & config->mask6[0];
		key->words[1] = packet->source[1] & config->mask6[1];
		key->tail = port;
		key->length = 16;
	}
	if (config->key == KEY_FLOW)
		key->length += 2;
}

INLINE void make_key(const struct config *config, struct packet *packet, struct key *key)
{
	key->tail = 0;
#ifdef AIOLB_KEY_FILE
	if (custom_key(packet, key) == 0)
		return;
#endif
	make_key_of_source(config, packet, key);
}

#define SIP_ROUND                                                                                     \
	do {                                                                                          \
		v0 += v1; v1 = ROTATE(v1, 13); v1 ^= v0; v0 = ROTATE(v0, 32);                         \
		v2 += v3; v3 = ROTATE(v3, 16); v3 ^= v2;                                              \
		v0 += v3; v3 = ROTATE(v3, 21); v3 ^= v0;                                              \
		v2 += v1; v1 = ROTATE(v1, 17); v1 ^= v2; v2 = ROTATE(v2, 32);                         \
	} while (0)

/* SipHash-1-3 of the key's bytes: keyed, so that nobody who lacks the seed can aim sources at a member. */
INLINE u64 hash_key(const struct config *config, const struct key *key)
{
	u64 v0 = config->seed[0] ^ 0x736f6d6570736575ULL, v1 = config->seed[1] ^ 0x646f72616e646f6dULL;
	u64 v2 = config->seed[0] ^ 0x6c7967656e657261ULL, v3 = config->seed[1] ^ 0x7465646279746573ULL;
	u64 last = (u64)key->length << 56;

	if (key->length < 8) {
		last |= key->words[0];
	} else {
		v3 ^= key->words[0]; SIP_ROUND; v0 ^= key->words[0];
		v3 ^= key->words[1]; SIP_ROUND; v0 ^= key->words[1];
		last |= key->tail;
	}
	v3 ^= last; SIP_ROUND; v0 ^= last;
	v2 ^= 0xff;
	SIP_ROUND; SIP_ROUND; SIP_ROUND;
	return v0 ^ v1 ^ v2 ^ v3;
}

/* The hash for the next try: a step of SplitMix64, so that a dead member's sources spread evenly. */
INLINE u64 rehash(u64 hash)
{
	hash += 0x9e3779b97f4a7c15ULL;
	hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9ULL;
	hash = (hash ^ (hash >> 27)) * 0x94d049bb133111ebULL;
	return hash ^ (hash >> 31);
}

/* Kept apart from other increments: were they merged into one of a field that the path decides, the verifier of a user
 * without CAP_PERFMON would refuse it (Spectre v1). */
#define COUNT(stats, field)                                                                           \
	do {                                                                                          \
		(stats)->field++;                                                                     \
		asm volatile("# " #field ::: "memory");                                               \
	} while (0)

/* Unrolled by hand: a user with CAP_BPF but not CAP_PERFMON has a verifier that also follows mispredicted branches
 * (Spectre v1), and it never finds the end of a counted loop. */
#define REPEAT_4(step, n) step(n) step((n) + 1) step((n) + 2) step((n) + 3)
#define REPEAT_16(step, n)                                                                            \
	REPEAT_4(step, n) REPEAT_4(step, (n) + 4) REPEAT_4(step, (n) + 8) REPEAT_4(step, (n) + 12)
#define REPEAT_64(step, n)                                                                            \
	REPEAT_16(step, n) REPEAT_16(step, (n) + 16) REPEAT_16(step, (n) + 32) REPEAT_16(step, (n) + 48)

/* The guard: may this packet pass? Otherwise the reason why not, as an ACTION_…. */
INLINE int follow_rules(const struct config *config, const struct packet *packet, struct group_stats *stats)
{
	struct { u32 length; u64 source[2]; } __attribute__((packed, aligned(4))) key;
	struct rule *rule;

	key.length = 128;
	key.source[0] = packet->source[0];
	key.source[1] = packet->source[1];
	rule = bpf_map_lookup_elem_((u64)MAP(MAP_RULES), &key);
	if (rule && !(packet->is_v4 && rule->ipv6)) {
		__sync_fetch_and_add(&rule->packets, 1);
		__sync_fetch_and_add(&rule->bytes, packet->bytes);
		if (rule->action == RULE_ALLOW)
			return ACTION_STEER;
		COUNT(stats, denied);
		return ACTION_DENY;
	}
	if (!(config->flags & FLAG_LISTED_ONLY))
		return ACTION_STEER;
	COUNT(stats, unlisted);
	return ACTION_UNLISTED;
}

/* A time of this clock tick. To ask the clock for each packet would cost a quarter of all steering, and few packets need
 * to know better. */
INLINE u64 recent_time(struct tick *tick)
{
	u64 jiffies = bpf_jiffies64();

	if (tick->jiffies != jiffies) {
		tick->ns = bpf_ktime_get_ns();
		tick->jiffies = jiffies;
	}
	return tick->ns;
}

/* The generic cell rate algorithm (ITU-T I.371). What has come back to a bucket is known to a tick where it is all, and
 * else exactly. Two CPUs at once may take the same token. */
INLINE int take_token(const struct config *config, struct bucket *bucket, u64 now)
{
	u64 full = bucket->full_ns;

	if (full > now)
		now = bpf_ktime_get_ns();
	if (full < now)
		full = now;
	if (full - now > config->limit_burst_ns)
		return 0;
	bucket->full_ns = full + config->limit_interval_ns;
	return 1;
}

INLINE void note_offender(const struct packet *packet)
{
	u64 source[2] = {packet->source[0], 0}, one = 1, *packets;

	if (packet->is_v4)
		source[1] = packet->source[1];
	packets = bpf_map_lookup_elem_((u64)MAP(MAP_OFFENDERS), source);
	if (packets)
		__sync_fetch_and_add(packets, 1);
	else
		bpf_map_update_elem_((u64)MAP(MAP_OFFENDERS), source, &one, BPF_NOEXIST);
}

#define IN_ORDER asm volatile("" ::: "memory")

/* BUCKET_WAYS times each: the source's own bucket, or else one that is full. Another source on another CPU may take that
 * right now, and writes its name first: who has lost the bucket finds that out before it is dropped for that. */
#define TRY_OWN(n)                                                                                    \
	if (set[n].source == source) {                                                                \
		if (take_token(config, &set[n], now))                                                 \
			return ACTION_STEER;                                                          \
		IN_ORDER;                                                                             \
		if (set[n].source == source)                                                          \
			goto empty;                                                                   \
		return ACTION_STEER;                                                                  \
	}
#define TRY_FULL(n)                                                                                   \
	if (set[n].full_ns <= now) {                                                                  \
		set[n].source = source;                                                               \
		IN_ORDER;                                                                             \
		set[n].full_ns = now + config->limit_interval_ns;                                     \
		return ACTION_STEER;                                                                  \
	}

INLINE int keep_limit(const struct config *config, const struct packet *packet, struct group_stats *stats)
{
	u64 source = packet->is_v4 ? packet->source[1] : packet->source[0];
	struct bucket *buckets = VALUE(MAP_BUCKETS);
	u64 now = recent_time((struct tick *)(buckets + BUCKET_SETS * BUCKET_WAYS));
	/* SplitMix64 is enough: who finds out how to fill the set of another source does not harm it. */
	struct bucket *set = buckets + (rehash(source ^ config->seed[1]) & (BUCKET_SETS - 1)) * BUCKET_WAYS;

	REPEAT_4(TRY_OWN, 0)
	REPEAT_4(TRY_FULL, 0)
	return ACTION_STEER;

empty:
	COUNT(stats, limited);
	note_offender(packet);
	return ACTION_LIMIT;
}

INLINE int select_member(struct sk_reuseport_md *ctx, u32 member)
{
	return bpf_sk_select_reuseport(ctx, MAP(MAP_TARGETS), &member, 0) == 0;
}

INLINE void count_packet(const struct packet *packet, u32 slot, u32 member, int failover)
{
	struct member_stats *stats = bpf_map_lookup_elem_((u64)MAP(MAP_MEMBER_STATS), &member);
	u32 part = slot / (SLOT_COUNT / STAT_PARTS);
	u32 *packets = bpf_map_lookup_elem_((u64)MAP(MAP_SLOT_STATS), &part);

	if (stats) {
		stats->packets++;
		stats->bytes += packet->bytes;
		stats->failovers += failover;
	}
	if (packets)
		packets[slot & (SLOT_COUNT / STAT_PARTS - 1)]++;
}

#ifdef AIOLB_DEBUG
/* %pI4 and %pI6 (Linux 5.13) read the address in network byte order. */
#define TRACE_AS(format_of_source, source, slot, member, action)                                      \
	do {                                                                                          \
		char format[] = "aiolb: source=" format_of_source " slot=%d member=%d action=" action "\n"; \
		bpf_trace_printk_(format, sizeof(format), source, slot, member);                      \
	} while (0)
#define TRACE(packet, slot, member, action)                                                           \
	do {                                                                                          \
		u64 source[2] = {(packet)->source[0], (packet)->source[1]};                           \
		if ((packet)->is_v4)                                                                  \
			TRACE_AS("%pI4", (char *)source + 12, slot, member, action);                  \
		else                                                                                  \
			TRACE_AS("%pI6", source, slot, member, action);                               \
	} while (0)
#else
#define TRACE(packet, slot, member, action) do { } while (0)
#endif

/* `events` is full. A reader that takes nothing out for long has died, or sleeps: then it is not written to any more.
 * The flag has a byte of its own, for a store that cannot undo what user space does to other flags. What two CPUs write
 * at once may make the wait longer; the time comes first, so that it is never shorter. */
INLINE void lose_event(struct config *config, u64 now)
{
	u32 zero = 0;
	struct group_stats *stats = bpf_map_lookup_elem_((u64)MAP(MAP_GROUP_STATS), &zero);
	u64 position = bpf_ringbuf_query(MAP(MAP_EVENTS), BPF_RB_CONS_POS);

	if (stats)
		COUNT(stats, events_lost);
	if (position != config->event_position) {
		*(volatile u64 *)&config->event_full_ns = now;
		*(volatile u64 *)&config->event_position = position;
	} else if ((s64)(now - config->event_full_ns - config->event_patience_ns) >= 0) {
		((volatile u8 *)&config->flags)[3] = 0;
	}
}

INLINE void tell(struct config *config, const struct packet *packet, u32 slot, u32 member, u32 action)
{
	struct event event;

	if ((packet->source[0] & config->event_mask[0]) != config->event_source[0] ||
	    (packet->source[1] & config->event_mask[1]) != config->event_source[1])
		return;
	if (config->event_sample > 1 && bpf_get_prandom_u32() % config->event_sample)
		return;
	event.time_ns = bpf_ktime_get_ns();
	event.source[0] = packet->source[0];
	event.source[1] = packet->source[1];
	event.bytes = packet->bytes;
	event.port = __builtin_bswap16(read_port(packet));
	event.slot = slot;
	event.member = member;
	event.action = action;
	event.unused = 0;
	/* Who reads looks from time to time: to wake it for each packet would cost more than steering. */
	if (bpf_ringbuf_output(MAP(MAP_EVENTS), &event, sizeof(event), BPF_RB_NO_WAKEUP))
		lose_event(config, event.time_ns);
}

/* MAX_TRIES times: the member that owns the slot, or else another slot by hash. */
#define TRY_SLOT(n)                                                                                   \
	member = slots[hash & (SLOT_COUNT - 1)];                                                      \
	if (select_member(ctx, member))                                                               \
		goto selected;                                                                        \
	failover = 1;                                                                                 \
	hash = rehash(hash);

/* MAX_NEIGHBOURS times, when nearly every member is dead: one member after the other, from one that the hash names. */
#define TRY_NEIGHBOUR(n)                                                                              \
	if ((n) < config->count) {                                                                    \
		member = (start + (n)) % config->count;                                               \
		if (select_member(ctx, member))                                                       \
			goto selected;                                                                \
	}

int balancer(struct sk_reuseport_md *ctx)
{
	struct config *config = VALUE(MAP_CONFIG);
	const u16 *slots = VALUE(MAP_SLOTS);
	struct packet packet = {.ctx = ctx};
	u32 zero = 0, slot, member, start, failover = 0, action, verdict = SK_DROP;
	struct group_stats *stats = bpf_map_lookup_elem_((u64)MAP(MAP_GROUP_STATS), &zero);
	struct key key;
	u64 hash;

	if (!stats || read_packet(&packet))
		return SK_PASS;

	if (config->flags & FLAG_RULES && !packet.migrates) {
		action = follow_rules(config, &packet, stats);
		if (action != ACTION_STEER)
			goto guarded;
	}
	if (config->key == KEY_RANDOM) {
		hash = bpf_get_prandom_u32();
	} else {
		make_key(config, &packet, &key);
		hash = hash_key(config, &key);
	}
	/* After the hash: the CPU fetches the slot while it waits for the bucket. */
	if (config->flags & FLAG_LIMIT && !packet.migrates) {
		action = keep_limit(config, &packet, stats);
		if (action != ACTION_STEER)
			goto guarded;
	}
	slot = hash & (SLOT_COUNT - 1);
	REPEAT_16(TRY_SLOT, 0)
	start = hash;
	REPEAT_64(TRY_NEIGHBOUR, 0)
	member = config->newest;
	if (member < config->count && select_member(ctx, member))
		goto selected;
	if (config->flags & FLAG_STRICT) {
		COUNT(stats, dropped);
		TRACE(&packet, slot, -1, "drop");
		action = ACTION_DROP;
		goto nobody;
	}
	COUNT(stats, unsteered);
	TRACE(&packet, slot, -1, "unsteered");
	action = ACTION_UNSTEERED;
	verdict = SK_PASS;
	goto nobody;

guarded:
	if (action == ACTION_DENY)
		TRACE(&packet, -1, -1, "deny");
	else if (action == ACTION_UNLISTED)
		TRACE(&packet, -1, -1, "unlisted");
	else
		TRACE(&packet, -1, -1, "limit");
	slot = 0;

nobody:
	member = NO_MEMBER;
	goto decided;

selected:
	stats->migrated += packet.migrates;
	stats->failovers += failover;
	count_packet(&packet, slot, member, failover);
	if (failover)
		TRACE(&packet, slot, member, "failover");
	else
		TRACE(&packet, slot, member, "steer");
	action = failover ? ACTION_FAILOVER : ACTION_STEER;
	verdict = SK_PASS;

decided:
	/* The only place that tells: with one more for each action, steering is measurably slower also when it is off. */
	if (__builtin_expect(config->flags & FLAG_EVENTS, 0))
		tell(config, &packet, slot, member, action);
	return verdict;
}
