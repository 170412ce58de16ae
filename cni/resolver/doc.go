// Package resolver finds out how a pod resolves names: from its resolv.conf where it runs, and before that from what
// kubelet will write there, by the pod's own wishes and the node's settings. It decides nothing.
package resolver
