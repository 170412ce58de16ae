// Package discover finds the network namespaces of a node's pods without asking anybody: from the processes that run in
// them, whose control groups name the pod. It is how an agent that has just started knows the pods that its predecessor
// captured. It reads, and decides nothing.
package discover
