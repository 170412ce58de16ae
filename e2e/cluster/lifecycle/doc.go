// Package lifecycle brings a cluster up, cuts a node's power, and takes the cluster down again.
//
// There is one cluster per machine. Whatever a run left that was cut off, at any moment, is cleared by the next one from
// what the kernel shows; the record of the owner only says whose folder it was, and whether it had come up. A cluster
// that is up and belongs to another clone of the repository is never touched.
package lifecycle
