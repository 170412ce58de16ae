// Package plugin is the CNI plugin that stands last in the node's chain. It does one thing: it lets a pod start only if
// the node's agent says that the pod is captured or does not want to be. With the agent away it looks at the pod itself
// and lets start what is surely not to be captured. On every doubt it refuses, and says why and what to do.
package plugin
