/* Steers QUIC (RFC 8999: what holds for every version) by connection id, so that a connection stays on its member
 * when the client's address or port changes.
 *
 * The server gives out connection ids of 8 bytes, and only such as steer to itself: it draws random ones until the
 * group says that one is its own (Group.locate_key). The first packets of a connection carry an id that the client
 * drew, of 8 bytes or more, of which the first 8 count. Shorter ids are steered by their source. */
#define ID_LENGTH 8
#define LONG_HEADER 0x80

int key_of(const struct packet *packet, struct key *key)
{
	u8 first, length;
	u64 id;

	if (load_u8(packet, 0, &first))
		return -1;
	if (!(first & LONG_HEADER)) {
		if (load_u64(packet, 1, &id))
			return -1;
		return set_key(key, id, 0);
	}
	/* 1 byte, 4 of the version, the id's length, the id */
	if (load_u8(packet, 5, &length) || length < ID_LENGTH || load_u64(packet, 6, &id))
		return -1;
	return set_key(key, id, 0);
}
