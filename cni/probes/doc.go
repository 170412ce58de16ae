// Package probes keeps kubelet's probes working for captured pods: on the host, connections of the host's own processes
// to a captured pod get a source address by which the rules in the pod tell them from other traffic and let them through
// in plain. It owns one chain and two address sets of the host's network namespace, and nothing else there.
package probes
