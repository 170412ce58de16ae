// Package rules says, as a plain value, what a captured pod's network namespace must hold: the iptables chains that
// redirect its TCP connections to the node proxy, and the policy route that brings the answers of its application back
// to it. It computes that value from the pod alone, prints it, and brings a namespace to it or away from it, without a
// memory of what it did before. It knows no Kubernetes and decides nothing.
package rules
