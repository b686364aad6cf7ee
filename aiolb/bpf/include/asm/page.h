/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* bcc includes this file; our program needs nothing of it. */
