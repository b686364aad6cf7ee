# The Linux structures and calls that the compiled parts share; the names are the kernel's own.

from libc.stdint cimport uint8_t, uint16_t, uint32_t

cdef extern from "<sys/socket.h>" nogil:
    """
    #ifndef UDP_GRO
    #define UDP_GRO 104  /* include/uapi/linux/udp.h */
    #endif
    #define AIOLB_IPPROTO_UDP 17
    /* include/uapi/asm-generic/socket.h: the kernel fills in a struct timespec of the C library where long
       has 64 bits; SCM_TIMESTAMPNS has the number of the option. */
    """
    ctypedef unsigned int socklen_t
    ctypedef unsigned short sa_family_t
    int AF_INET
    int AF_INET6
    int SOL_SOCKET
    int SO_TIMESTAMPNS
    int MSG_DONTWAIT
    int MSG_TRUNC
    int UDP_GRO
    int IPPROTO_UDP "AIOLB_IPPROTO_UDP"

    struct iovec:
        void *iov_base
        size_t iov_len

    struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags

    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len

    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type

    cmsghdr *CMSG_FIRSTHDR(msghdr *)
    cmsghdr *CMSG_NXTHDR(msghdr *, cmsghdr *)
    unsigned char *CMSG_DATA(cmsghdr *)

    int recvmmsg(int, mmsghdr *, unsigned int, int, void *)
    int sendmmsg(int, mmsghdr *, unsigned int, int)
    ssize_t sendto(int, const void *, size_t, int, const void *, socklen_t)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec

    int CLOCK_MONOTONIC
    int clock_gettime(int, timespec *)

cdef extern from "<netinet/in.h>" nogil:
    struct in_addr:
        uint32_t s_addr

    struct sockaddr_in:
        sa_family_t sin_family
        uint16_t sin_port
        in_addr sin_addr

    struct in6_addr:
        uint8_t s6_addr[16]

    struct sockaddr_in6:
        sa_family_t sin6_family
        uint16_t sin6_port
        uint32_t sin6_flowinfo
        in6_addr sin6_addr
        uint32_t sin6_scope_id

cdef extern from "<arpa/inet.h>" nogil:
    const char *inet_ntop(int, const void *, char *, socklen_t)
    int inet_pton(int, const char *, void *)
    uint16_t ntohs(uint16_t)
    uint32_t ntohl(uint32_t)
    uint16_t htons(uint16_t)
    uint32_t htonl(uint32_t)
