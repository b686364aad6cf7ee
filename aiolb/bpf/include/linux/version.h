/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* The oldest kernel that aiolb supports; bcc picks its helpers by it. */
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 8, 0)
