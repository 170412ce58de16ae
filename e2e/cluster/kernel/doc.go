// Package kernel makes, finds and removes the kernel objects that a cluster consists of: named network namespaces,
// links, cgroups, mounts and processes.
//
// Removal needs no record. What belongs to a cluster is found by looking at the kernel: the names are
// always the same, and a process is ours when it lives in one of our cgroups or network namespaces. So whatever a
// run left that was cut off can be cleared by the next one.
package kernel
