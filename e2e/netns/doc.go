// Package netns holds the tests that need a real kernel: pods as network namespaces with the agent's own rules, real
// ztunnel processes before a ZDS server and a control plane, and clients that look at what arrives. They need root. Each
// fact that can be proved without a kernel is proved elsewhere.
package netns
