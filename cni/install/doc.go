// Package install keeps the CNI plugin in the node's CNI configuration: its entry at the end of the list that the
// container runtime takes, its binary beside the others, and a kubeconfig for it. Every write is atomic; what somebody
// changes is put right again; and it can all be taken away without a memory of what was written.
package install
