/* Steers by a session id of 8 bytes at a fixed place of the payload, behind 4 bytes of protocol header: a device keeps
 * its member when it gets another address. A payload that is too short is steered by its source. */
#define SESSION 4	/* offset in the payload */

int key_of(const struct packet *packet, struct key *key)
{
	u64 session;

	if (load_u64(packet, SESSION, &session))
		return -1;
	return set_key(key, session, 0);
}
