/* Steers IPFIX (RFC 7011) and NetFlow v9 (RFC 3954) by exporter and observation domain.
 *
 * Templates belong to one domain of one exporter, so that a big router's domains may go to several members, each with
 * all templates that it needs. Anything else, such as NetFlow v5 on the same port, is steered by its source. */
#define VERSION 0		/* offsets in the payload */
#define IPFIX_DOMAIN 12		/* observation domain id */
#define NETFLOW_9_SOURCE 16	/* source id */

int key_of(const struct packet *packet, struct key *key)
{
	u16 version;
	u32 domain;

	if (load_u16(packet, VERSION, &version) || (version != 9 && version != 10))
		return -1;
	if (load_u32(packet, version == 10 ? IPFIX_DOMAIN : NETFLOW_9_SOURCE, &domain))
		return -1;
	/* Two domains of IPv6 exporters may have one key: then they share a member. */
	return set_key(key, source_low(packet), source_high(packet) ^ domain);
}
