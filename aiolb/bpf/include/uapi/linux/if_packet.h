/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* bcc includes this for the kernel's short names of its types. */
#ifndef AIOLB_UAPI_LINUX_IF_PACKET_H
#define AIOLB_UAPI_LINUX_IF_PACKET_H
#include <linux/types.h>
typedef __s8 s8;
typedef __u8 u8;
typedef __s16 s16;
typedef __u16 u16;
typedef __s32 s32;
typedef __u32 u32;
typedef __s64 s64;
typedef __u64 u64;
typedef _Bool bool;
typedef unsigned long size_t;
typedef unsigned long uintptr_t;
#endif
