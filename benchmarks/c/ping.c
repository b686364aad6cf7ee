// How long echoes take: sends on a schedule, whatever the answers do, and prints percentiles of the round trip.
//
//   ping PORT PID RATE COUNT SLOTS SIZE
//
// RATE datagrams per second in all, in turn from SLOTS sources (127.0.0.2, 127.0.0.3, ...), each of which has one
// datagram in flight: it waits for its answer, and then makes up for what its schedule has gone on by. A round trip
// counts from the time at which the datagram was due, so that a server that stalls pays for all that it held up
// (coordinated omission). What has no answer within ten seconds is lost. COUNT datagrams are measured, after a tenth of them
// and at least 200 that are not. PID is the echo server's process, whose CPU time is measured.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define TIMEOUT 10000000000LL  // nanoseconds
#define BATCH 64
#define NAME_OF_FIRST 0x7f000002

struct stamp {
    uint64_t number;
    uint64_t due;
};

struct slot {
    uint64_t next;    // number of its next datagram
    int64_t sent;     // when its last one was, 0: none is in flight
};

static struct sockaddr_in server = {.sin_family = AF_INET};
static struct mmsghdr messages[BATCH];
static struct iovec vectors[BATCH];
static struct sockaddr_in names[BATCH];
static struct stamp stamps[BATCH];

static int64_t now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int compare(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

// From the source of a slot: one socket for all, so that one call takes every answer.
static void send_from(int fd, int slot, char *data, size_t size) {
    union {
        char bytes[CMSG_SPACE(sizeof(struct in_pktinfo))];
        struct cmsghdr align;
    } control = {0};
    struct iovec vector = {data, size};
    struct msghdr message = {.msg_name = &server, .msg_namelen = sizeof server, .msg_iov = &vector, .msg_iovlen = 1,
        .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = IPPROTO_IP, header->cmsg_type = IP_PKTINFO;
    header->cmsg_len = CMSG_LEN(sizeof(struct in_pktinfo));
    struct in_pktinfo info = {.ipi_spec_dst.s_addr = htonl(NAME_OF_FIRST + slot)};
    memcpy(CMSG_DATA(header), &info, sizeof info);
    (void)!sendmsg(fd, &message, 0);  // what is not sent is lost
}

static int take(int fd) {
    for (int i = 0; i < BATCH; i++) {
        vectors[i] = (struct iovec){&stamps[i], sizeof stamps[i]};
        messages[i].msg_hdr = (struct msghdr){.msg_name = &names[i], .msg_namelen = sizeof names[i],
            .msg_iov = &vectors[i], .msg_iovlen = 1};
    }
    return recvmmsg(fd, messages, BATCH, MSG_DONTWAIT, NULL);
}

static double percentile(const int64_t *sorted, size_t count, double share) {
    size_t place = (size_t)(share * count);
    return count ? sorted[place < count ? place : count - 1] / 1e3 : 0;
}

int main(int argc, char **argv) {
    if (argc != 7) return fprintf(stderr, "ping PORT PID RATE COUNT SLOTS SIZE\n"), 2;
    server.sin_port = htons(atoi(argv[1])), server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    double gap = 1e9 / atof(argv[3]);
    uint64_t count = atoll(argv[4]), slots_count = atoi(argv[5]), size = atoi(argv[6]);
    uint64_t warm_up = count / 10 > 200 ? count / 10 : 200, total = warm_up + count;
    if (size < sizeof(struct stamp)) size = sizeof(struct stamp);
    clockid_t clock;
    if (clock_getcpuclockid(atoi(argv[2]), &clock)) return fprintf(stderr, "no such process\n"), 1;
    struct sockaddr_in self = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (bind(fd, (struct sockaddr *)&self, sizeof self)) return perror("bind"), 1;

    char *data = calloc(1, size);
    int64_t *times = malloc(count * sizeof *times);
    struct slot *slots = calloc(slots_count, sizeof *slots);
    for (uint64_t i = 0; i < slots_count; i++) slots[i].next = i;
    uint64_t received = 0, measured = 0, lost = 0, next = 0, done = 0;
    int64_t start = now(CLOCK_MONOTONIC), cpu = 0, cpu_start = 0, begin = 0;
    while (done < total) {
        int64_t time = now(CLOCK_MONOTONIC);
        if (!cpu_start && time >= start + (int64_t)(warm_up * gap)) cpu_start = now(clock), begin = time;
        int taken = take(fd);
        time = now(CLOCK_MONOTONIC);
        for (int i = 0; i < taken; i++) {
            struct stamp *stamp = &stamps[i];
            struct slot *slot = &slots[stamp->number % slots_count];
            if (messages[i].msg_len < sizeof *stamp || !slot->sent || stamp->number != slot->next) continue;
            received++, done++;
            if (stamp->number >= warm_up) times[measured++] = time - (int64_t)stamp->due;
            slot->sent = 0, slot->next += slots_count;
        }
        // Slots are due in turn: the first that is not due ends the look, unless slots are behind.
        for (uint64_t i = 0; i < slots_count; i++) {
            uint64_t place = (next + i) % slots_count;
            struct slot *slot = &slots[place];
            int64_t due = start + (int64_t)(slot->next * gap);
            if (slot->sent && time - slot->sent > TIMEOUT) lost++, done++, slot->sent = 0, slot->next += slots_count;
            if (slot->sent || slot->next >= total || time < due) continue;
            *(struct stamp *)data = (struct stamp){slot->next, due};
            slot->sent = time;
            send_from(fd, place, data, size);
        }
        next = (next + 1) % slots_count;
    }
    cpu = now(clock) - cpu_start;
    double seconds = (now(CLOCK_MONOTONIC) - begin) / 1e9;
    qsort(times, measured, sizeof *times, compare);
    printf("{\"p50\": %.3f, \"p90\": %.3f, \"p99\": %.3f, \"p99.9\": %.3f, \"max\": %.3f, \"sent\": %llu, "
           "\"received\": %llu, \"measured\": %llu, \"lost\": %llu, \"rate\": %.3f, \"microseconds\": %.6f}\n",
           percentile(times, measured, 0.5), percentile(times, measured, 0.9), percentile(times, measured, 0.99),
           percentile(times, measured, 0.999), percentile(times, measured, 1), (unsigned long long)total,
           (unsigned long long)received, (unsigned long long)measured, (unsigned long long)lost,
           measured / seconds, measured ? cpu / 1e3 / measured : 0);
    return 0;
}
