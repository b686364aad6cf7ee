/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* What a key file may use. It defines one function:
 *
 *	int key_of(const struct packet *packet, struct key *key)
 *
 * that looks at a datagram, says with set_key() what is to stay on one member, and returns 0. When it returns anything
 * else, or set no key, the datagram is steered by its source. Functions of its own are marked INLINE.
 *
 * Offsets and lengths are bytes of the UDP payload. The loads return 0, or non-zero where the payload is too short;
 * then what they load is 0. Several datagrams of one sender may come in one packet (a train, UDP GRO): the key of the
 * first one is that of all, and their payloads follow one another. */
#ifndef AIOLB_KEY_H
#define AIOLB_KEY_H

#define UDP_HEADER 8
#define MAX_PAYLOAD 65527

/* Without debug information a helper's instructions count as those of the line that calls it. */
#define HELPER static inline __attribute__((always_inline, nodebug))

INLINE int key_of(const struct packet *packet, struct key *key);

/* The key: 128 bits that are hashed. Keys that differ may share a member; equal ones always do. */
HELPER int set_key(struct key *key, u64 low, u64 high)
{
	key->words[0] = low;
	key->words[1] = high;
	key->length = 16;
	return 0;
}

/* Copies `length` bytes, which must be a constant, from `offset` on to a variable. */
HELPER int load_bytes(const struct packet *packet, u32 offset, void *to, u32 length)
{
	if (offset > MAX_PAYLOAD) {
		__builtin_memset(to, 0, length);
		return -1;
	}
	return bpf_skb_load_bytes(packet->ctx, UDP_HEADER + offset, to, length);
}

/* Numbers as protocols send them: the first byte is the highest. */
HELPER int load_u8(const struct packet *packet, u32 offset, u8 *to)
{
	return load_bytes(packet, offset, to, 1);
}

HELPER int load_u16(const struct packet *packet, u32 offset, u16 *to)
{
	int failed = load_bytes(packet, offset, to, 2);

	*to = __builtin_bswap16(*to);
	return failed;
}

HELPER int load_u32(const struct packet *packet, u32 offset, u32 *to)
{
	int failed = load_bytes(packet, offset, to, 4);

	*to = __builtin_bswap32(*to);
	return failed;
}

HELPER int load_u64(const struct packet *packet, u32 offset, u64 *to)
{
	int failed = load_bytes(packet, offset, to, 8);

	*to = __builtin_bswap64(*to);
	return failed;
}

/* Bytes of the payload; of a train, those of all its datagrams. */
HELPER u32 payload_length(const struct packet *packet)
{
	return packet->bytes;
}

/* The source's address as a number of 128 bits: its high and its low half. IPv4 a.b.c.d is ::ffff:a.b.c.d. */
HELPER u64 source_high(const struct packet *packet)
{
	return __builtin_bswap64(packet->source[0]);
}

HELPER u64 source_low(const struct packet *packet)
{
	return __builtin_bswap64(packet->source[1]);
}

HELPER int source_is_v4(const struct packet *packet)
{
	return packet->is_v4;
}

/* The sender's port. */
HELPER u16 source_port(const struct packet *packet)
{
	u16 port = 0;

	bpf_skb_load_bytes(packet->ctx, 0, &port, 2);
	return __builtin_bswap16(port);
}

/* What the balancer calls. */
INLINE int custom_key(const struct packet *packet, struct key *key)
{
	key->words[0] = 0;
	key->words[1] = 0;
	key->length = 0;
	if (key_of(packet, key) || key->length == 0)
		return -1;
	/* Whatever was written to the fields by hand is a key as those of set_key(), and no more than its words. */
	key->length = 16;
	key->tail = 0;
	return 0;
}

#endif
